"""Rules on e: whether pass 2 ran at w + e, how long e is, of which tensors, and what it does."""

import math
from collections.abc import Sequence

from landscape.diagnosis.counted import Counted
from landscape.diagnosis.findings import Finding
from landscape.diagnosis.seen import (
    COARSE,
    NO_CLIMB,
    VISIBLE,
    Seen,
    as_asked,
    change_of_gradient,
    median,
    no_clear,
    numbers_of,
    rounding,
    unknown,
)
from landscape.diagnosis.watch import Look, Watch
from landscape.sam.trained import unwrap

ALONG = 0.999  # cosine from which on e lies along the gradient


def gate(seen: Seen) -> Finding:
    """Whether steps have a second pass at all."""
    counted, climbs, looks = seen.watch.counted, len(seen.climbs), len(seen.looks)
    numbers = numbers_of(
        steps=counted.num_steps, looked_at=looks, of_these_with_a_second_pass=climbs
    )
    if not counted.num_steps:
        return unknown("gate", "no step was seen")
    if not looks:
        return unknown("gate", "no step with finite gradients was looked at")
    more = {n: k for n, k in counted.unmet().items() if n > max(counted.looked)}
    if not climbs and more:
        said = (
            "no step that was looked at had a second pass at other weights; "
            f"{_others(counted)}, and what they did in them is not known"
        )
        return Finding("gate", "cannot tell", f"{said}.", numbers, "landscape.record(every=1).")
    if not climbs:
        return Finding(
            "gate", "wrong", "no step that was looked at had a second pass at other weights, with "
            f"a finite e: this is the training of the base optimizer{_others(counted, '; ')}.",
            numbers,
            "call optimizer.first_step() between two backward passes (or optimizer.step(closure) "
            "with a closure that runs forward and backward), and look at the condition or period "
            "that decides when the second pass is made.",
        )  # fmt: skip
    which = "" if looks == counted.num_steps else " that was looked at"
    what = f"every step{which}" if climbs == looks else f"{climbs} of {looks} steps{which}"
    closed = "" if climbs == looks else "; the others step without one (a gate that was closed)"
    said = f"{what} had a second pass{closed}{_others(counted, '; ')}."
    return Finding("gate", "ok", said.replace("steps that was", "steps that were"), numbers)


def _others(counted: Counted, begin: str = "") -> str:
    """How many forward passes the steps made that were only counted."""
    rest = counted.steps - counted.looked
    if not rest:
        return ""
    made = [f"{k} made {n}" for n, k in sorted(rest.items())]
    many = f" and {len(made) - 4} other numbers" if len(made) > 4 else ""
    unmet = " or ".join(str(n) for n in sorted(counted.unmet())[:4])
    never = f" (none that made {unmet} was looked at)" if unmet else ""
    return (
        f"{begin}of the {rest.total()} others, whose forward passes were counted, "
        f"{', '.join(made[:4])}{many}{never}"
    )


def finite(seen: Seen) -> Finding:
    """Whether losses and gradients were finite."""
    key, watch, counted = "finite", seen.watch, seen.watch.counted
    bad = counted.losses_not_finite()
    numbers = numbers_of(
        losses=counted.num_losses, of_these_not_finite=bad,
        steps_looked_at=counted.num_looked, of_these_with_gradients_not_finite=watch.num_not_finite,
    )  # fmt: skip
    if bad:
        return Finding(
            key, "wrong", f"{bad} of the {counted.num_losses} losses that backward started from "
            "were infinite or NaN.", numbers,
            "lower the learning rate or rho, look at the inputs of that batch, or leave such steps "
            "out (a GradScaler does; so does landscape.sam, which counts them in num_skipped).",
        )  # fmt: skip
    if watch.num_not_finite:
        return Finding(
            key, "cannot tell", f"in {watch.num_not_finite} of the {counted.num_looked} steps "
            "looked at gradients, e or weights were infinite or NaN. A GradScaler leaves such "
            "steps out while it finds its scale; without one it is a fault.", numbers,
        )  # fmt: skip
    if not counted.num_looked:
        return unknown(key, "no step was seen")
    losses = "no loss was seen in backward" if not counted.num_losses else "all losses were finite"
    said = f"{losses}, and so were the gradients of the steps looked at"
    if not counted.num_losses:
        said = f"{losses}; the gradients of the steps looked at were finite"
    return Finding(key, "ok", f"{said}.", numbers)


def second_pass(seen: Seen) -> Finding:
    """Whether pass 2 ran at w + e, and felt it."""
    key = "second pass"
    repeated = [look for look in seen.looks if look.repeated]
    if len(repeated) > len(seen.climbs):
        look = repeated[-1]
        numbers = numbers_of(steps=len(repeated), of=len(seen.looks), rho=look.rho,
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
        return unknown(key, NO_CLIMB)
    dead = [look for look in seen.clear if _reads_others(look)]
    numbers = numbers_of(
        steps=len(seen.climbs),
        norm_of_e=median([look.length("e") for look in seen.climbs]),
        difference_of_g2_from_g1=median([change_of_gradient(look) for look in seen.clear]),
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
    down = [] if seen.watch.own is not None or seen.watch.maximizes else [
        look for look in seen.clear if look.cosine("e", "selected") < -ALONG
    ]  # fmt: skip
    if down:
        return Finding(
            key, "wrong", f"in {len(down)} of {len(seen.clear)} steps e lies against the gradient: "
            "pass 2 ran at w - rho g/‖g‖, where the loss falls.", numbers,
            "add e to the weights and do not take it off: e = + rho * g / ‖g‖.",
        )  # fmt: skip
    if repeated:  # as with a mask that is empty at first
        said = f"pass 2 ran at w + e, and in {len(repeated)} of {len(seen.looks)} steps at w, e = 0"
        return Finding(key, "cannot tell" if seen.watch.own is None else "ok", f"{said}.", numbers)
    return Finding(key, "ok", "pass 2 ran at other weights than pass 1, w + e.", numbers)


def _reads_others(look: Look) -> bool:
    """Whether e moved the parameters and neither outputs (or loss) nor gradient felt it."""
    moved = look.length("e") > VISIBLE * look.eps * look.length("w")
    clean, perturbed = look.losses
    unmoved = abs(perturbed - clean) <= 4 * look.eps * abs(clean)
    expected = look["g1", "e"] > VISIBLE * look.eps * abs(clean)
    same = look.examples == 1 and (look.same_outputs or (unmoved and expected))
    return (
        moved and same and look.length("g1") > 0 and change_of_gradient(look) < VISIBLE * look.eps
    )


def _larger(look: Look) -> str:
    g = look.length("g1") / (look.scale if look.scale > 0 else 1.0)
    least = VISIBLE * look.eps * look.length("w")
    wanted = f"; a rise of the loss by 0.01 to first order takes rho={0.01 / g:.2g}" if g else ""
    return (
        f"raise rho: it is visible from about {VISIBLE} roundings of the weights on, "
        f"rho={least:.2g}{wanted}. Keep the weights in float32."
    )


def length(seen: Seen) -> Finding:
    """Whether e is as long as asked."""
    key = "length"
    if not seen.climbs:
        return unknown(key, NO_CLIMB)
    known = [look for look in seen.climbs if math.isfinite(look.rho)]
    norm = median([look.length("e") for look in seen.climbs])
    if not known:
        return Finding(
            key, "cannot tell", "no radius is known to compare with.", numbers_of(norm_of_e=norm),
            "give it: landscape.record(model, rho=...).",
        )  # fmt: skip
    known = [look for look in known if rounding(look) < COARSE]
    if not known:
        return Finding(
            key, "cannot tell", "the weights are rounded so coarsely that w + e does not tell e.",
            numbers_of(norm_of_e=norm), "keep the weights in float32.",
        )  # fmt: skip
    wrong = [look for look in known if not as_asked(look) and _along_gradient(look)]
    other = [look for look in known if not as_asked(look)]
    look = (wrong or other or known)[-1]
    ratio = look.length("e") / look.rho if look.rho else math.nan
    numbers = numbers_of(norm_of_e=look.length("e"), rho=look.rho, ratio=ratio,
                       norm_of_e_with_each_entry_over_its_weight=look.length("adaptive"),
                       steps=len(known))  # fmt: skip
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


def _along_gradient(look: Look) -> bool:
    return abs(look.cosine("e", "selected")) > ALONG


def left_out(seen: Seen) -> Finding:
    """Which tensors with a gradient were never perturbed."""
    key, watch = "left out", seen.watch
    if not seen.climbs:
        return unknown(key, NO_CLIMB)
    if not watch.reached.max() > 0:
        return unknown(key, "no gradient was seen (record(gradients=False))")
    rows = list(zip(watch.names, watch.energy.tolist(), watch.reached.tolist(), strict=True))
    energy = max(watch.energy.tolist())
    out = [n for n, e, g in rows if g > 0 and e <= 1e-24 * energy]
    out = [n for n in out if not _constant(watch, n)]
    numbers = numbers_of(tensors=len(rows), left_out=len(out))
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


def size(seen: Seen) -> Finding:
    """How large e is beside the weights, and how much it raises the loss."""
    key = "size"
    looks = seen.clear
    if not looks:
        return unknown(key, no_clear(seen))
    to_w = median([x.length("e") / x.length("w") for x in looks if x.length("w")])
    first = median([x["g1", "e"] / x.losses[0] for x in looks if x.losses[0] > 0])
    seen_rise = median([x.losses[1] / x.losses[0] - 1 for x in looks if x.losses[0] > 0])
    numbers = numbers_of(norm_of_e_over_norm_of_w=to_w, rise_of_the_loss_to_first_order=first,
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
    changes = [
        change_of_gradient(x)
        for x in looks
        if math.isfinite(change_of_gradient(x)) and not _reads_others(x)
    ]
    return bool(changes) and median(changes) < VISIBLE * looks[-1].eps


def other_rho(seen: Seen) -> Finding:
    """Whether this radius acts, and others would."""
    key = "other rho"
    comparable = [x for x in seen.clear if x.examples == 1 and (x.same_random or not x.random)]
    changes = [c for c in map(change_of_gradient, comparable) if math.isfinite(c)]
    if not changes:
        return unknown(key, "no step whose gradients of both passes can be compared was seen")
    change, cosine = median(changes), median([x.cosine("g1", "g2") for x in comparable])
    least = VISIBLE * seen.watch.eps
    numbers = numbers_of(difference_of_g2_from_g1=change, cosine=cosine)
    if change < least:
        return Finding(key, "wrong", "neither this radius nor a smaller one acts.", numbers,
                       _larger(comparable[-1]))  # fmt: skip
    smaller = "acts" if change / 10 > least else "does not act"
    return Finding(
        key, "ok", f"g2 differs from g1 by {100 * change:.3g} %, to first order in proportion to "
        f"rho: a radius ten times smaller still {smaller} ({10 * change:.2g} %), one ten times "
        f"larger {'leaves the linear range' if change > 0.1 else 'acts more'}.", numbers,
    )  # fmt: skip
