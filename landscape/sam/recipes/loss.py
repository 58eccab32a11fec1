"""Recipes that add a term to the loss instead of climbing."""

from landscape.checks import check_count, check_fraction, check_number
from landscape.sam import schedule
from landscape.sam.loss_terms import AveragedWeights, PastOutputs
from landscape.sam.recipes.declaration import names, recipe, row
from landscape.sam.variant import Variant


@recipe(
    "SAF",
    source="arXiv:2205.14083",
    equation="L + λ τ² KL(outputs E epochs ago ‖ outputs)",
    published="τ 5, E 2-3, λ 0.3",
    passes="1F 1B",
    memory="N(E + 1)C numbers",
    evidence="equation",
    disagreement=(
        "Code's own defaults are λ 0.16 and E 3, its README's λ 0.3 and E 2 (default). Read "
        "and not executed."
    ),
    look=("#332288", "cross"),
    options={"num_examples": 1000},
)
def saf(
    *,
    num_examples: int,
    weight: float = 0.3,
    tau: float = 5.0,
    delay: int = 2,
    start_epoch: int = 5,
    end_epoch: int = 300,
    indices: int | str = 2,
) -> Variant:
    """Loss L + weight tau² KL(past outputs/tau ‖ outputs/tau): SAF (arXiv:2205.14083).

    The past outputs of each training example are those `delay` epochs ago, for start_epoch < epoch
    < end_epoch. losses(batch) returns (losses, logits); `indices`: where the examples' numbers in
    0..num_examples-1 are in a batch.
    """
    check_count("num_examples", num_examples)
    check_count("delay", delay)
    check_number("weight", weight, least=0)
    check_number("tau", tau, least=0, beyond=True)
    term = PastOutputs(num_examples, weight, tau, delay, start_epoch, end_epoch, indices)
    needs = ("logits", "indices", "epochs")
    return row("saf", 0.0, gate=schedule.never, loss_term=term, needs=needs)


@recipe(
    "MESA",
    source="arXiv:2205.14083",
    equation="L + λ τ² KL(averaged weights' outputs ‖ outputs)",
    published="τ 5, decay 0.9998, λ 0.8",
    passes="2F 1B",
    memory="1",
    evidence="equation",
    disagreement="Code's own default is λ 0.3, its README's 0.8 (default). Read and not executed.",
    look=("#44aa99", "x"),
)
def mesa(
    *,
    weight: float = 0.8,
    tau: float = 5.0,
    decay: float = 0.9998,
    start_epoch: int = 5,
    end_epoch: int = 300,
) -> Variant:
    """Loss L + weight tau² KL(average's outputs/tau ‖ outputs/tau): MESA (arXiv:2205.14083).

    The averaged model is an exponential average of the weights (decay), run on the same batch with
    the model's own mode; running statistics are left alone. losses(batch) returns (losses, logits).
    start_epoch, end_epoch: the term is added from the first to before the second.
    """
    check_fraction("decay", decay)
    check_number("weight", weight, least=0)
    check_number("tau", tau, least=0, beyond=True)
    term = AveragedWeights(weight, tau, decay, start_epoch, end_epoch)
    return row("mesa", 0.0, gate=schedule.never, loss_term=term, needs=("logits", "epochs"))


__all__ = names(__name__)
