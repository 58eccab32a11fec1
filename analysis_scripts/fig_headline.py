"""Which variants classify the clean test images better when a fifth of the labels is wrong?

    python analysis_scripts/fig_headline.py [--study studies/demo] [--smoke]

Each seed, the mean with its 95 % t-interval over seeds, and paired differences to SGD and SAM.
"""

import _figure

from landscape.plot import static

SETTING = "noisy"
REFERENCES = ("sgd", "sam")


def compute(generalization):
    """Test accuracy per run."""
    return [generalization[["test_accuracy"]]]


def draw(generalization):
    """Accuracies, and paired differences beside them."""
    return static.headline(generalization, setting=SETTING, references=REFERENCES)


if __name__ == "__main__":
    _figure.main(__file__, ["generalization"], compute, draw)
