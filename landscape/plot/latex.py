"""Text for LaTeX: every character that means something there is written as what it is."""

import re
import unicodedata
from itertools import groupby

_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"{\char34}",
}  # fmt: skip
_MATHS = {
    "λ": r"\lambda", "ρ": r"\rho", "κ": r"\kappa", "τ": r"\tau", "θ": r"\theta", "σ": r"\sigma",
    "α": r"\alpha", "β": r"\beta", "γ": r"\gamma", "η": r"\eta", "μ": r"\mu", "δ": r"\delta",
    "ε": r"\varepsilon", "ω": r"\omega", "π": r"\pi", "φ": r"\varphi", "ξ": r"\xi", "ν": r"\nu",
    "Δ": r"\Delta", "Σ": r"\Sigma", "Λ": r"\Lambda", "Θ": r"\Theta", "Ω": r"\Omega", "ℓ": r"\ell",
    "∇": r"\nabla", "∂": r"\partial", "√": r"\surd", "½": r"\frac{1}{2}", "∞": r"\infty",
    "‖": r"\|", "×": r"\times", "·": r"\cdot", "−": "-", "±": r"\pm", "≤": r"\leq", "≥": r"\geq",
    "≠": r"\neq", "≈": r"\approx", "→": r"\to", "∈": r"\in", "χ": r"\chi", "∝": r"\propto",
    "⊙": r"\odot", "∘": r"\circ", "∪": r"\cup", "∩": r"\cap", "⊤": r"\top",
}  # fmt: skip
# Several in a row are one exponent or index: TeX refuses a second one.
_RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿᵀ", "0123456789-+nT", strict=True))
_LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉₋₊ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓ", "0123456789-+aehijklmnoprstuvx", strict=True))
_TEXT = {
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "’": "'",
    "“": "``",
    "”": "''",
    "\u00a0": "~",
    "\ufffd": "?",
}  # fmt: skip -- the last marks what cannot be seen


def escape(text: str) -> str:
    """The text as LaTeX that prints it: specials escaped, Greek and signs in math mode.

    A run of mathematical characters becomes one formula; a control character becomes a space, and
    what else cannot be seen, as a mark that turns the direction of the text, a question mark.
    """
    return "".join(
        f"${_formula(''.join(run))}$" if maths else "".join(map(_plain, run))
        for maths, run in groupby(text, key=_mathematical)
    )


def _mathematical(letter: str) -> bool:
    return letter in _MATHS or letter in _RAISED or letter in _LOWERED


def _plain(letter: str) -> str:
    kind = unicodedata.category(letter)
    unseen = " " if kind == "Cc" else "?" if kind[0] == "C" else letter
    return _SPECIAL.get(letter) or _TEXT.get(letter) or unseen


def typeset(text: str, *, maths: bool) -> str:
    """The text of a figure as LaTeX: what matplotlib would read as a formula stays one.

    maths: whether it has formulas, between dollars without a backslash; all else is printed.
    """
    parts = re.split(r"(?<!\\)\$", text) if maths else [text]
    return "".join(
        f"${part}$" if number % 2 else escape(part.replace(r"\$", "$") if maths else part)
        for number, part in enumerate(parts)
    )


def _formula(run: str) -> str:
    out = []
    for (raised, lowered), part in groupby(run, key=lambda c: (c in _RAISED, c in _LOWERED)):
        letters = list(part)
        if raised or lowered:
            known = _RAISED if raised else _LOWERED
            inner = "".join(known[letter] for letter in letters)
            one = inner if len(inner) == 1 else f"{{{inner}}}"
            out.append(("^" if raised else "_") + one)
        else:
            out += [_MATHS[letter] for letter in letters]  # none begins with a letter
    return "".join(out)
