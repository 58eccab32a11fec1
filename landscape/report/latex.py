"""Text for LaTeX: every character that means something there is written as what it is."""

_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
}  # fmt: skip
_MATHS = {
    "λ": r"\lambda", "ρ": r"\rho", "κ": r"\kappa", "τ": r"\tau", "θ": r"\theta", "σ": r"\sigma",
    "α": r"\alpha", "β": r"\beta", "γ": r"\gamma", "η": r"\eta", "μ": r"\mu", "δ": r"\delta",
    "ε": r"\varepsilon", "∇": r"\nabla", "Σ": r"\Sigma", "∂": r"\partial", "√": r"\surd",
    "₀": "_0", "₁": "_1", "₂": "_2", "₃": "_3", "₄": "_4", "₅": "_5", "ₙ": "_n",
    "⁻": "^{-}", "¹": "^1", "²": "^2", "³": "^3", "½": r"\frac{1}{2}", "∞": r"\infty",
    "‖": r"\|", "×": r"\times", "·": r"\cdot", "−": "-", "±": r"\pm", "≤": r"\leq", "≥": r"\geq",
    "≠": r"\neq", "≈": r"\approx", "→": r"\to", "∈": r"\in", "χ": r"\chi", "∝": r"\propto",
}  # fmt: skip
_TEXT = {"–": "--", "—": "---", "…": r"\ldots{}", "’": "'", "“": "``", "”": "''", "\u00a0": "~"}


def escape(text: str) -> str:
    """The text as LaTeX that prints it: specials escaped, Greek and signs in math mode.

    A run of mathematical characters becomes one formula; a control character becomes a space.
    """
    out: list[str] = []
    formula = ""
    for letter in text:
        if letter in _MATHS:
            formula += _MATHS[letter]  # each begins with what is no letter, so none runs together
            continue
        if formula:
            out.append(f"${formula}$")
            formula = ""
        out.append(_SPECIAL.get(letter) or _TEXT.get(letter) or (letter if letter >= " " else " "))
    return "".join([*out, f"${formula}$"] if formula else out)
