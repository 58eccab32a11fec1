"""Names in figures for TeX are printed: none is a command, however hostile."""

import shutil
import subprocess

import numpy as np
import pytest

from landscape.plot import latex, static
from landscape.plot.drawing import Axis, Drawing, Line, Panel

HOSTILE = (
    r"a_b%c#d&e\f{g}h$i^j~k", r"\input{/etc/passwd}", r"\end{document}", "}{", "$", r"\$", "x$y$z",
    "--", '<>|"', "λ₁ × ρ", "\ufffd", "a\u202eb", "x\x00y\x07z", "#1", "%",
)  # fmt: skip


def test_text_for_tex_is_printed_and_formulas_of_ours_stay():
    assert latex.typeset(r"50% of a_b", maths=False) == r"50\% of a\_b"
    assert latex.typeset(r"$\bf{a}$  \input{x} for 3\$", maths=True) == (
        r"$\bf{a}$  \textbackslash{}input\{x\} for 3\$"
    )
    assert latex.typeset(r"\$", maths=False) == r"\textbackslash{}\$"
    assert latex.typeset("a\u202eb\x07", maths=False) == "a?b "


@pytest.mark.thorough
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on this machine")
@pytest.mark.filterwarnings("ignore:Glyph")
def test_hostile_names_in_a_figure_for_tex_are_printed_as_they_are(tmp_path):
    """All of them in one figure, which TeX lays out, and which a document of the same TeX sets."""
    x = np.linspace(0, 1, 3)
    panels = tuple(
        Panel(marks=(Line(x, x, f"n {name}", "#123456"),), x=Axis(name), y=Axis("y", name),
              title=name)
        for name in HOSTILE
    )  # fmt: skip
    drawn = static.render(Drawing(name="d", title="t", caption="", panels=panels, columns=3))
    text = static.save(drawn, tmp_path / "a.pgf").read_text()
    assert r"\input{/etc" not in text
    assert r"\end{document}" not in text
    if subprocess.run(["kpsewhich", "pgf.sty"], capture_output=True).returncode:
        pytest.skip("TeX without pgf")
    (tmp_path / "b.tex").write_text(
        r"\documentclass{article}\usepackage{pgf}\usepackage{underscore}\def\mathdefault#1{#1}"
        r"\begin{document}\input{a.pgf}\end{document}"
    )
    tex = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "b"]
    found = subprocess.run(tex, cwd=tmp_path, capture_output=True, timeout=300)
    assert found.returncode == 0, found.stdout[-1500:]
