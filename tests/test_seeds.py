"""Streams of different purposes are unrelated; one stream for all was a mask of initial weights."""

import numpy as np
import torch

from landscape import problems, sam, seeds


def test_a_stream_is_a_function_of_seed_and_purpose():
    def draw(seed, purpose):
        return torch.rand(8, generator=seeds.generator(seed, purpose=purpose))

    assert torch.equal(draw(0, "a"), draw(0, "a"))
    assert not torch.equal(draw(0, "a"), draw(0, "b"))
    assert not torch.equal(draw(0, "a"), draw(1, "a"))
    assert not torch.equal(draw(0, "a"), torch.rand(8, generator=torch.Generator().manual_seed(0)))
    assert draw(-1, "a").shape == (8,)


def test_random_masks_do_not_know_the_initial_weights_of_the_same_seed():
    """Of one uniform stream a mask would be the extreme initial weights of the first tensor.

    |z| of the selected weights has mean 0.87 under their uniform law and would be 1.6; the standard
    error over 40 seeds x 7 weights is 0.03, and 6 of them are allowed.
    """
    x, y = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(8)
    extreme = []
    for seed in range(40):
        model = problems.make_model("cnn", num_classes=10, input_shape=(1, 8, 8), seed=seed)

        def losses(batch, model=model):
            return torch.nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

        found = sam.perturb(sam.random_mask(0.1, density=0.05), model, losses, (x, y), seed=seed)
        name, parameter = next(iter(model.named_parameters()))
        weight = parameter.detach().double()
        extreme.append(float((weight[found.mask[name]].abs() / weight.std()).mean()))
    assert abs(np.mean(extreme) - 0.87) < 0.18
