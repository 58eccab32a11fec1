"""Do the flatter solutions classify better, and by which measure of flatness?

    python analysis_scripts/fig_flatness.py [--study studies/demo] [--smoke]

Test accuracy against the leading Hessian eigenvalue, Gaussian sharpness and the training loss.
"""

import _figure

from landscape.plot import static

SETTING = "noisy"


def compute(generalization, eigenvalues, sharpness):
    """Outcome and three measures per run."""
    outcome = generalization[["test_accuracy", "train_loss"]]
    return [outcome, eigenvalues, sharpness]


def draw(generalization, eigenvalues, sharpness):
    """One panel per measure."""
    return static.flatness_vs_accuracy(generalization, eigenvalues, sharpness, setting=SETTING)


if __name__ == "__main__":
    _figure.main(__file__, ["generalization", "top_eigenvalues", "sharpness"], compute, draw)
