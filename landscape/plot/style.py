"""The look that all figures share: colours, symbols, widths, fonts.

Colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), and of Paul Tol where a
second shade of one family is needed; each variant keeps its colour and symbol in every figure.
Symbols and small multiples carry the difference where colours alone would not (12 variants).
"""

from landscape.errors import LandscapeError

INK = "#222222"
MUTED = "#6b6b6b"
GRID = "#e4e4e4"

# recipe or variant id -> (colour, symbol)
VARIANTS: dict[str, tuple[str, str]] = {
    "sgd": ("#7a7a7a", "circle"),
    "sgd_early": ("#a8a8a8", "square"),
    "sam": ("#0072b2", "circle"),
    "asam": ("#56b4e9", "square"),
    "fsam": ("#009e73", "diamond"),
    "sam_on": ("#e69f00", "triangle"),
    "ssam_f": ("#aa4499", "circle"),
    "ssam_d": ("#cc79a7", "square"),
    "zsharp": ("#d55e00", "circle"),
    "zsharp_tensor": ("#882255", "triangle"),
    "lagnp": ("#8c6d1f", "diamond"),
    "random_mask": ("#222222", "x"),
    "topk_gradient": ("#117733", "cross"),
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

KINDS: dict[str, str] = {
    "conv": "#0072b2",
    "linear": "#d55e00",
    "norm": "#e69f00",
    "bias": "#cc79a7",
    "embedding": "#009e73",
    "other": "#7a7a7a",
}

# Names of recipes for masks of variants that a study did not train.
LABELS: dict[str, str] = {
    "sgd": "SGD",
    "sam": "SAM",
    "asam": "ASAM",
    "fsam": "F-SAM",
    "zsharp": "ZSharp",
    "topk_gradient": "Largest |g|",
    "ssam_f": "SSAM-F",
    "ssam_d": "SSAM-D",
    "sam_on": "SAM-ON",
    "random_mask": "Random mask",
    "lagnp": "LAGNP",
}

# Text widths of the venues in inches (their style files); "column" is one column of two.
WIDTHS: dict[str, float] = {
    "neurips": 5.5,
    "icml": 6.75,
    "icml-column": 3.25,
    "iclr": 5.5,
    "cvpr": 6.875,
    "cvpr-column": 3.25,
}

SEQUENTIAL = "cividis"
DIVERGING = "RdBu_r"

# DejaVu and STIX come with matplotlib: a bare machine draws the same figure.
RC: dict[str, object] = {
    "font.family": ["DejaVu Sans", "STIXGeneral"],
    "mathtext.fontset": "dejavusans",
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "xtick.labelsize": 6,
    "ytick.labelsize": 6,
    "legend.fontsize": 6,
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
}


def variant(name: str, position: int = 0) -> tuple[str, str]:
    """Colour and symbol of a variant: its own if it is a known recipe, else by position."""
    if name in VARIANTS:
        return VARIANTS[name]
    return _OTHERS[position % len(_OTHERS)]


def kind(name: str) -> str:
    """Colour of a kind of tensor."""
    return KINDS.get(name, KINDS["other"])


def inches(width: str | float) -> float:
    """Width of a figure: a venue's name or a number of inches."""
    if isinstance(width, int | float):
        if not 1 <= width <= 40:
            raise LandscapeError(f"width={width} inches; give 1 to 40, or one of {_names()}.")
        return float(width)
    if width not in WIDTHS:
        raise LandscapeError(f"Unknown width {width!r}; known: {_names()}, or a number of inches.")
    return WIDTHS[width]


def _names() -> str:
    return ", ".join(WIDTHS)
