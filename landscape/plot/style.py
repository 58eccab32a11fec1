"""The look that all figures share: colours, symbols, widths, fonts.

Colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), and of Paul Tol where a
second shade of one family is needed; each variant keeps its colour and symbol in every figure.
Symbols and small multiples carry the difference where colours alone would not.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.errors import LandscapeError

__all__ = [
    "DIVERGING",
    "GRID",
    "INK",
    "KINDS",
    "LABELS",
    "MUTED",
    "PALE",
    "RC",
    "RECIPES",
    "SEQUENTIAL",
    "VARIANTS",
    "VENUES",
    "Venue",
    "kind",
    "rc",
    "variant",
    "venue",
]

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

INK = "#222222"
MUTED = "#6b6b6b"
GRID = "#e4e4e4"
PALE = "#c9c9c9"  # variants behind the highlighted ones

# Label, look, source and equation of each recipe, written by `python -m landscape.sam --write` from
# the declarations, which need torch.
RECIPES: dict[str, dict[str, str]] = json.loads(
    Path(__file__).with_name("recipes.json").read_text(encoding="utf-8")
)
# recipe or variant id -> (colour, symbol)
VARIANTS: dict[str, tuple[str, str]] = {
    **{name: (look["colour"], look["symbol"]) for name, look in RECIPES.items()},
    "sgd_early": ("#a8a8a8", "triangle"),
    "zsharp_tensor": ("#882255", "triangle"),
}
_OTHERS = (
    ("#332288", "diamond"),
    ("#44aa99", "triangle"),
    ("#999933", "square"),
    ("#cc6677", "cross"),
    ("#3b528b", "x"),
    ("#6699cc", "triangle"),
    ("#b8860b", "x"),
    ("#aa3377", "diamond"),
    ("#225555", "square"),
    ("#661100", "triangle"),
    ("#888800", "cross"),
    ("#4477aa", "diamond"),
)

# Kinds of tensors have no colour of the demo's variants (CIELAB distances of 9 and more).
KINDS: dict[str, str] = {
    "conv": "#2b4162",
    "linear": "#7a3b1d",
    "norm": "#5fae8f",
    "bias": "#f9c0cb",
    "embedding": "#8d7bd0",
    "other": "#b9b39f",
}

# Names of recipes for masks of variants that a study did not train.
LABELS: dict[str, str] = {name: look["label"] for name, look in RECIPES.items()}


@dataclass(frozen=True)
class Venue:
    """Room for a figure: width and height of the text block in inches, size of labels in points.

    `small` is the size of tick labels, legends and notes: never below 7 points.

    Example:
        >>> plot.style.VENUES["icml-column"].width
        3.25
    """

    width: float
    height: float
    text: float = 8.0
    small: float = 7.0


# From the style files of the venues; "column" is one column of two.
VENUES: dict[str, Venue] = {
    "neurips": Venue(5.5, 9.0),
    "icml": Venue(6.75, 9.0),
    "icml-column": Venue(3.25, 9.0),
    "iclr": Venue(5.5, 9.0),
    "cvpr": Venue(6.875, 8.875),
    "cvpr-column": Venue(3.25, 8.875),
    "thesis": Venue(6.0, 8.5, text=9.0, small=8.0),
}

SEQUENTIAL = "viridis"
DIVERGING = "RdBu_r"

# DejaVu and STIX come with matplotlib: a bare machine draws the same figure.
RC: "dict[RcKeyType, Any]" = {
    "font.family": ["DejaVu Sans", "STIXGeneral"],
    "mathtext.fontset": "dejavusans",
    "axes.linewidth": 0.6,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlelocation": "left",
    "axes.titlepad": 3,
    "axes.labelpad": 2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2,
    "ytick.major.size": 2,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "legend.columnspacing": 1.0,
    "legend.handletextpad": 0.5,
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "landscape",  # the same data give the same bytes
}


def rc(venue: Venue) -> "dict[RcKeyType, Any]":
    """Settings of matplotlib at a venue: the common look with its sizes of text.

    Example:
        >>> plot.style.rc(plot.style.venue("neurips"))["font.size"]
        8.0
    """
    return RC | {
        "font.size": venue.text,
        "axes.titlesize": venue.text,
        "axes.labelsize": venue.text,
        "xtick.labelsize": venue.small,
        "ytick.labelsize": venue.small,
        "legend.fontsize": venue.small,
    }


def variant(name: str, position: int = 0) -> tuple[str, str]:
    """Colour and symbol of a variant: its own if it is a known recipe, else by position.

    name: the id of a variant. position: its place in the study, for those that are no recipe.

    Example:
        >>> plot.style.variant("sam") == plot.style.variant("sam", position=3)
        True
    """
    if name in VARIANTS:
        return VARIANTS[name]
    return _OTHERS[position % len(_OTHERS)]


def kind(name: str) -> str:
    """Colour of a kind of tensor.

    name: one of `params.KINDS`.

    Example:
        >>> plot.style.kind("conv") != plot.style.kind("norm")
        True
    """
    return KINDS.get(name, KINDS["other"])


def venue(width: str | float) -> Venue:
    """The room that `width` means: a venue's name, or a number of inches with the usual text.

    Example:
        >>> plot.style.venue("neurips").width, plot.style.venue(4).width
        (5.5, 4.0)
    """
    if isinstance(width, int | float):
        if not 1 <= width <= 40:
            raise LandscapeError(f"width={width} inches; give 1 to 40, or one of {_names()}.")
        return Venue(float(width), 9.0)
    if width not in VENUES:
        raise LandscapeError(f"Unknown width {width!r}; known: {_names()}, or a number of inches.")
    return VENUES[width]


def _names() -> str:
    return ", ".join(VENUES)
