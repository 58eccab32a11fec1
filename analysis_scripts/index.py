"""Write figures/README.md: each figure with its question, its script and its caption.

python analysis_scripts/index.py
"""

import ast
from pathlib import Path

FIGURES = Path(__file__).parents[1] / "figures"
HEADER = """# Figures

Made by the scripts in `analysis_scripts/` from the demo study (`make demo`) or from the study file
that the script names (`landscape run`). The data behind each figure lie in `data/`; without
`--study` a script redraws its figure from them in seconds.
`make figures` redraws all of them. Every figure is there as PNG and as PDF with embedded fonts.

| figure | what it asks and shows | script |
|---|---|---|
"""


def rows():
    """One row per script: thumbnail linked to the PDF, first line of the docstring, file name."""
    for script in sorted(Path(__file__).parent.glob("fig_*.py")):
        name = script.stem.removeprefix("fig_")
        words = ast.get_docstring(ast.parse(script.read_text())).replace("|", r"\|")
        text = words.split("\n\n")
        question, shows = text[0], text[-1].replace("\n", " ")
        thumbnail = f'<a href="{name}.pdf"><img src="{name}.png" width="260" alt="{name}"></a>'
        yield f"| {thumbnail} | **{question}** {shows} | `{script.name}` |"


if __name__ == "__main__":
    path = FIGURES / "README.md"
    path.write_text(HEADER + "\n".join(rows()) + "\n", encoding="utf-8")
    print(path)
