"""Label noise: which labels are replaced, and by what."""

import numpy as np

from landscape.errors import LandscapeError

NOISE_KINDS = ("symmetric", "asymmetric")
# The pairs of similar classes usual for CIFAR-10 (arXiv:1609.03683 §5): truck → automobile,
# bird → airplane, cat ↔ dog, deer → horse.
CIFAR10_PAIRS = {9: 1, 2: 0, 3: 5, 5: 3, 4: 7}


def flip_labels(
    labels: np.ndarray,
    rate: float,
    *,
    num_classes: int,
    kind: str = "symmetric",
    generator: np.random.Generator,
    pairs: dict[int, int] | None = None,
) -> np.ndarray:
    """Labels (n,) of which exactly round(rate * m) are replaced by a different class.

    symmetric: m = n, the new class is uniform over the num_classes - 1 others. asymmetric: class c
    becomes pairs[c], by default (c + 1) mod num_classes, and m counts the examples of classes that
    are in `pairs`. Which labels are replaced is drawn without replacement.
    kind: "symmetric" or "asymmetric". generator: a `numpy.random.Generator`.

    Example:
        >>> labels = np.arange(10) % 2
        >>> rng = np.random.default_rng(0)
        >>> noisy = problems.flip_labels(labels, 0.3, num_classes=2, generator=rng)
        >>> int((noisy != labels).sum())
        3
    """
    if kind not in NOISE_KINDS:
        raise LandscapeError(
            f"noise_kind={kind!r} is unknown; choose one of {', '.join(map(repr, NOISE_KINDS))}."
        )
    if not 0 <= rate <= 1:
        raise LandscapeError(
            f"label_noise={rate} was asked; it is the share of wrong labels, in [0, 1]."
        )
    labels = np.asarray(labels)
    noisy = labels.copy()
    if kind == "symmetric":
        chosen = generator.choice(len(labels), size=round(rate * len(labels)), replace=False)
        shift = generator.integers(1, num_classes, size=len(chosen))
        noisy[chosen] = (labels[chosen] + shift) % num_classes
        return noisy
    target = np.roll(np.arange(num_classes), -1)
    if pairs is not None:
        target = np.arange(num_classes)
        target[list(pairs)] = list(pairs.values())
    candidates = np.flatnonzero(target[labels] != labels)
    chosen = generator.choice(candidates, size=round(rate * len(candidates)), replace=False)
    noisy[chosen] = target[labels[chosen]]
    return noisy
