"""A gradient in other units than the loss returned is refused at the first climb, nothing else."""

import pytest
import torch
from torch import nn

from landscape import sam
from landscape.errors import LandscapeError
from tests.sam_models import batch, closure_of, cnn, losses_of, same, sgd, variants, weights

BY_CLOSURE = [
    name for name, v in variants().items() if not v.needs and name not in ("sgd", "flat_lora")
]  # fmt: skip


def scaled_by(factor, model, b):
    """Differentiates a multiple of the loss that it returns."""

    def closure():
        loss = nn.functional.cross_entropy(model(b[0]), b[1])
        (factor(loss) if callable(factor) else factor * loss).backward()
        return loss

    return closure


def scaler_of(scale=2.0**16):
    return torch.amp.GradScaler("cpu", init_scale=scale)


def with_dropout():
    torch.manual_seed(0)
    return nn.Sequential(nn.Dropout(0.3), cnn())


@pytest.mark.parametrize("made", [cnn, lambda: cnn().float(), with_dropout])
@pytest.mark.parametrize("scale", [2.0**16, 1024.0])
def test_a_scaler_that_sam_was_not_told_of_is_refused_and_the_line_works(made, scale):
    model, scaler = made(), scaler_of(scale)
    x, y, _ = batch()
    b = (x.to(next(model.parameters()).dtype), y)
    before = weights(model)
    optimizer = sam.SAM(model, sgd(model), sam.sam(0.1))
    message = rf"gradient is about {scale:.0f} times .*SAM\(\.\.\., scaler=scaler\)"
    with pytest.raises(LandscapeError, match=message):
        optimizer.step(scaled_by(scaler.scale, model, b))
    assert same(before, weights(model))
    told = sam.SAM(model, sgd(model), sam.sam(0.1), scaler=scaler)
    told.step(scaled_by(scaler.scale, model, b))
    assert told.guard.said.startswith("climb 1 was seen")


@pytest.mark.parametrize("rho", [1e-4, 0.05, 1.0])
def test_a_factor_before_backward_is_refused_by_its_size(rho):
    """c lies between the slopes over the rise of the loss, whatever the radius."""
    model = cnn()
    optimizer = sam.SAM(model, sgd(model), sam.sam(rho))
    with pytest.raises(LandscapeError, match=r"about 10\d\d times .*return the loss that was"):
        optimizer.step(scaled_by(1000.0, model, batch()))


def test_autocast_hides_no_scaler():
    model, scaler = cnn().float(), scaler_of()
    x, y, _ = batch()

    def closure():
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x.float()), y)
        scaler.scale(loss).backward()
        return loss

    optimizer = sam.SAM(model, sgd(model), sam.sam(0.1))
    with pytest.raises(LandscapeError, match=r"SAM\(\.\.\., scaler=scaler\)"):
        optimizer.step(closure)


@pytest.mark.parametrize("form", ["step", "backward"])
def test_a_scaler_that_the_closure_leaves_out_is_refused(form):
    model = cnn()
    optimizer = sam.SAM(model, sgd(model), sam.sam(0.1), scaler=scaler_of())
    with pytest.raises(LandscapeError, match=r"scale 65536.*scaler\.scale\(loss\)\.backward"):
        getattr(optimizer, form)(closure_of(model, batch()))


def test_a_gradient_that_others_will_unscale_is_theirs():
    """`backward`, then the scaler's own step: plain SAM is right in any units."""
    ours, plain, scaler = cnn(), cnn(), scaler_of()
    a, b = sam.SAM(ours, sgd(ours), sam.sam(0.1)), sam.SAM(plain, sgd(plain), sam.sam(0.1))
    a.backward(scaled_by(scaler.scale, ours, batch()))
    scaler.step(a)
    b.step(closure_of(plain, batch()))
    for p, q in zip(ours.parameters(), plain.parameters()):
        assert torch.allclose(p, q, rtol=1e-10, atol=1e-12)


def test_a_gradient_that_nobody_has_unscaled_is_not_stepped_with():
    model, scaler = cnn(), scaler_of()
    optimizer = sam.SAM(model, sgd(model), sam.sam(0.1))
    before = weights(model)
    for t in range(2):  # adding up
        optimizer.backward(scaled_by(scaler.scale, model, batch(t)))
    with pytest.raises(LandscapeError, match=r"about 65536 times .*SAM\(\.\.\., scaler=scaler\)"):
        optimizer.step()
    assert same(before, weights(model))


@pytest.mark.parametrize("factor", [1 / 256, 1 / 8, 8])
def test_a_mean_told_in_other_units_is_no_error(factor):
    """(loss / accumulation).backward(), and sums over few parts."""
    model = cnn()
    optimizer = sam.SAM(model, sgd(model), sam.sam(0.1))
    optimizer.step(scaled_by(factor, model, batch()))


@pytest.mark.parametrize("name", BY_CLOSURE)
def test_no_recipe_is_refused_by_mistake(name):
    torch.manual_seed(0)
    for model in (cnn(), with_dropout()):
        optimizer = sam.SAM(model, sgd(model), variants()[name])
        optimizer.begin_epoch(0, total_epochs=4)
        for t in range(9):
            optimizer.step(closure_of(model, batch(t)))


@pytest.mark.parametrize("rho", [0.5, 5.0, 50.0, 500.0])
def test_a_large_radius_and_kinks_are_not_judged_by_a_line(rho):
    for seed in range(5):
        model = cnn(seed)
        optimizer = sam.SAM(model, sgd(model), sam.sam(rho))
        optimizer.step(closure_of(model, batch(seed)))


@pytest.mark.parametrize("noise", ["another loss", "a constant", "bfloat16"])
def test_a_number_that_is_no_multiple_of_the_loss_is_not_judged(noise):
    """What a closure returns beside the gradient may be the last part's loss, or anything."""
    refused = 0
    for seed in range(10):
        model = cnn(seed).float()
        x, y, _ = batch(seed, size=64)
        x = x.float()
        calls = []

        def closure(model=model, x=x, y=y, calls=calls):
            calls.append(0)
            with torch.autocast("cpu", torch.bfloat16, enabled=noise == "bfloat16"):
                losses = nn.functional.cross_entropy(model(x).float(), y, reduction="none")
            losses.mean().backward()
            if noise == "another loss":
                return losses[-2:].mean()
            return torch.tensor(2.0) if noise == "a constant" else losses.mean()

        optimizer = sam.SAM(model, sgd(model), sam.sam(0.002 if noise == "bfloat16" else 0.05))
        try:
            optimizer.step(closure)
        except LandscapeError:
            refused += 1
    assert refused == 0


def test_losses_of_a_batch_are_scaled_here_and_need_no_look():
    model, calls = cnn(), []

    def losses(b):
        calls.append(0)
        return losses_of(model)(b)

    sam.SAM(model, sgd(model), sam.sam(0.1), scaler=scaler_of()).step(losses, batch())
    assert len(calls) == 2


@pytest.mark.parametrize("warm", [False, True])
def test_a_scaler_that_is_given_the_closure_is_refused_and_the_lines_work(warm):
    model, scaler = cnn(), scaler_of(1024.0)
    optimizer = sam.SAM(model, sgd(model), sam.sam(0.1), scaler=scaler)
    closure = scaled_by(scaler.scale, model, batch())
    if warm:
        optimizer.step(closure)
        scaler.update()
        optimizer.zero_grad()
    with pytest.raises(LandscapeError, match=r"runs no closure.*optimizer\.step\(closure\)"):
        scaler.step(optimizer, closure)
    optimizer.step(closure)
    scaler.update()
    optimizer.zero_grad()
    optimizer.backward(closure)
    scaler.step(optimizer)
    scaler.update()
    assert optimizer.step_count == 2 + warm
