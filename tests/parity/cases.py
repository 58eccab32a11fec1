"""Which variant, with which options, each reference trajectory was made by."""

import math
import random
from dataclasses import replace

import numpy as np

from landscape import sam
from landscape.sam import Geometry
from tests.parity.problem import Problem


def variant_of(meta: dict, arrays: dict[str, np.ndarray], problem: Problem):
    """The variant of one case, or None when the case has no row here."""
    case, hp = meta["case"], meta["hp"]
    for prefix, build in BUILDERS:
        if case.startswith(prefix):
            return build(hp, arrays, problem)
    return None


def _sam(eps: float = 1e-12):
    return lambda hp, arrays, problem: sam.sam(hp["rho"], eps=eps)


def _asam_davda(hp, arrays, problem):
    return sam.asam(hp["rho"], bias_metric="abs", eps=1e-12)


def _asam_samsung(hp, arrays, problem):
    return sam.asam(hp["rho"], eta=hp["eta"])


def _sam_on(hp, arrays, problem):
    metric = "identity"
    if "elementwise" in hp:
        metric = "layerwise" if hp.get("layerwise") else "elementwise"
    return sam.sam_on(
        hp["rho"],
        metric=metric,
        eta=hp.get("eta", 0.0),
        p=math.inf if hp.get("p") == "infinity" else 2.0,
        normalize_bias=hp.get("normalize_bias", False),
        no_norm=hp.get("no_norm", False),
        match="name",
    )


def _asam_all(hp, arrays, problem):
    # Neither flag: T = w, whose sign squares away.
    metric = "layerwise" if hp["layerwise"] else "elementwise"
    geometry = Geometry(metric=metric, metric_on="weights", eta=hp["eta"], eps=1e-16)
    return replace(sam.sam(hp["rho"]), geometry=geometry)


def _fsam(hp, arrays, problem):
    return sam.fsam(
        hp["rho"], sigma=hp["sigma"], lmbda=hp["lmbda"], adaptive=hp.get("adaptive", False)
    )


def _ssam_f(hp, arrays, problem):
    return sam.ssam_f(
        hp["rho"],
        sparsity=hp["sparsity"],
        update_freq=hp["update_freq"],
        num_samples=hp["num_samples"],
        official_quirks=True,
        # BatchNorm1d cannot normalize one example, so the stored MLP trajectory used eval mode.
        fisher_mode="eval" if problem.kind == "mlp" else "train",
    )


def _ssam_d(hp, arrays, problem):
    variant = sam.ssam_d(
        hp["rho"],
        sparsity=hp["sparsity"],
        drop_rate=hp["drop_rate"],
        drop_strategy=hp["drop_strategy"],
        growth_strategy=hp["growth_strategy"],
        update_freq=hp["update_freq"],
        official_quirks=True,
    )
    if "GROWTH_RAND" not in arrays:
        return variant

    def stored(point):
        return problem.unflatten(arrays["GROWTH_RAND"][point.epoch // hp["update_freq"]])

    return replace(variant, selector=replace(variant.selector, growth=stored))


def _zsharp(hp, arrays, problem):
    return sam.zsharp(hp["rho"], percentile=hp["alpha"], norm_scope="tensor")


def _gsam(hp, arrays, problem):
    variant = sam.gsam(1.0, alpha=hp["alpha"], adaptive=hp.get("adaptive", False))
    return replace(variant, radius=lambda point, state: float(arrays["RHO"][point.step]))


def _gcsam(hp, arrays, problem):
    return sam.gcsam(hp["rho"])


def _stable(hp, arrays, problem):
    return sam.stable_sam(
        hp["rho"],
        normalized=not hp.get("unnormalised", False),
        adaptive=hp.get("adaptive", False),
    )


def _esam(hp, arrays, problem):
    variant = sam.esam(hp["rho"], beta=hp["beta"], gamma=hp["gamma"])
    draws = random.Random(0)

    def drawn(probabilities, generator):
        return [draws.random() <= p for p in probabilities.tolist()]

    return replace(variant, selector=replace(variant.selector, draw=drawn))


def _sl_sam(hp, arrays, problem):
    variant = sam.sl_sam(hp["rho"], share=hp["s"])
    drawn = np.concatenate([arrays["MASK_USED_BITS"][:1], arrays["MASK_AFTER_BITS"]])
    masks = iter(np.unpackbits(drawn, axis=1)[:, : len(problem.flat())])

    def stored(probabilities, generator):
        return [bool(m.all()) for m in problem.unflatten(next(masks)).values()]

    return replace(variant, selector=replace(variant.selector, draw=stored))


def _sampa(hp, arrays, problem):
    return sam.sampa(hp["rho"], lmbda=hp["og"])


def _wsam(hp, arrays, problem):
    return sam.wsam(hp["rho"], gamma=hp["gamma"], decouple=hp["decouple"])


def _sgd(hp, arrays, problem):
    return sam.sgd()


BUILDERS = (
    ("sgd_baseline", _sgd),
    ("sam_davda", _sam()),
    ("sam_samsung", _sam(1e-16)),
    ("ssam_sam", _sam(1e-7)),
    ("asam_davda", _asam_davda),
    ("asam_samsung", _asam_samsung),
    ("asamall_", _asam_all),
    ("asamon_", _sam_on),
    ("samon_all", _sam(1e-16)),
    ("samon", _sam_on),
    ("fsam_", _fsam),
    ("ssamf", _ssam_f),
    ("ssamd_", _ssam_d),
    ("zsharp_off", _sam()),
    ("zsharp_", _zsharp),
    ("gsam", _gsam),
    ("po_gsam", _gsam),
    ("gcsam", _gcsam),
    ("po_sam_gc", _gcsam),
    ("po_sam", _sam()),
    ("po_wsam", _wsam),
    ("stable", _stable),
    ("esam", _esam),
    ("slsam", _sl_sam),
    ("sampa", _sampa),
)
