"""What no composition of slots may break, searched by hypothesis over all slots of the package."""

import math

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from landscape import sam
from landscape.errors import LandscapeError
from landscape.sam import (
    bandits,
    corrections,
    curvature,
    descents,
    directions,
    evaluate,
    finite,
    loss_terms,
    metrics,
    objectives,
    schedule,
    selectors,
    smoothed,
    sources,
    sparse,
)
from landscape.sam.geometry import Geometry
from tests.sam.test_invariants import Spy, resumed_equals_uninterrupted
from tests.sam_models import batch, cnn, losses_of, ready, same
from tests.sam_models import weights as weights_of

SOURCES = (
    sources.gradient,
    sources.Friendly(0.5, 0.7),
    sources.Friendly(1.0, 0.6, "paper", "zero"),
    sources.Centred(),
    sources.Stale(),
    directions.Averaged(0.4),
    directions.PerCoordinate(),
    directions.Noise(),
    curvature.TowardEigenvector(0.3, every=2, num_iterations=1),
    sources.Momentum(),
)
SELECTORS = (
    selectors.everything,
    selectors.ZScore(0.8),
    selectors.TopGradient(0.3, "dense"),
    selectors.Random(0.3),
    selectors.Random(0.2, scope="global", resample="epoch"),
    selectors.NormLayers(),
    selectors.NormLayers(complement=True),
    selectors.TopLayers(fraction=0.4, every=2, smoothing=0.5),
    selectors.Kinds(("conv", "linear")),
    selectors.Intersection((selectors.ZScore(0.5), selectors.TopGradient(0.5))),
    bandits.RandomTensors(0.5),
    bandits.Bandit(0.5),
    sparse.DynamicMask(0.5),
    sparse.FisherMask(0.5, 1, 4, "ones"),
    sparse.FisherMask(0.5, 1, 4, within=selectors.NormLayers()),
)
GEOMETRIES = (
    Geometry(),
    Geometry(scope="full"),
    Geometry(scope="tensor"),
    Geometry(scope="raw"),
    Geometry(scope="none"),
    Geometry(metric="elementwise", metric_on="weights", eta=0.01),
    Geometry(metric="layerwise"),
    Geometry(p=math.inf),
    Geometry(match="loss_increase"),
    Geometry(metric=metrics.DiagonalFisher(2.0)),
    metrics.Matched(0.01),
    metrics.SeveralSteps(2),
    smoothed.FromNoise(),
    smoothed.OverPrecision(),
)
RADII = (
    schedule.Constant(0.1),
    schedule.Cosine(0.2, 0.01),
    schedule.WithLearningRate(0.2, 0.05, 0.1),
    schedule.LossBudget(0.1, 0.5),
    schedule.LossBudget(0.1, 0.5, anneal=0.3),
    schedule.AdaGradNorm(0.1),
)
GATES = (
    schedule.always,
    schedule.Every(2),
    schedule.Window(1),
    schedule.Adaptive(0.8),
    schedule.never,
)
EVALUATES = (
    evaluate.SameBatch(),
    evaluate.SameBatch(partial=True),
    evaluate.SameBatch(partial=True, off="none"),
    evaluate.SameBatch(micro_batches=2),
    evaluate.LossRise(0.5),
    evaluate.AscentFraction(0.5),
    evaluate.Extrapolated(),
    evaluate.ClassWeighted((5, 4, 3, 2, 1)),
    smoothed.Smoothed(0.02),
    smoothed.Posterior(100, 2.0),
    objectives.Ascending(objectives.LowerBound()),
    objectives.Ascending(objectives.OutputBias()),
    objectives.Functional(),
)
CORRECTIONS = (
    corrections.Descent(),
    corrections.Blend(0.7),
    corrections.Blend(0.7, unit_g1=True),
    corrections.SurrogateGap(0.3),
    corrections.Stable(),
    corrections.Stable(weighted=True),
    corrections.Weighted(0.8),
    corrections.Weighted(0.8, decouple=False, max_norm=0.1),
    corrections.Reuse(0.5, "tensor"),
    corrections.CentredDescent(),
    corrections.AddClean(),
    descents.AdaGradDescent(),
    descents.AdaGradDescent(per_coordinate=True),
    descents.Enhanced(0.5, 0.2, every=2),
    descents.Polyak(),
    descents.NormalizedTrace(),
    descents.TowardMaximum(step=1.0),
    descents.LookBehind(2),
    smoothed.Tilted(2, sigma=0.02),
    smoothed.PosteriorDescent(decay=0.01),
    curvature.HessianDescent(every=2),
)
TERMS = (
    None,
    None,
    loss_terms.PastOutputs(16, start_epoch=-1, delay=1),
    loss_terms.AveragedWeights(start_epoch=-1, decay=0.5),
)


def compose(slots):
    """The variant of eight slots, where they go together; `slot` says why others do not."""
    *others, term = slots
    outputs = isinstance(others[5], objectives.Ascending | objectives.Functional)
    needs = frozenset({"logits"} if term or outputs else ())
    try:
        return sam.Variant("composed", *others, loss_term=term, needs=needs)
    except LandscapeError:
        assume(False)


ALL = (SOURCES, SELECTORS, GEOMETRIES, RADII, GATES, EVALUATES, CORRECTIONS, TERMS)
compositions = st.tuples(*map(st.sampled_from, ALL)).map(compose)
lenient = [HealthCheck.too_slow, HealthCheck.filter_too_much]
fast = settings(max_examples=40, deadline=None, suppress_health_check=lenient)


def step(optimizer, b):
    logits = "logits" in optimizer.variant.needs
    return optimizer.step(losses_of(optimizer.model, with_logits=logits), b)


@given(variant=compositions)
@fast
def test_any_composition_restores_the_weights_exactly_before_the_base_step(variant):
    model = cnn()
    base = Spy(model.parameters(), lr=0.05, momentum=0.9)
    optimizer = ready(model, variant, base)
    for t in range(3):
        before = weights_of(model)
        optimizer.begin_epoch(t, 3)
        step(optimizer, batch(t))
        assert same(before, base.seen)
        assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@given(variant=compositions, failing_call=st.integers(1, 4))
@settings(fast, max_examples=25)
def test_any_composition_restores_the_weights_whatever_is_raised(error, variant, failing_call):
    model = cnn()
    optimizer = ready(model, variant)
    step(optimizer, batch())
    before, calls = weights_of(model), []
    inner = losses_of(model, with_logits="logits" in variant.needs)

    def losses(b):
        calls.append(1)
        if len(calls) == failing_call:
            raise error("inside")
        return inner(b)

    if len(calls) < failing_call:
        try:
            optimizer.step(losses, batch(1))
        except error:
            assert same(before, weights_of(model))
            assert all(p.requires_grad for p in model.parameters())
    step(optimizer, batch(1))


@pytest.mark.parametrize("small", [0, finite.SMALL])
@given(variant=compositions)
@settings(fast, max_examples=25)
def test_any_composition_steps_alike_whether_or_not_its_perturbation_is_kept(small, variant):
    """Without it u and w + e may be written where g1 was; the trajectory does not notice.

    small=0: tensors are treated as large ones, a pass over memory each.
    """
    ends = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finite, "SMALL", small)
        for keep in (True, False):
            model = cnn()
            optimizer = ready(model, variant, keep_perturbation=keep)
            state = torch.get_rng_state()
            for t in range(3):
                optimizer.begin_epoch(t, 3)
                step(optimizer, batch(t))
            assert torch.equal(state, torch.get_rng_state())
            ends.append([*model.state_dict().values()])
    assert same(*ends)


@given(variant=compositions, policy=st.sampled_from(("first", "second", "both")))
@fast
def test_any_composition_updates_running_statistics_in_the_passes_that_the_policy_names(
    variant, policy
):
    model = cnn()
    optimizer = ready(model, variant, bn=policy)
    optimizer.begin_epoch(1, 3)
    step(optimizer, batch())
    parts = getattr(variant.evaluate, "micro_batches", 1)
    first, climbed = variant.source.first_pass, optimizer.perturbation.climbed
    passes = 2 if policy == "both" and first and climbed else 1
    forwards = 1  # ESAM looks at the losses at w + e first, in the second pass
    if isinstance(variant.evaluate, evaluate.LossRise) and climbed and policy != "first":
        forwards = 2
    counted = int(model[1].num_batches_tracked)
    assert counted in (passes * parts, passes * parts + forwards - 1)
    assert [m.momentum for m in model if isinstance(m, nn.BatchNorm2d)] == [0.1, None]
    elsewhere = (evaluate.AscentFraction, smoothed.Smoothed, smoothed.Posterior)
    partly = isinstance(variant.evaluate, elsewhere) and climbed
    if policy == "first" and first and parts == 1 and not partly:
        plain = cnn()
        plain(batch()[0])
        assert same(model.buffers(), plain.buffers())


class Dropout(nn.Module):
    """Notes what it dropped."""

    def __init__(self):
        super().__init__()
        self.masks = []

    def forward(self, x):
        if not self.training:
            return x
        self.masks.append(torch.rand(x.shape) < 0.5)
        return x * self.masks[-1]


@given(variant=compositions)
@fast
def test_any_composition_shows_both_passes_the_same_randomness_when_asked(variant):
    """Each step draws once: the second pass draws the same again, the next step does not."""
    whole = isinstance(variant.evaluate, evaluate.SameBatch) and variant.evaluate.micro_batches == 1
    assume(whole and variant.loss_term is None)
    dropout = Dropout()
    model = nn.Sequential(cnn()[:-1], dropout, cnn()[-1])
    optimizer = ready(model, variant, same_rng_both_passes=True)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        for _ in range(3):
            step(optimizer, batch())
        after = torch.get_rng_state()
        torch.manual_seed(5)
        drawn = [torch.rand(16, 54) < 0.5 for _ in range(3)]
        assert torch.equal(after, torch.get_rng_state())
    expected = iter(drawn)
    now = next(expected)
    for mask in dropout.masks:
        now = now if torch.equal(mask, now) else next(expected)
        assert torch.equal(mask, now)
    assert next(expected, None) is None


@given(variant=compositions)
@settings(fast, max_examples=25)
def test_any_composition_resumes_bit_for_bit(variant):
    resumed_equals_uninterrupted(variant)
