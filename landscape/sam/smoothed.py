"""Slots that look at noisy weights: R-SAM, tilted SAM, bSAM, noise on merged adapters."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape import vectors
from landscape.checks import check_number
from landscape.errors import LandscapeError
from landscape.sam.directions import joined
from landscape.sam.geometry import Geometry, climb, multiplied
from landscape.sam.passes import Passes
from landscape.sam.slot import Slot
from landscape.sam.variant import MaskEntry, Point, State

Gradients = list[Tensor]


def gaussian(point: Point, sigma: float, most: float | None = None) -> list[Tensor]:
    """Z ~ N(0, sigma² I), shortened to the norm `most` where it is longer."""
    z = [sigma * x for x in point.noise()]
    if most is None:
        return z
    factor = torch.clamp(most / (point.norm_of(z) + 1e-12), max=1.0)
    return [x * factor.to(x.dtype) for x in z]


@dataclass(frozen=True)
class Smoothed(Slot):
    """Pass 1 at w + z, z ~ N(0, sigma² I), of norm `most` at most; pass 2 at w + e.

    z is left to `FromNoise`, which climbs on from there.
    """

    sigma: float = 0.01
    most: float | None = None
    micro_batches: int = 1
    needs_g1 = False
    needs_first_pass = finds_ascent = True
    plain_first = False
    leaves = ("noise",)

    def __post_init__(self) -> None:
        check_number("sigma", self.sigma, least=0)

    def first(self, passes: Passes, point: Point, state: State, only: list[bool] | None) -> Tensor:  # noqa: ARG002
        """The gradient at w + z; returns the loss there."""
        z = dict(zip(point.names, gaussian(point, self.sigma, self.most), strict=True))
        point.scratch["noise"] = z
        with passes.at(z, moved_by=True):
            return passes.backward(only=only)


@dataclass(frozen=True)
class FromNoise(Slot):
    """Perturbation e = z + e', z where pass 1 was, e' = rho f/(‖f‖ + eps) from there."""

    eps: float = 1e-12
    reads = ("noise",)

    def __call__(
        self, point: Point, u: list[Tensor], mask: list[MaskEntry] | None, rho: float | Tensor
    ) -> list[Tensor | None]:
        """The perturbation per tensor, None where a tensor is not perturbed."""
        climb = multiplied(Geometry(eps=self.eps)(point, u, mask, rho))
        z = point.scratch["noise"]
        return [None if x is None else x + z[n] for n, x in zip(point.names, climb, strict=True)]


@dataclass(frozen=True)
class Tilted(Slot):
    """Descent gd = Σ_i softmax_i(tilt L(w + e_i)) ∇L(w + e_i), e_i = z_i + rho ĝ(w + z_i).

    Tilted SAM (arXiv:2410.22656): z_1 and e_1 are the step's own, the other num_samples - 1 are
    drawn alike and cost two passes each.
    """

    num_samples: int = 3
    tilt: float = 1.0
    sigma: float = 1.0
    most: float | None = 1.0
    needs_g1 = False
    needs_e = True
    reads = ("noise",)

    def __call__(self, point: Point, g1: Gradients, g2: Gradients, state: State) -> Gradients:  # noqa: ARG002
        """The descent gradient."""
        losses, gradients = [point.scratch["perturbed_loss"]], [g2]
        for _ in range(self.num_samples - 1):
            z = gaussian(point, self.sigma, self.most)
            further = climb(point, point.gradient_at(z), point.scratch["rho"])
            e = [a + b for a, b in zip(z, further, strict=True)]
            loss, g = point.value_and_gradient_at(e)
            losses.append(loss)
            gradients.append(g)
        weights = torch.softmax(self.tilt * torch.stack(losses), 0)
        return [
            sum(c.to(x.dtype) * x for c, x in zip(weights, parts, strict=True))
            for parts in zip(*gradients, strict=True)
        ]


# --------------------------------------------------------------------------------------- bSAM


@dataclass(frozen=True)
class Posterior(Slot):
    """Pass 1 at w + n/√(N s), n ~ N(0, I): a sample of bSAM's posterior; pass 2 at w + e.

    s, the precision per example, begins at `initial` and is moved by `PosteriorDescent`.
    """

    num_examples: int
    initial: float = 1.0
    needs_g1 = False
    needs_first_pass = finds_ascent = True
    plain_first = False
    leaves = ("precision",)

    def first(self, passes: Passes, point: Point, state: State, only: list[bool] | None) -> Tensor:
        """The gradient at a sample; returns the loss there."""
        known = state.setdefault("precision", {})
        s = {
            n: known.get(n, torch.full_like(w, self.initial).detach())
            for n, w in zip(point.names, point.weights, strict=True)
        }
        point.scratch["precision"], point.scratch["posterior"] = s, state
        noise = {
            n: x / (self.num_examples * s[n]).sqrt()
            for n, x in zip(point.names, point.noise(), strict=True)
        }
        with passes.at(noise, moved_by=True):
            return passes.backward(only=only)


@dataclass(frozen=True)
class OverPrecision(Slot):
    """Perturbation e = rho u/s, s the precision of `Posterior`."""

    reads = ("precision",)

    def __call__(
        self, point: Point, u: list[Tensor], mask: list[MaskEntry] | None, rho: float | Tensor
    ) -> list[Tensor | None]:
        """The perturbation per tensor, None where a tensor is not perturbed."""
        s = point.scratch["precision"]
        over = [x / s[n] for n, x in zip(point.names, u, strict=True)]
        return multiplied(Geometry(scope="none")(point, over, mask, rho))


@dataclass(frozen=True)
class PosteriorDescent(Slot):
    """Descent gd = m/s, m = beta_1 m + (1 - beta_1)(g2 + decay w) (bSAM, arXiv:2210.01620).

    Then s = beta_2 s + (1 - beta_2)(√s |g1| + decay + damping), g1 the gradient at the sample.
    """

    beta_1: float = 0.9
    beta_2: float = 0.999
    decay: float = 5e-4
    damping: float = 0.1
    reads = ("precision",)
    remembers = True

    def __call__(self, point: Point, g1: Gradients, g2: Gradients, state: State) -> Gradients:
        """The descent gradient; s is in the state of `Posterior`."""
        s, old = point.scratch["precision"], state.get("momentum", {})
        m = [
            self.beta_1 * old.get(n, torch.zeros_like(g))
            + (1 - self.beta_1) * (g + self.decay * w.detach())
            for n, g, w in zip(point.names, g2, point.weights, strict=True)
        ]
        state["momentum"] = joined(point, old, m)
        floor = self.decay + self.damping
        new = [
            self.beta_2 * s[n] + (1 - self.beta_2) * (s[n].sqrt() * g.abs() + floor)
            for n, g in zip(point.names, g1, strict=True)
        ]
        posterior = point.scratch["posterior"]
        posterior["precision"] = joined(point, s, new)
        return [x / s[n] for n, x in zip(point.names, m, strict=True)]


# ---------------------------------------------------------------------------------- Flat-LoRA


@dataclass(frozen=True)
class Nothing(Slot):
    """No direction and no first pass: the perturbation is of weights that are not trained."""

    first_pass = False

    def __call__(self, point: Point, state: State) -> list[Tensor]:  # noqa: ARG002
        """Nothing per tensor."""
        return [torch.zeros((), device=w.device).expand(w.shape) for w in point.weights]


@dataclass(frozen=True)
class MergedNoise(Slot):
    """N(0, (rho ‖row‖)²/n) on the frozen weights under low-rank adapters (arXiv:2409.14396).

    ‖row‖ is of the merged weight W + scaling B A of each output, n its number of inputs; W is
    moved, which moves the merged weight alike. Nothing that is trained is perturbed.
    """

    scaling: float

    def __post_init__(self) -> None:
        check_number("scaling", self.scaling, least=0, beyond=True)

    def __call__(
        self,
        point: Point,
        u: list[Tensor],
        mask: list[MaskEntry] | None,  # noqa: ARG002
        rho: float | Tensor,
    ) -> list[Tensor | None]:
        """None per trained tensor; the noise is in `point.also`."""
        if point.shards is not None:
            raise LandscapeError(
                "flat_lora merges whole weights, and these are sharded; use "
                "DistributedDataParallel, whose processes hold whole ones."
            )
        frozen = point.untrained()
        for name, a, b in adapters(point, frozen):
            w = frozen[name].detach()
            merged = w + self.scaling * vectors.combine(b, a)
            rows = vectors.row_norms(merged).to(w.dtype)[:, None]
            noise = torch.randn(w.shape, generator=point.generator, device=point.generator.device)
            size = rho * rows / w.shape[1] ** 0.5
            point.also[name] = (noise.to(w.device, w.dtype) * size).to(w.dtype)
        return [None] * len(u)


def adapters(point: Point, frozen: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name of the frozen weight, A, B) of each low-rank adapter, as `peft` names them."""
    trained = dict(zip(point.names, point.weights, strict=True))
    found = False
    for name, a in trained.items():
        before, mark, after = name.partition("lora_A.")
        b = trained.get(f"{before}lora_B.{after}")
        if not mark or b is None:
            continue
        under = next(
            (n for n in (f"{before}base_layer.weight", f"{before}weight") if n in frozen), ""
        )
        if not under or a.ndim != 2 or frozen[under].shape != (b.shape[0], a.shape[1]):
            raise LandscapeError(
                f"the adapter {name!r} has no frozen linear weight under it that this method could "
                "merge; use it with LoRA on linear layers."
            )
        found = True
        yield under, a.detach(), b.detach()
    if not found:
        raise LandscapeError(
            "flat_lora perturbs the frozen weights under low-rank adapters, and none of the "
            f"{len(trained)} trained tensors is one (names with lora_A. and lora_B., as in peft)."
        )
