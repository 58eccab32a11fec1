"""Whether the gradient is the slope of the loss and Hessian products symmetric, on a few rows."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from landscape import devices, vectors
from landscape.risk import _fitting
from landscape.risk._engine import Engine
from landscape.risk._network import Moved
from landscape.seeds import generator

_ROWS = 16
# Of large models one row, or two that BatchNorm couples: their gradient already reaches every
# tensor, and each costs seconds, and memory in float64. Where it has no gradient (nothing but
# ignored labels) as many as of others.
_LARGE = 5_000_000
# Of float64, and of float32 where a model has no float64: steps along v, |u'Hv − v'Hu| over
# ‖u‖‖Hv‖ that is more than rounding, and roundings in a loss.
_STEPS = {torch.float64: (1e-3, 1e-4, 1e-5), torch.float32: (3e-2, 1e-2, 3e-3)}
_SYMMETRIC = {torch.float64: 1e-9, torch.float32: 1e-4}
_ROUNDINGS = 100
# A difference of slopes beyond this share of them, which every smaller step does not bring down.
_SHARE, _SHRINKS = 1e-3, 0.5
_VERDICTS = ("false_gradient", "asymmetric", "false_product")
# Second differences for every step that are the curvature of a smooth loss.
_ALIKE = 1e-2
_MOST_NAMES = 8


@dataclass(frozen=True)
class Probe:
    """On `rows` examples at the model's theta, moved a little: two products and six losses.

    slope: g·v of the gradient g; loss_slopes: (L(θ + hv) − L(θ − hv)) / 2h of the loss for the
    three `steps` h; their difference vanishes with h where it comes from curvature or kinks.
    asymmetry: |uᵀHv − vᵀHu| / (‖u‖ ‖Hv‖) of two random vectors. curvature: vᵀHv, beside
    loss_curvatures, (L(θ + hv) − 2 L(θ) + L(θ − hv)) / h²; kinks curve the loss where no derivative
    sees it. false_gradient, asymmetric, false_product: what is wrong and where, or None. promoted:
    the model casts to float32 or makes it, which follows its weights where these are float64.
    failure: why there is no probe, or none in float64.
    rows: how many examples. dtype: the precision of the model in it.

    Example:
        >>> seen = risk.probe()
        >>> seen.false_gradient is None, seen.asymmetric is None, seen.asymmetry < 1e-6
        (True, True, True)
    """

    rows: int
    dtype: str
    slope: float
    steps: tuple[float, ...]
    loss_slopes: tuple[float, ...]
    asymmetry: float
    curvature: float
    loss_curvatures: tuple[float, ...]
    false_gradient: str | None
    asymmetric: str | None
    false_product: str | None
    promoted: bool = False
    failure: str = ""

    @property
    def has_float64(self) -> bool:
        """Whether the model works in float64; True where nothing is known."""
        return self.dtype != "float32"

    def reasons(self, matrix: str = "hessian") -> tuple[str, ...]:
        """Why no eigenvalue of the matrix ("hessian" or "ggn") is one of the loss; () if none."""
        of_product = (self.asymmetric, self.false_product) if matrix == "hessian" else ()
        found = (self.false_gradient, *of_product)
        return tuple(reason for reason in found if reason)

    def provenance(self, matrix: str = "hessian") -> dict[str, Any]:
        """As JSON types; `unsound` says what is wrong."""
        numbers = {
            key: _json(value)
            for key, value in asdict(self).items()
            if key not in ("false_gradient", "asymmetric", "false_product")
            and value is not False
            and value != ""
        }
        reasons = self.reasons(matrix)
        return {"probe": numbers} | ({"unsound": list(reasons)} if reasons else {})


class Probes:
    """Probes of one model, made once per BatchNorm mode, on the same rows whoever asks first."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._known = engine, dict[str, Probe]()
        self.asked = 0

    def of(self, bn: str) -> Probe:
        """The probe in this BatchNorm mode."""
        self.asked += 1
        if bn not in self._known:
            size = 8 * self._engine.network.layout.num_parameters
            devices.trim(size)
            self._known[bn] = probe(replace(self._engine, bn=bn))
            devices.trim(size, networks=True)
        return self._known[bn]


def probe(engine: Engine) -> Probe:
    """Two products, six losses and one gradient of a few rows, in float64 where the model allows.

    The point is moved by a thousandth of the weights, off the kinks that sit exactly at theta
    (units at zero at initialization). A model that has no second derivative is left to the product
    that is asked, which says so.
    """
    reason = ""
    for dtype in dict.fromkeys((torch.float64, engine.dtype)):
        try:
            first, *more = _rows(engine)
            seen = _on(engine, _fitting_rows(engine, first), dtype)
            for rows in more if seen.slope == 0 else ():
                seen = _on(engine, _fitting_rows(engine, rows), dtype)
            return replace(seen, failure=reason)
        except Exception as error:  # of the model or the loss
            reason = str(error).splitlines()[0]
    unknown = math.nan
    return Probe(0, "", unknown, (), (), unknown, unknown, (), None, None, None, failure=reason)


_Visit = Callable[[int, Tensor], None]


def _visiting(parts: Sequence[Tensor | None]) -> Callable[[_Visit], None]:
    def each(visit: _Visit) -> None:
        for i, part in enumerate(parts):
            if part is not None:
                visit(i, part)

    return each


def _rows(engine: Engine) -> tuple[int, ...]:
    """How many rows, one try after the other."""
    if engine.network.layout.num_parameters < _LARGE:
        return (_ROWS,)
    return (2 if engine.couples else 1), _ROWS


def _fitting_rows(engine: Engine, rows: int) -> int:
    """At most so many; a row of its own is never too many, and what it takes is not asked."""
    if rows == 1 and engine.examples.apart:
        return 1
    return min(rows, _fitting.most_rows(engine, 2, engine.memory * engine.dtype.itemsize // 16))


def _on(engine: Engine, rows: int, dtype: torch.dtype) -> Probe:
    """On so many rows of the largest chunk, or what few units are."""
    chunk = max(engine.examples.chunks, key=lambda chunk: chunk.count)
    count = min(chunk.count, rows)
    if not engine.examples.apart:
        chunk = engine.examples.few(count)
        count = chunk.count
    at = torch.arange(chunk.start, chunk.start + count)
    few = replace(engine, examples=engine.examples.take(at))
    return _Probing(few.in_dtype(dtype)).made()


class _Probing:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.network, self.dtype = engine, engine.network, engine.dtype
        self.rows = engine.examples.chunks[0]
        # In the risk's dtype, not the probe's: of large models every copy counts.
        self.layout, self.given = engine.network.layout, engine.network.given
        sizes, source = self._sizes(), generator(0, purpose="probe")
        normal = partial(torch.randn, generator=source, dtype=torch.float32)

        def draw() -> Tensor:
            drawn = vectors.drawn(normal, self.given)
            for part, size in sizes:
                drawn[part] *= size
            return drawn

        # Any direction does for u, which bfloat16 holds in half the memory; v takes up gradients.
        self.u, self.v = draw().bfloat16(), draw()
        self.theta = Moved(self.given, ((self.u, 1e-3),))

    def _sizes(self) -> list[tuple[slice, Tensor]]:
        """Per tensor its root mean square, or a tenth of that of all if it is less."""
        theta = self.given
        least = 0.1 * self._root_mean_square(theta).clamp(min=1e-3)
        parts = [slice(info.start, info.stop) for info in self.layout.tensors]
        return [(part, self._root_mean_square(theta[part]).clamp(min=least)) for part in parts]

    @staticmethod
    def _root_mean_square(x: Tensor) -> Tensor:
        return (vectors.norm(x) / max(1, x.numel()) ** 0.5).to(x.dtype)

    def made(self) -> Probe:
        slope, asymmetry, curvature = self._slope_and_products()
        steps = _STEPS[self.dtype]
        beside = [self._losses_beside(self.v, h) for h in steps]
        slopes = [
            (ahead - behind) / (2 * h) for (ahead, behind), h in zip(beside, steps, strict=True)
        ]
        bends = [
            (ahead - 2 * self.loss + behind) / h**2
            for (ahead, behind), h in zip(beside, steps, strict=True)
        ]
        gaps = [abs(found - slope) for found in slopes]
        tolerance = _SHARE * max(abs(slope), abs(slopes[-1])) + self._rounding(steps[-1])
        false_gradient = asymmetric = None
        vanishes = gaps[2] <= _SHRINKS * gaps[1] and gaps[1] <= _SHRINKS * gaps[0]
        if gaps[-1] > tolerance and not vanishes:
            false_gradient = self._false_gradient(slope, slopes[-1])
        if asymmetry > _SYMMETRIC[self.dtype]:
            asymmetric = self._asymmetric(asymmetry)
        return Probe(
            rows=self.rows.count,
            dtype=str(self.dtype).removeprefix("torch."),
            slope=slope,
            steps=steps,
            loss_slopes=tuple(slopes),
            asymmetry=asymmetry,
            false_gradient=false_gradient,
            asymmetric=asymmetric,
            curvature=curvature,
            loss_curvatures=tuple(bends),
            false_product=None if asymmetric else self._false_product(curvature, bends, gaps),
            promoted=self.network.promotes,
        )

    def _slope_and_products(self) -> tuple[float, float, float]:
        """g·v, the asymmetry and vᵀHv; v is given a share of g, which shows a false gradient."""
        engine, network = self.engine, self.network
        with engine.differentiating(2, self.theta):
            graph = engine.gradient_graph(self.rows)
            gradient = [g if g is None else g.detach() for g in graph.gradients]
            size = self._sums(_visiting(gradient))[2] ** 0.5
            if math.isfinite(size) and size > 0:
                network.add(self.v, gradient, alpha=float(vectors.norm(self.v)) / size)
            self.loss, slope = float(graph.loss), self._sums(_visiting(gradient))[1]
            gradient.clear()
            graph.forget()
            devices.trim(8 * len(self.given))
            (_, vHu, HuHu), (uHv, vHv, HvHv) = [
                self._sums(partial(engine.visit_product, graph=graph, v=vector, keep=keep))
                for vector, keep in ((self.u, True), (self.v, False))
            ]
        devices.trim(8 * len(self.given))
        sizes = [
            float(vectors.norm(self.u)) * HvHv**0.5, float(vectors.norm(self.v)) * HuHu**0.5
        ]  # fmt: skip
        size = max(sizes)
        return slope, abs(uHv - vHu) / size if size > 0 else 0.0, vHv

    def _sums(self, each: Callable[[_Visit], None]) -> tuple[float, float, float]:
        """(u·x, v·x, x·x) of a vector x of which `each` shows one tensor after the other."""
        network = self.network
        if network.space is None:
            pairs = list(zip(network.pieces(self.u), network.pieces(self.v), strict=True))
            found: list[Tensor] = []

            def add(i: int, x: Tensor) -> None:
                u, v = pairs[i]
                found.append(torch.stack([vectors.dot(y, x) for y in (u, v, x)]))

            each(add)
            first, second, third = torch.stack(found).sum(0).tolist() if found else (0.0, 0.0, 0.0)
            return first, second, third
        # A process has parts of tensors, of which some are others' to count.
        whole = torch.zeros_like(self.given, dtype=self.dtype)
        pieces = network.pieces(whole)

        def put(i: int, x: Tensor) -> None:
            pieces[i].add_(x)

        each(put)
        along_u, along_v = vectors.dot(self.u, whole), vectors.dot(self.v, whole)
        return float(along_u), float(along_v), float(vectors.squared_norm(whole))

    def _product(self, rows: Tensor) -> Tensor:
        total = torch.zeros_like(rows, dtype=self.dtype)
        with self.engine.differentiating(2, self.theta):
            graph = self.engine.gradient_graph(self.rows)
            self.engine.add_products(total, graph, rows, keep=False)
        return total

    def _losses_beside(self, v: Tensor, h: float) -> tuple[float, float]:
        ahead, behind = (
            float(self.engine.loss_only(self._beside(v, step), self.rows)) for step in (h, -h)
        )
        return ahead, behind

    def _beside(self, v: Tensor, step: float) -> Moved:
        return replace(self.theta, steps=(*self.theta.steps, (v, step)))

    def _loss_slope(self, v: Tensor, h: float) -> float:
        ahead, behind = self._losses_beside(v, h)
        return (ahead - behind) / (2 * h)

    def _rounding(self, h: float) -> float:
        return _ROUNDINGS * torch.finfo(self.dtype).eps * abs(self.loss) / h

    def _asymmetry(self, u: Tensor, v: Tensor, Hu: Tensor, Hv: Tensor) -> float:
        size = max(
            float(vectors.norm(u) * vectors.norm(Hv)), float(vectors.norm(v) * vectors.norm(Hu))
        )
        return (
            abs(float(vectors.dot(u, Hv)) - float(vectors.dot(v, Hu))) / size if size > 0 else 0.0
        )

    def _false_gradient(self, slope: float, of_loss: float) -> str | None:
        """In which tensors; None if it was a kink, which shrinks with a shorter step yet."""
        h = _STEPS[self.dtype][-1] * (1e-2 if self.dtype == torch.float64 else 1.0)
        # Two losses before two for each of hundreds of tensors.
        nearer = self._loss_slope(self.v, h)
        if abs(nearer - slope) <= _SHARE * max(abs(slope), abs(nearer)) + self._rounding(h):
            return None
        names, gradient = [], torch.zeros_like(self.given, dtype=self.dtype)
        with self.engine.differentiating(1, self.theta):
            self.engine.add_gradient(gradient, self.rows)
        for info in self.layout.tensors:
            part = slice(info.start, info.stop)
            v = torch.zeros_like(self.v)
            v[part] = self.v[part]
            own, found = float(vectors.dot(gradient[part], v[part])), self._loss_slope(v, h)
            slack = 10 * _SHARE * max(abs(own), abs(found)) + self._rounding(h)
            if not abs(own - found) <= slack:
                names.append(info.name)
        if not names:
            return None
        return (
            f"the gradient is not the slope of the loss ({slope:.6g} along v, where the loss has "
            f"{of_loss:.6g}), in {_listed(names)}: a straight-through estimator, a reversed or "
            f"scaled gradient, or detach(); eigenvalues of its derivative are none of the loss"
        )

    def _false_product(self, curvature: float, bends: list[float], gaps: list[float]) -> str | None:
        """Where the loss is smooth along v, and its curvature another for every step.

        Smooth: the error of a slope falls with the square of the step; at kinks with the step.
        """
        steps = _STEPS[self.dtype]
        smooth = gaps[1] <= gaps[0] * (steps[1] / steps[0]) ** 1.7 + self._rounding(steps[1])
        for bend, h in zip(bends, steps, strict=True):
            size = max(abs(bend), abs(bends[0]))
            alike = abs(bend - bends[0]) <= _ALIKE * size + self._rounding(h) / h
            off = abs(bend - curvature) > 3 * _ALIKE * max(size, abs(curvature))
            if not (smooth and alike and off and abs(bend - curvature) > self._rounding(h) / h):
                return None
        return (
            f"the Hessian product is not the curvature of the loss (vᵀHv = {curvature:.6g}, where "
            f"the loss has {bends[1]:.6g}): a function of your own whose backward is not "
            f"differentiable leaves a part out; write its backward in differentiable operations"
        )

    def _asymmetric(self, asymmetry: float) -> str:
        names = [name for name, own in self._blocks() if own > _SYMMETRIC[self.dtype]]
        return (
            f"the second derivative is not symmetric (|uᵀHv − vᵀHu| = {asymmetry:.2g} ‖u‖‖Hv‖), in "
            f"{_listed(names)}: an operation whose derivative of the derivative is wrong; write it "
            f"in plain torch operations"
        )

    def _blocks(self) -> Iterator[tuple[str, float]]:
        """Asymmetry of the diagonal block of every module."""
        modules = dict.fromkeys(info.module for info in self.layout.tensors)
        for module in modules:
            u, v = torch.zeros_like(self.u), torch.zeros_like(self.v)
            for info in self.layout.tensors:
                if info.module == module:
                    part = slice(info.start, info.stop)
                    u[part], v[part] = self.u[part], self.v[part]
            Hu, Hv = self._product(torch.stack([u, v]))
            kept = u != 0
            yield module or "the model itself", self._asymmetry(u, v, Hu * kept, Hv * kept)


def _listed(names: list[str]) -> str:
    if not names:
        return "no single tensor, but all together"
    more = len(names) - _MOST_NAMES
    listed = ", ".join(repr(name) for name in names[:_MOST_NAMES])
    return f"{listed} and {more} more" if more > 0 else listed


def _json(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_json(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
