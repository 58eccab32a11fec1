"""The study files that come with the package."""

from importlib.resources import files


def demo_text(*, quick: bool = False) -> str:
    """Text of the study that `landscape demo` runs."""
    name = "demo_quick.toml" if quick else "demo.toml"
    return files("landscape.study").joinpath(name).read_text(encoding="utf-8")
