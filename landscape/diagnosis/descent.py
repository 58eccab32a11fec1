"""Rules on the step: which gradient went from which weights, and what both passes share."""

import math

from landscape.diagnosis.findings import Finding
from landscape.diagnosis.seen import (
    COARSE,
    NO_CLIMB,
    Seen,
    as_asked,
    median,
    no_clear,
    numbers_of,
    rounding,
    unknown,
)
from landscape.diagnosis.watch import Look

_LIKE = 0.05  # share of the angle between g1 and g2 within which a gradient is one of them


def descent(seen: Seen) -> Finding:
    """Which of g1 and g2 the base optimizer got."""
    key = "descent"
    steps = [look for look in seen.clear if look.stepped and look.length("d") and look.length("g2")]
    if not seen.climbs:
        return unknown(key, NO_CLIMB)
    if not steps:
        why = "gradients, or an optimizer that steps after pass 2, were not seen"
        return unknown(key, why if seen.clear else no_clear(seen))
    kinds = [_kind(look) for look in steps]
    count = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    numbers = numbers_of(
        cosine_of_the_descent_gradient_with_g2=median([x.cosine("d", "g2") for x in steps]),
        with_g1=median([x.cosine("d", "g1") for x in steps]),
        of_g1_with_g2=median([x.cosine("g1", "g2") for x in steps]), steps=len(steps),
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
        return unknown(key, "g1 and g2 are too alike to be told apart")
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


def scaling(seen: Seen) -> Finding:
    """Whether g2 was unscaled once."""
    key = "scaling"
    steps = [x for x in seen.clear if x.stepped and x.length("d") and _kind(x) == "g2"]
    if not steps:
        return unknown(key, "no step whose gradient is that of pass 2 alone was seen")
    look = steps[-1]
    factor = look["d", "g2"] / look["g2", "g2"]
    ratio = look.length("e") / look.rho if look.rho > 0 else math.nan
    numbers = numbers_of(gradient_that_steps_over_g2=factor, scale=look.scale, e_over_rho=ratio)
    if not as_asked(look) and factor < 0.75:
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


def restored(seen: Seen) -> Finding:
    """Whether the weights were back at w when the optimizer stepped."""
    key = "restored"
    steps = [look for look in seen.climbs if look.stepped]
    if not steps:
        return unknown(key, "no step of a torch optimizer after a second pass was seen")
    off = [look for look in steps if look.length("r") > 8 * look.eps * look.length("w")]
    look = (off or steps)[-1]
    share = look["r", "e"] / look["e", "e"] if look["e", "e"] else math.nan
    numbers = numbers_of(norm_of_what_is_left=look.length("r"), times_e=share, steps=len(steps))
    if not off and any(x.length("r") > 0 and 2 * rounding(x) > COARSE for x in steps):
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


def examples(seen: Seen) -> Finding:
    """Whether both passes saw the same examples."""
    key = "examples"
    shares = [look.examples for look in seen.clear if look.examples is not None]
    if not shares:
        why = "the inputs of both passes are not tensors that can be compared"
        return unknown(key, why if seen.clear else no_clear(seen))
    other = [share for share in shares if share < 1]
    numbers = numbers_of(share_of_pass_2_in_pass_1=min(1.0, *shares), steps=len(shares))
    if other:
        return Finding(
            key, "wrong", f"in {len(other)} of {len(shares)} steps pass 2 saw other inputs than "
            "pass 1: g2 also holds the noise of another batch.", numbers,
            "run both passes on the same batch, augmented once.",
        )  # fmt: skip
    said = "a part of those of pass 1" if max(shares) > 1 else "those of pass 1"
    return Finding(key, "ok", f"the inputs of pass 2 are {said} (targets are not seen).", numbers)


def dropout(seen: Seen) -> Finding:
    """Whether both passes drew the same random numbers."""
    key = "dropout"
    if not seen.clear:
        return unknown(key, no_clear(seen))
    random = [look for look in seen.clear if look.random]
    other = [look for look in random if not look.same_random]
    numbers = numbers_of(
        steps=len(seen.clear), with_random_numbers=len(random), differing=len(other)
    )
    if not random:
        return Finding(key, "ok", "the forward pass draws no random numbers.", numbers)
    if not other:
        return Finding(key, "ok", "both passes drew the same random numbers.", numbers)
    own = "SAM(..., same_rng_both_passes=True)"
    return Finding(
        key, "wrong", f"in {len(other)} of {len(seen.clear)} steps the passes drew other random "
        "numbers (dropout): g2 − g1 also holds their noise.", numbers,
        own if seen.watch.own is not None else "keep torch.get_rng_state() (and the device's, "
        "random.getstate(), np.random.get_state()) before pass 1 and set them before pass 2; "
        f"landscape.sam: {own}.",
    )  # fmt: skip


def buffers(seen: Seen) -> Finding:
    """How many passes updated buffers."""
    key = "statistics"
    if not seen.clear:
        return unknown(key, no_clear(seen))
    most = max(look.updates for look in seen.clear)
    often = sum(look.updates > 1 for look in seen.clear)
    numbers = numbers_of(updates_per_step=most, steps=len(seen.clear))
    if not often:
        word = "once per step" if most else "by no pass"
        return Finding(key, "ok", f"buffers (running statistics) were updated {word}.", numbers)
    return Finding(
        key, "wrong", f"in {often} of {len(seen.clear)} steps {most} passes updated the buffers "
        "(running statistics), those at w + e too.", numbers,
        "set momentum = 0 of the BatchNorm layers during pass 2 and back after it, or restore the "
        "buffers (landscape.sam does: bn='first').",
    )  # fmt: skip
