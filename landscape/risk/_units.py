"""What a loss returns, what divides it, and which rows may be taken apart: tried, not believed."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from landscape import vectors
from landscape.errors import LandscapeError
from landscape.risk._criterion import Criterion, labels_of
from landscape.risk._data import Batch, Examples, spread_rows
from landscape.risk._engine import Engine

_ROWS, _TABLES = 32, 4
# Rounding of another number of rows: in float32 deep networks reach 1e-5, so that what is more is
# asked of float64.
_SLACK = {torch.float32: 2e-5, torch.float64: 1e-9}
_LOOSE = 1e-3
_COUNTS = ("rows", "labels", "next labels")


def fitted(engine: Engine) -> Engine:
    """The engine whose criterion and examples are known to fit each other."""
    trial = _without_batch_statistics(engine)
    if trial is not None:
        engine = _tried(engine, trial)
    return replace(engine, examples=replace(engine.examples, weights=weights_of(engine)))


def _tried(engine: Engine, trial: Engine) -> Engine:
    examples = engine.examples
    first = _look(trial, examples.few(_ROWS), trial.network.theta)
    criterion = _returning(trial, first)
    trial = replace(trial, criterion=criterion)
    if examples.apart:
        criterion, evidence = _independent(trial, first)
        if evidence:
            examples = units_or_refusal(engine, evidence)
    return replace(engine, criterion=criterion, examples=examples)


@dataclass(frozen=True)
class _UnitLoss:
    """What the loss returned for a batch."""

    batch: Batch
    value: Tensor
    denominator: Tensor | None


def _look(engine: Engine, batch: Batch, theta: Tensor) -> _UnitLoss:
    batch = engine.examples.on_device(batch).mapped(torch.clone)
    # Losses that take derivatives themselves need a graph.
    with engine.evaluating(theta), torch.enable_grad():
        model, batch = engine.network.ready(batch)
        _, value, denominator = engine.criterion.of_rows(model, batch)
        return _UnitLoss(batch, value.detach(), denominator)


def _without_batch_statistics(engine: Engine) -> Engine | None:
    """BatchNorm's own coupling is another matter; None where there is no mode without."""
    if not engine.couples:
        return engine
    with contextlib.suppress(LandscapeError):
        return replace(engine, bn="eval")
    return None


def _returning(engine: Engine, look: _UnitLoss) -> Criterion:
    """The criterion with what it returns: rows, their mean or sum, or a ratio."""
    criterion, count, value = engine.criterion, look.batch.count, look.value
    if look.denominator is not None:
        _refuse_no_denominator(engine, look)
        return criterion.fitted("ratio")
    if value.ndim and value.shape[0] == count:
        return _checked_reduction(engine, criterion.fitted("rows"), look)
    if value.numel() == 1 and criterion.own in ("mean", "sum"):
        return criterion.as_reduced()
    if value.numel() == 1 and criterion.returns in ("mean", "sum"):
        return criterion
    if value.numel() == 1 and (criterion.form == "batch" or criterion.declared == "whole"):
        return criterion.fitted("sum" if criterion.sums else "mean")
    if criterion.form == "batch" and count == 1:
        return criterion.fitted("ratio")
    if criterion.returns == "rows":
        criterion._refuse_no_rows(value, count)
    raise LandscapeError(
        f"{criterion.name} is declared reduction={criterion.declared!r} but returned shape "
        f"{tuple(value.shape)} for {count} examples; return one number, or one loss per example."
    )


def _refuse_no_denominator(engine: Engine, look: _UnitLoss) -> None:
    """What divides belongs to the targets: it is the same at other weights, and adds up."""
    batch, found = look.batch, look.denominator
    if found is None:
        return
    for theta in (*_thetas(engine), -engine.network.theta):
        other = _look(engine, batch, theta).denominator
        if other is None or not torch.equal(other.double(), found.double()):
            raise engine.criterion.no_denominator("is another one at other weights")
    if not engine.examples.apart or batch.count < 2:
        return
    half = batch.count // 2
    try:
        parts = (batch.rows(0, half), batch.rows(half, batch.count - half))
        looks = [_look(engine, part, engine.network.theta).denominator for part in parts]
    except Exception:
        return  # rows that need company
    apart = sum(float(part.double().sum()) for part in looks if part is not None)
    whole = float(found.double().sum())
    if abs(apart - whole) > 1e-6 * max(1.0, abs(whole)):
        why = f"is {whole:.6g} for {batch.count} rows and sums to {apart:.6g} in two halves"
        raise engine.criterion.no_denominator(why)


def _checked_reduction(engine: Engine, criterion: Criterion, look: _UnitLoss) -> Criterion:
    """The sums divided as ours are must be the criterion's own value on these rows.

    Where they are not, its mean may be over the labels that are not ignored; else the criterion is
    taken as it is, and its mean tried as any other.
    """
    if criterion.own not in ("mean", "sum", "batchmean") or criterion.form != "outputs":
        return criterion
    if criterion.head is not None:  # torch's cross-entropy, whose logits are not held at once
        return criterion
    own = criterion.as_reduced()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's of its own reductions, which the caller has seen
        value = _look(replace(engine, criterion=own), look.batch, engine.network.theta).value
    truth = value.double()
    if truth.numel() != 1 or not bool(torch.isfinite(truth).all()):
        return criterion
    total, elements = look.value.double().sum(), look.value.numel() // look.batch.count
    labels = criterion.torch is None and labels_of(look.batch.targets) is not None
    for counts in ("rows", "labels")[: 1 + labels]:
        found = criterion.fitted("rows", counts)
        weights = found.weights(look.batch.targets, look.batch.count, elements).sum()
        ours = total if criterion.sums else total / weights.to(total)
        if torch.allclose(ours, truth.reshape(()), rtol=10 * _SLACK[engine.dtype], atol=1e-12):
            return found
    return own


def _independent(engine: Engine, first: _UnitLoss) -> tuple[Criterion, str]:
    """The criterion with what its mean is over, and how rows were seen to couple ("" if not)."""
    candidates: Sequence[str] = (engine.criterion.counts,)
    labels = labels_of(first.batch.targets)
    if engine.criterion.returns == "mean" and labels is not None:
        candidates = _COUNTS[: 2 + (labels.ndim > 1)]
    evidence = ""
    for counts in candidates:
        criterion = engine.criterion.fitted(engine.criterion.returns, counts)
        found = _coupling(replace(engine, criterion=criterion))
        if not found:
            return criterion, ""
        evidence = evidence or found
    if engine.criterion.returns == "mean":
        _refuse_sum(engine)
    return engine.criterion, evidence


def _refuse_sum(engine: Engine) -> None:
    """What is declared a mean, is none of its parts' and adds up is a sum."""
    examples = engine.examples
    rows = examples.on_device(spread_rows(examples.chunks[0], examples.most_to_try(_ROWS)))
    half = rows.count // 2
    if not half:
        return
    parts = (rows, rows.rows(0, half), rows.rows(half, rows.count - half))
    found = []
    for theta in _thetas(engine):
        try:
            found = [float(_look(engine, part, theta).value.double().mean()) for part in parts]
        except Exception:
            return  # rows that need company
        whole, one, other = found
        if not abs(one + other - whole) <= 10 * _SLACK[engine.dtype] * abs(whole):
            return
    whole, one, other = found
    raise LandscapeError(
        f"{engine.criterion.name} is declared reduction='mean', but of {rows.count} examples it is "
        f"the sum ({whole:.6g}) of what it is of their halves ({one:.6g} and {other:.6g}); declare "
        f"reduction='sum', or return the mean."
    )


def _coupling(engine: Engine) -> str:
    """How the loss of some rows is seen to depend on their company; "" where it is not."""
    tables = engine.examples.chunks
    step = max(1, len(tables) // _TABLES)
    for table in tables[::step][:_TABLES]:
        most = engine.examples.most_to_try(_ROWS)
        probe = engine.examples.on_device(_telling_rows(table, engine.criterion.ignore_index, most))
        if probe.count < 2:
            continue
        for theta in _thetas(engine):
            found = _differs(engine, probe, theta)
            if found and engine.dtype == torch.float32:
                found = _differs_in_float64(engine, probe, theta, found)
            if found:
                return found
    return ""


def _telling_rows(table: Batch, ignored: int, most: int) -> Batch:
    """Rows spread over the table, or over the numbers of labels that count."""
    labels = labels_of(table.targets)
    if labels is None or labels.ndim < 2 or table.count <= most:
        return spread_rows(table, most)
    order = (labels != ignored).reshape(table.count, -1).sum(1).cpu().argsort()
    rows = order[torch.linspace(0, table.count - 1, most).round().long()]
    return table.mapped(lambda leaf: leaf[rows.to(leaf.device)], table.start, most)


def _thetas(engine: Engine) -> Iterator[Tensor]:
    """The model's own weights, and others: at a symmetric start coupling may not show."""
    theta = engine.network.theta
    yield theta
    generator = torch.Generator().manual_seed(0)
    draw = vectors.drawn(partial(torch.randn, generator=generator, dtype=torch.float64), theta)
    scale = (
        torch.nan_to_num(vectors.norm(theta) / max(1, len(theta)) ** 0.5).clamp_min(1e-2).to(theta)
    )
    yield theta + 0.1 * scale * draw


def _differs(engine: Engine, probe: Batch, theta: Tensor, slack: float | None = None) -> str:
    """Numerators of all rows against those of parts: one row, the others, and two halves."""
    slack = _SLACK[engine.dtype] if slack is None else slack
    whole, total = _numerators(engine, probe, theta)
    if not bool(torch.isfinite(whole).all()):
        return ""
    scale = max(1.0, float(whole.abs().max()))
    for at in sorted({1, probe.count // 2}):
        pieces = (probe.rows(0, at), probe.rows(at, probe.count - at))
        try:
            parts = [_numerators(engine, piece, theta) for piece in pieces]
        except LandscapeError:
            raise
        except Exception as error:
            return f"fail in another company: {str(error).splitlines()[0]}"
        joined = torch.cat([part.reshape(-1) for part, _ in parts])
        if whole.ndim == 0:
            joined = joined.sum()
        if joined.shape != whole.shape:
            return f"have {tuple(joined.shape)} losses apart and {tuple(whole.shape)} together"
        gap = (joined - whole).abs()
        if float(gap.max()) > slack * scale or not bool(torch.isfinite(gap).all()):
            row = int(gap.argmax())
            one, other = float(joined.reshape(-1)[row]), float(whole.reshape(-1)[row])
            of = f"example {probe.start + row} of them is" if whole.ndim else "their sum is"
            return (
                f"depend on their company: the loss of {of} {one:.6g} in a batch of {at} or "
                f"{probe.count - at} and {other:.6g} among {probe.count}"
            )
        if total is not None:
            apart = sum(float(part) for _, part in parts if part is not None)
            if abs(apart - float(total)) > max(slack, 1e-6) * max(1.0, abs(float(total))):
                return f"have denominators that sum to {apart:.6g} apart and {float(total):.6g}"
    return ""


def _numerators(engine: Engine, batch: Batch, theta: Tensor) -> tuple[Tensor, Tensor | None]:
    batch = batch.mapped(torch.clone)
    with engine.evaluating(theta), torch.enable_grad():
        model, batch = engine.network.ready(batch)
        if engine.criterion.returns == "ratio":
            _, value, denominator = engine.criterion.of_rows(model, batch)
            total = torch.tensor(value.numel()) if denominator is None else denominator.sum()
            return value.detach().sum().double(), total.double()
        return engine.criterion.of(model, batch)[1].detach().double(), None


def _differs_in_float64(engine: Engine, probe: Batch, theta: Tensor, seen: str) -> str:
    """What is seen in float32 as it is without rounding, where the model can be had in float64."""
    double = torch.float64
    try:
        twin = replace(
            engine,
            network=engine.network.in_dtype(double),
            criterion=engine.criterion.in_dtype(double),
            dtype=double,
        )
        probe = probe.mapped(lambda leaf: leaf.to(double) if leaf.is_floating_point() else leaf)
        return _differs(twin, probe, theta.to(double))
    except Exception:
        return seen if _differs(engine, probe, theta, _LOOSE) else ""


def units_or_refusal(engine: Engine, seen: str) -> Examples:
    """The caller's batches as units, where it is clear that these are meant."""
    examples, criterion = engine.examples, engine.criterion
    several = len(examples.units) > 1
    if examples.given and (
        not several or criterion.declared in ("mean", "sum") or criterion.form == "batch"
    ):
        return examples.as_units()
    where = (
        f"{len(examples.units)} batches were given"
        if examples.given
        else "a Dataset has no batches of its own"
    )
    raise LandscapeError(
        f"With {criterion.name}, rows of the data {seen}; a layer or the loss mixes examples, and "
        f"{where}, so it is not said which examples belong together. Remove the mixing, declare "
        f"reduction='whole' for one batch of all {examples.num_examples}, or give the batches of "
        f"the training (a DataLoader, or a list) and declare reduction='mean'."
    )


def described(examples: Examples) -> dict[str, Any]:
    """What is summed over, as JSON types."""
    found: dict[str, Any] = {}
    if examples.chosen is not None:
        found["rows_of_dataset"] = list(examples.chosen)
    if not examples.apart:
        sizes = sorted(set(examples.units))
        found["units"] = {"batches": len(examples.units), "examples": sizes[:8]}
    return found


def one_unit(engine: Engine) -> Examples:
    examples = engine.examples
    if len(examples.chunks) > 1:
        raise LandscapeError(
            f"reduction='whole' asked of {len(examples.chunks)} batches that cannot be joined to "
            f"one, since their rows differ in shape; pad them to one shape, or declare "
            f"reduction='mean' for a mean over these batches."
        )
    if engine.spread is not None:
        raise LandscapeError(
            "reduction='whole' asked with distributed=True, but one batch of all examples is in "
            "one process; make the risk there."
        )
    return replace(examples, units=(examples.num_examples,), apart=False, _cuts={})


def weights_of(engine: Engine) -> Tensor | None:
    """What each row adds to the denominator (N,); None for a ratio, which only a pass can tell.

    A few rows of each shape go through the model.
    """
    criterion, examples = engine.criterion, engine.examples
    if criterion.returns == "ratio":
        return None
    known: dict[Any, int] = {}
    parts = []
    for chunk in examples.chunks if examples.apart else examples.cut(0):
        shape = tuple((leaf.shape[1:], leaf.dtype) for leaf in chunk.leaves())
        if criterion.returns != "rows":
            known[shape] = 1
        if shape not in known:
            few = chunk.rows(0, min(2, chunk.count)) if examples.apart else chunk
            known[shape] = _look(engine, few, engine.network.theta).value.numel() // few.count
        parts.append(criterion.weights(chunk.targets, chunk.count, known[shape]))
    return torch.cat(parts)
