"""From what the steps showed to findings; arXiv:2010.01412, Eqs. 2 and 3 say what a step is."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from landscape.diagnosis.findings import Diagnosis, Finding
from landscape.diagnosis.watch import Look, Watch
from landscape.sam import schedule
from landscape.sam.trained import unwrap

_LENGTH = 1e-3  # relative, beside the rounding of w + e
_LIKE = 0.05  # share of the angle between g1 and g2 within which a gradient is one of them
_VISIBLE = 100  # roundings
_COARSE = 0.25  # of ‖e‖: a rounding of the weights beyond which w + e does not tell e
_OF_A_RECIPE = ("gate", "length", "descent", "examples", "restored")
_NO_CLIMB = "no step with a second pass at other weights and finite gradients was looked at"


class _Seen(NamedTuple):
    """What the rules read: looks of steps that climbed, and those whose gradients are clear."""

    watch: Watch
    looks: Sequence[Look]
    climbs: Sequence[Look]
    clear: Sequence[Look]

    @property
    def name_of_own(self) -> str:
        own = self.watch.own
        return "" if own is None else own.variant.name


def judge(watch: Watch) -> Diagnosis:
    """The findings on all steps so far.

    watch: the `Watch` of a recording.

    Example:
        >>> base = torch.optim.SGD(model.parameters(), lr=0.0)
        >>> with record(model, rho=0.05) as seen:
        ...     _ = sam.SAM(model, base, sam.sam(0.05)).step(losses, data)
        >>> diagnosis.judge(seen.watch).wrong
        ()
    """
    climbs = [look for look in watch.looks if look.climbed]
    clear = [look for look in climbs if not look.returned]
    seen = _Seen(watch, watch.looks, climbs, clear)
    found = tuple(_by_design(rule(seen), seen) for rule in _RULES)
    return Diagnosis(watch.num_steps, len(watch.looks), found)


def _by_design(finding: Finding, seen: _Seen) -> Finding:
    """A recipe of `landscape.sam` that is more than Eqs. 2 and 3 departs from them on purpose."""
    own = seen.watch.own
    if own is None or finding.verdict != "wrong" or finding.key not in _OF_A_RECIPE:
        return finding
    gates = (schedule.always, schedule.never)
    if own.variant.name == "sam" or (finding.key == "gate" and own.variant.gate not in gates):
        return finding
    said = f"{finding.sentence} The recipe {own.variant.name} may do so by design."
    return replace(finding, verdict="cannot tell", sentence=said)


def _median(values: Sequence[float]) -> float:
    finite = [v for v in values if math.isfinite(v)]
    return statistics.median(finite) if finite else math.nan


def _numbers(**values: float) -> dict[str, float]:
    return {k.replace("_", " "): float(v) for k, v in values.items() if math.isfinite(v)}


def _no_clear(seen: _Seen) -> str:
    """Why no step tells g1 from g2."""
    if not seen.climbs:
        return _NO_CLIMB
    return "the steps come back to w after the climb, and what belongs to which pass is not known"


def _unknown(key: str, why: str) -> Finding:
    return Finding(key, "cannot tell", f"{why}.")


# ----------------------------------------------------------------------------- where pass 2 ran


def _gate(seen: _Seen) -> Finding:
    steps, climbs = seen.watch.num_steps, seen.watch.num_climbed
    numbers = _numbers(steps=steps, steps_with_a_second_pass=climbs)
    if not steps:
        return _unknown("gate", "no step was seen")
    if not climbs:
        return Finding(
            "gate", "wrong", "no step had a second pass at other weights, with a finite e: this is "
            "the training of the base optimizer.", numbers,
            "call optimizer.first_step() between two backward passes (or optimizer.step(closure) "
            "with a closure that runs forward and backward), and look at the condition or period "
            "that decides when the second pass is made.",
        )  # fmt: skip
    what = "every step" if climbs == steps else f"{climbs} of {steps} steps"
    closed = "" if climbs == steps else "; the others step without one (a gate that was closed)"
    return Finding("gate", "ok", f"{what} had a second pass{closed}.", numbers)


def _second_pass(seen: _Seen) -> Finding:
    key = "second pass"
    repeated = [look for look in seen.looks if look.repeated]
    if len(repeated) > len(seen.climbs):
        look = repeated[-1]
        numbers = _numbers(steps=len(repeated), of=len(seen.looks), rho=look.rho,
                           norm_of_w=look.length("w"))  # fmt: skip
        if look.rho <= 4 * look.eps * look.length("w"):
            return Finding(
                key, "wrong", "the second pass ran at w: rho is below the rounding of the weights, "
                "so that w + e = w.", numbers, _larger(look),
            )  # fmt: skip
        return Finding(
            key, "wrong", "the same examples passed twice at the same weights: pass 2 ran at w.",
            numbers, "add e to the parameters that the model reads, in place and under no_grad "
            "(p.add_(e)), after the first backward and before the second forward.",
        )  # fmt: skip
    if not seen.climbs:
        return _unknown(key, _NO_CLIMB)
    dead = [look for look in seen.clear if _reads_others(look)]
    numbers = _numbers(
        steps=len(seen.climbs),
        norm_of_e=_median([look.length("e") for look in seen.climbs]),
        difference_of_g2_from_g1=_median([_change(look) for look in seen.clear]),
    )
    if dead:
        return Finding(
            key, "wrong", f"in {len(dead)} of {len(seen.clear)} steps the parameters moved by e "
            "and outputs and gradients of pass 2 are those of pass 1: the forward pass "
            "reads other memory (a copy or view of a weight, weights gathered by sharding, a "
            "cache of casts).", numbers,
            "let forward read the module's own parameters: reshard() gathered weights, leave "
            "parametrize.cached(), clear the autocast cache (torch.clear_autocast_cache()) before "
            "pass 2.",
        )  # fmt: skip
    if repeated:  # as with a mask that is empty at first
        said = f"pass 2 ran at w + e, and in {len(repeated)} of {len(seen.looks)} steps at w, e = 0"
        return Finding(key, "cannot tell" if seen.watch.own is None else "ok", f"{said}.", numbers)
    return Finding(key, "ok", "pass 2 ran at other weights than pass 1, w + e.", numbers)


def _reads_others(look: Look) -> bool:
    """Whether e moved the parameters and neither outputs (or loss) nor gradient felt it."""
    moved = look.length("e") > _VISIBLE * look.eps * look.length("w")
    clean, perturbed = look.losses
    unmoved = abs(perturbed - clean) <= 4 * look.eps * abs(clean)
    expected = look["g1", "e"] > _VISIBLE * look.eps * abs(clean)
    same = look.examples == 1 and (look.same_outputs or (unmoved and expected))
    return moved and same and look.length("g1") > 0 and _change(look) < _VISIBLE * look.eps


def _change(look: Look) -> float:
    """‖g2 − g1‖ / ‖g1‖."""
    n = look.length("g1")
    square = look["g1", "g1"] + look["g2", "g2"] - 2 * look["g1", "g2"]
    return math.sqrt(max(0.0, square)) / n if n and look.length("g2") else math.nan


def _larger(look: Look) -> str:
    g = look.length("g1") / (look.scale if look.scale > 0 else 1.0)
    least = _VISIBLE * look.eps * look.length("w")
    wanted = f"; a rise of the loss by 0.01 to first order takes rho={0.01 / g:.2g}" if g else ""
    return (
        f"raise rho: it is visible from about {_VISIBLE} roundings of the weights on, "
        f"rho={least:.2g}{wanted}. Keep the weights in float32."
    )


# ------------------------------------------------------------------------------- the length of e


def _length(seen: _Seen) -> Finding:
    key = "length"
    if not seen.climbs:
        return _unknown(key, _NO_CLIMB)
    known = [look for look in seen.climbs if math.isfinite(look.rho)]
    norm = _median([look.length("e") for look in seen.climbs])
    if not known:
        return Finding(
            key, "cannot tell", "no radius is known to compare with.", _numbers(norm_of_e=norm),
            "give it: landscape.record(model, rho=...).",
        )  # fmt: skip
    known = [look for look in known if _rounding(look) < _COARSE]
    if not known:
        return Finding(
            key, "cannot tell", "the weights are rounded so coarsely that w + e does not tell e.",
            _numbers(norm_of_e=norm), "keep the weights in float32.",
        )  # fmt: skip
    wrong = [look for look in known if not _as_asked(look) and _along_gradient(look)]
    other = [look for look in known if not _as_asked(look)]
    look = (wrong or other or known)[-1]
    ratio = look.length("e") / look.rho if look.rho else math.nan
    numbers = _numbers(norm_of_e=look.length("e"), rho=look.rho, ratio=ratio,
                       norm_of_e_over_w=look.length("adaptive"), steps=len(known))  # fmt: skip
    if wrong:
        times = round(ratio) if 1.5 < ratio < 8.5 else 0
        said = f" e was added {times} times." if times and abs(ratio - times) < 0.02 else ""
        return Finding(
            key, "wrong", f"in {len(wrong)} of {len(known)} steps e lies along the gradient and "
            f"its norm is {look.length('e'):.4g} where rho={look.rho:.4g} was asked.{said}",
            numbers,
            "e = rho * g / ‖g‖ with ‖g‖ over all tensors of all groups, of the gradient that e is "
            "made of (both unscaled, or both scaled), added once.",
        )  # fmt: skip
    if other:
        return Finding(
            key, "cannot tell", "‖e‖ is not rho, and e does not lie along the gradient: a geometry "
            "of its own may mean another norm.", numbers,
        )  # fmt: skip
    return Finding(key, "ok", "e is as long as asked, in the norm that its direction has.", numbers)


def _rounding(look: Look) -> float:
    """Of w + e, relative to e."""
    return 4 * look.eps * look.length("w") / max(look.length("e"), 1e-300)


def _as_asked(look: Look) -> bool:
    slack = _LENGTH + _rounding(look)
    near = lambda value: abs(value - look.rho) <= slack * look.rho  # noqa: E731
    part = look.length("selected")
    masked = look["e", "selected"] / part**2 * look.length("g1") if part else math.nan
    partial = part < look.length("g1") * (1 - 1e-6)  # a mask that does not make up for its share
    lengths = [look.length("e"), look.length("adaptive"), masked if partial else math.nan]
    return look.tensors_of_length or any(map(near, lengths))


def _along_gradient(look: Look) -> bool:
    return abs(look.cosine("e", "selected")) > 0.999


# ------------------------------------------------------------------------- the gradient that steps


def _descent(seen: _Seen) -> Finding:
    key = "descent"
    steps = [look for look in seen.clear if look.stepped and look.length("d") and look.length("g2")]
    if not seen.climbs:
        return _unknown(key, _NO_CLIMB)
    if not steps:
        why = "gradients, or an optimizer that steps after pass 2, were not seen"
        return _unknown(key, why if seen.clear else _no_clear(seen))
    kinds = [_kind(look) for look in steps]
    count = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    numbers = _numbers(
        cosine_of_the_descent_gradient_with_g2=_median([x.cosine("d", "g2") for x in steps]),
        with_g1=_median([x.cosine("d", "g1") for x in steps]),
        of_g1_with_g2=_median([x.cosine("g1", "g2") for x in steps]), steps=len(steps),
    )  # fmt: skip
    if "g1" in count:
        return Finding(
            key, "wrong", f"{count['g1']} of {len(steps)} steps descended with g1, the gradient at "
            "w: g2 did not reach the optimizer.", numbers,
            "run the second loss.backward() after zero_grad() and let the base optimizer step with "
            "what it leaves in .grad; put back no gradient of pass 1.",
        )  # fmt: skip
    if "sum" in count:
        return Finding(
            key, "wrong", f"{count['sum']} of {len(steps)} steps descended with g1 + g2: the "
            "gradient of pass 1 was not cleared.", numbers,
            "call zero_grad() between the passes: optimizer.first_step(zero_grad=True).",
        )  # fmt: skip
    if set(count) <= {"g2"}:
        return Finding(key, "ok", "the steps descend with g2, the gradient at w + e.", numbers)
    if set(count) <= {"g2", "mixed"}:
        return Finding(key, "ok", "the steps descend with a combination of g1 and g2.", numbers)
    if "same" in count:
        return _unknown(key, "g1 and g2 are too alike to be told apart")
    return Finding(
        key, "cannot tell", "the optimizer got more than a combination of g1 and g2 (a mean over "
        "processes, weight decay in the gradient, a correction).", numbers,
    )  # fmt: skip


def _kind(look: Look) -> str:
    """Which of g1 and g2 the optimizer got."""
    apart = look.sine("g1", "g2")
    if not apart > max(1e-6, 10 * look.eps):
        return "same"
    if look.sine("d", "g2") < _LIKE * apart and look["d", "g2"] > 0:
        return "g2"
    if look.sine("d", "g1") < _LIKE * apart and look["d", "g1"] > 0:
        return "g1"
    a, b, c = look["g1", "g1"], look["g1", "g2"], look["g2", "g2"]
    x, y = look["d", "g1"], look["d", "g2"]
    det = a * c - b * b
    of_1, of_2 = (x * c - y * b) / det, (y * a - x * b) / det
    rest = look["d", "d"] - of_1 * x - of_2 * y
    if math.sqrt(max(0.0, rest)) > _LIKE * apart * look.length("d") or of_2 <= 0:
        return "other"
    scale = look.scale if math.isfinite(look.scale) else 1.0
    once = all(abs(share * scale - 1) < 0.01 for share in (of_1, of_2))
    return "sum" if once else "mixed"


def _scaling(seen: _Seen) -> Finding:
    key = "scaling"
    steps = [x for x in seen.clear if x.stepped and x.length("d") and _kind(x) == "g2"]
    if not steps:
        return _unknown(key, "no step whose gradient is that of pass 2 alone was seen")
    look = steps[-1]
    factor = look["d", "g2"] / look["g2", "g2"]
    ratio = look.length("e") / look.rho if look.rho > 0 else math.nan
    numbers = _numbers(gradient_that_steps_over_g2=factor, scale=look.scale, e_over_rho=ratio)
    if not _as_asked(look) and factor < 0.75:
        for what, value in (("by", factor), ("times", 1 / factor)):
            if abs(ratio / value - 1) < 0.01:
                return Finding(
                    key, "wrong", f"e is rho {what} the scale of the GradScaler: the gradient and "
                    "its norm were not unscaled alike.".replace("by the", "divided by the"),
                    numbers,
                    "scaler.unscale_(optimizer) before first_step, and take e and ‖g‖ from the "
                    "same gradient.",
                )  # fmt: skip
    if not math.isfinite(look.scale):
        if factor > 0.99:
            return Finding(key, "ok", "g2 steps as backward left it; no scaler acted.", numbers)
        return Finding(
            key, "cannot tell", "g2 was made smaller before the step, by a scaler or by clipping.",
            numbers, "give the scaler: landscape.record(model, scaler=scaler).",
        )  # fmt: skip
    unscaled = factor * look.scale
    if look.scale != 1 and abs(factor - 1) < 0.01:
        said, remedy = "never unscaled", "step with scaler.step(base_optimizer)"
    elif look.scale != 1 and abs(unscaled * look.scale - 1) < 0.01:
        said, remedy = "unscaled twice", "call scaler.unscale_ once per pass and scaler.update()"
    else:
        return Finding(key, "ok", "g2 was unscaled once before the step.", numbers)
    return Finding(key, "wrong", f"g2 was {said} before the step.", numbers, f"{remedy}.")


def _restored(seen: _Seen) -> Finding:
    key = "restored"
    steps = [look for look in seen.climbs if look.stepped]
    if not steps:
        return _unknown(key, "no step of a torch optimizer after a second pass was seen")
    off = [look for look in steps if look.length("r") > 8 * look.eps * look.length("w")]
    look = (off or steps)[-1]
    share = look["r", "e"] / look["e", "e"] if look["e", "e"] else math.nan
    numbers = _numbers(norm_of_what_is_left=look.length("r"), times_e=share, steps=len(steps))
    if not off and any(x.length("r") > 0 and 2 * _rounding(x) > _COARSE for x in steps):
        return Finding(
            key, "cannot tell", "what is left of e is below the rounding of the weights, and so is "
            "e.", numbers, "put w back from a copy; keep the weights in float32.",
        )  # fmt: skip
    if not off:
        return Finding(key, "ok", "the weights were back at w when the optimizer stepped.", numbers)
    return Finding(
        key, "wrong", f"in {len(off)} of {len(steps)} steps the optimizer stepped from weights "
        f"that are not w, but w + {share:.3g} e.", numbers,
        "put w back from a copy before base_optimizer.step().",
    )  # fmt: skip


# ------------------------------------------------------------------ what both passes have in common


def _examples(seen: _Seen) -> Finding:
    key = "examples"
    shares = [look.examples for look in seen.clear if look.examples is not None]
    if not shares:
        why = "the inputs of both passes are not tensors that can be compared"
        return _unknown(key, why if seen.clear else _no_clear(seen))
    other = [share for share in shares if share < 1]
    numbers = _numbers(share_of_pass_2_in_pass_1=min(1.0, *shares), steps=len(shares))
    if other:
        return Finding(
            key, "wrong", f"in {len(other)} of {len(shares)} steps pass 2 saw other inputs than "
            "pass 1: g2 also holds the noise of another batch.", numbers,
            "run both passes on the same batch, augmented once.",
        )  # fmt: skip
    said = "a part of those of pass 1" if max(shares) > 1 else "those of pass 1"
    return Finding(key, "ok", f"the inputs of pass 2 are {said} (targets are not seen).", numbers)


def _dropout(seen: _Seen) -> Finding:
    key = "dropout"
    if not seen.clear:
        return _unknown(key, _no_clear(seen))
    random = [look for look in seen.clear if look.random]
    other = [look for look in random if not look.same_random]
    numbers = _numbers(steps=len(seen.clear), with_random_numbers=len(random), differing=len(other))
    if not random:
        return Finding(key, "ok", "the forward pass draws no random numbers.", numbers)
    if not other:
        return Finding(key, "ok", "both passes drew the same random numbers.", numbers)
    own = "SAM(..., same_rng_both_passes=True)"
    return Finding(
        key, "wrong", f"in {len(other)} of {len(seen.clear)} steps the passes drew other random "
        "numbers (dropout): g2 − g1 also holds their noise.", numbers,
        own if seen.watch.own is not None else "keep torch.get_rng_state() (and the device's) "
        f"before pass 1 and set it before pass 2; landscape.sam: {own}.",
    )  # fmt: skip


def _statistics(seen: _Seen) -> Finding:
    key = "statistics"
    if not seen.clear:
        return _unknown(key, _no_clear(seen))
    most = max(look.updates for look in seen.clear)
    often = sum(look.updates > 1 for look in seen.clear)
    numbers = _numbers(updates_per_step=most, steps=len(seen.clear))
    if not often:
        word = "once per step" if most else "by no pass"
        return Finding(key, "ok", f"buffers (running statistics) were updated {word}.", numbers)
    return Finding(
        key, "wrong", f"in {often} of {len(seen.clear)} steps {most} passes updated the buffers "
        "(running statistics), those at w + e too.", numbers,
        "set momentum = 0 of the BatchNorm layers during pass 2 and back after it, or restore the "
        "buffers (landscape.sam does: bn='first').",
    )  # fmt: skip


# ------------------------------------------------------------------------------ which, and how much


def _left_out(seen: _Seen) -> Finding:
    key, watch = "left out", seen.watch
    if not seen.climbs:
        return _unknown(key, _NO_CLIMB)
    if not watch.reached.max() > 0:
        return _unknown(key, "no gradient was seen (record(gradients=False))")
    rows = list(zip(watch.names, watch.energy.tolist(), watch.reached.tolist(), strict=True))
    energy = max(watch.energy.tolist())
    out = [n for n, e, g in rows if g > 0 and e <= 1e-24 * energy]
    out = [n for n in out if not _constant(watch, n)]
    numbers = _numbers(tensors=len(rows), left_out=len(out))
    if not out:
        return Finding(key, "ok", "every tensor with a gradient was perturbed.", numbers)
    names = ", ".join(out[:8]) + (f" and {len(out) - 8} more" if len(out) > 8 else "")
    if watch.own is not None:
        said = f"{seen.name_of_own} leaves out {names}."
        return Finding(key, "ok", said, numbers)
    asked = set().union(*(members for rho, members in watch.groups if rho == 0))
    if set(out) <= asked:
        return Finding(key, "ok", f"{names}: their group has rho=0.", numbers)
    live = {n for n, _, g in rows if g > 0 and not _constant(watch, n)}
    groups = [g & live for rho, g in watch.groups if rho != 0 and g & live and g & live <= set(out)]
    if set().union(*groups) >= set(out) - asked and not _norms_alone(watch, out):
        return Finding(
            key, "wrong", f"{len(groups)} of {len(watch.groups)} parameter groups were never "
            f"perturbed ({names}).", numbers,
            "loop over all of optimizer.param_groups when e is made, or say it: group['rho'] = 0.",
        )  # fmt: skip
    return Finding(
        key, "cannot tell", f"never perturbed, though they have a gradient: {names}. That is right "
        "for a method that masks tensors, and wrong for SAM, whose e has all of them.", numbers,
        "make e of all parameters with a gradient; give tensors that are meant to stay a group of "
        "their own with rho=0.",
    )  # fmt: skip


def _constant(watch: Watch, name: str) -> bool:
    """Whether its gradient is rounding (a bias before BatchNorm)."""
    reached = float(watch.reached[watch.names.index(name)])
    return reached <= 1e3 * watch.eps**2 * float(watch.reached.max())


def _norms_alone(watch: Watch, out: Sequence[str]) -> bool:
    """Whether the layers of normalization alone are perturbed (arXiv:2306.04226)."""
    modules = dict(unwrap(watch.model).named_modules())
    return all(
        "Norm" in type(modules.get(module)).__name__
        for name, module in zip(watch.names, watch.modules, strict=True)
        if name not in out
    )


def _size(seen: _Seen) -> Finding:
    key = "size"
    looks = seen.clear
    if not looks:
        return _unknown(key, _no_clear(seen))
    to_w = _median([x.length("e") / x.length("w") for x in looks if x.length("w")])
    first = _median([x["g1", "e"] / x.losses[0] for x in looks if x.losses[0] > 0])
    seen_rise = _median([x.losses[1] / x.losses[0] - 1 for x in looks if x.losses[0] > 0])
    numbers = _numbers(norm_of_e_over_norm_of_w=to_w, rise_of_the_loss_to_first_order=first,
                       rise_of_the_loss=seen_rise)  # fmt: skip
    if _invisible(looks):
        return Finding(
            key, "wrong", "e is so small that nothing changes: g2 is g1 up to rounding.", numbers,
            _larger(looks[-1]),
        )  # fmt: skip
    if not math.isfinite(first + seen_rise):
        said = f"e is {to_w:.2g} of the weights; no loss of both passes was seen in `backward`."
        return Finding(key, "ok", said, numbers)
    said = f"e is {to_w:.2g} of the weights and raises the loss by {100 * seen_rise:.2g} %."
    return Finding(key, "ok", said, numbers)


def _invisible(looks: Sequence[Look]) -> bool:
    changes = [_change(x) for x in looks if math.isfinite(_change(x)) and not _reads_others(x)]
    return bool(changes) and _median(changes) < _VISIBLE * looks[-1].eps


def _other_rho(seen: _Seen) -> Finding:
    key = "other rho"
    comparable = [x for x in seen.clear if x.examples == 1 and (x.same_random or not x.random)]
    changes = [c for c in map(_change, comparable) if math.isfinite(c)]
    if not changes:
        return _unknown(key, "no step whose gradients of both passes can be compared was seen")
    change, cosine = _median(changes), _median([x.cosine("g1", "g2") for x in comparable])
    least = _VISIBLE * seen.watch.eps
    numbers = _numbers(difference_of_g2_from_g1=change, cosine=cosine)
    if change < least:
        return Finding(key, "wrong", "neither this radius nor a smaller one acts.", numbers,
                       _larger(comparable[-1]))  # fmt: skip
    smaller = "acts" if change / 10 > least else "does not act"
    return Finding(
        key, "ok", f"g2 differs from g1 by {100 * change:.3g} %, to first order in proportion to "
        f"rho: a radius ten times smaller still {smaller} ({10 * change:.2g} %), one ten times "
        f"larger {'leaves the linear range' if change > 0.1 else 'acts more'}.", numbers,
    )  # fmt: skip


_RULES: tuple[Callable[[_Seen], Finding], ...] = (
    _gate, _second_pass, _length, _descent, _examples, _dropout, _statistics, _scaling, _restored,
    _left_out, _size, _other_rho,
)  # fmt: skip
