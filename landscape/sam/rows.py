"""The rows of the SAM family as documentation: what each is, what it costs, how it is known.

`python -m landscape.sam` prints the table; `landscape/sam/VARIANTS.md` is its output.
"""

import dataclasses
import inspect
import itertools
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

from landscape.sam.optimizer import SAM
from landscape.sam.variant import Variant

EVIDENCE = {
    "parity": "the published optimizer's trajectory is reproduced step by step",
    "equation": "closed forms and reductions only; the source was not executed",
    "our reading": "the source is silent on a choice; every such choice is an option",
    "control": "not a published method: what others are compared with",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One variant's documentation.

    passes: forward and backward passes per step (F, B); memory: extra copies of the P weights;
    disagreement: paper against released code, and which is the default here; options: those that
    the recipe requires, to make an example of it.
    """

    title: str
    source: str
    equation: str
    published: str
    passes: str
    memory: str
    evidence: str
    disagreement: str = ""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


ROWS: dict[str, Row] = {
    "sgd": Row("Base optimizer", "", "gd = g1", "", "1F 1B", "0", "parity"),
    "sam": Row(
        "SAM", "arXiv:2010.01412", "e = ρ g1/‖g1‖; gd = g2",
        "ρ 0.05 (CIFAR-10), 0.1-0.2 (CIFAR-100)", "2F 2B", "1", "parity",
        "The paper's JAX code has weight decay inside the loss, so e contains it; default: in the "
        "base optimizer alone, as in every PyTorch code.",
    ),
    "asam": Row(
        "ASAM", "arXiv:2102.11600", "e = ρ T² g1/‖T g1‖, T = |w| + η; gd = g2",
        "ρ 0.5 (CIFAR-10), 1.0 (CIFAR-100), η 0.01 (class) or 0 (script)", "2F 2B", "1", "parity",
        "Authors: T = 1 for biases (default). A widely used reimplementation: T = |w| everywhere "
        "(bias_metric=\"abs\", ρ 2.0). Not interchangeable at equal ρ.",
    ),
    "fsam": Row(
        "F-SAM", "arXiv:2403.12350", "u = g1 - σ M, e = ρ u/‖u‖; M = λ M + (1 - λ) g1; gd = g2",
        "ρ 0.1-0.2, σ 1, λ 0.6-0.95", "2F 2B", "2", "parity",
        "Code: M is used before it takes in g1 and starts at the first gradient (default); paper: "
        "after (ema_order), from 0 (ema_init). The order matters only for σ ≠ 1. A third-party "
        "collection feeds the average with u instead of g1: not reproduced.",
    ),
    "ssam_f": Row(
        "SSAM-F", "arXiv:2210.05177", "e = m ρ g1/‖g1‖, m: largest Fisher entries; gd = g2",
        "CIFAR-10: ρ 0.1, sparsity 0.5, 16 samples, every epoch", "2F 2B + Fisher", "2", "parity",
        "Code: train mode and a first sample that still holds the last batch's gradient "
        "(official_quirks=True, the form in parity); default: a clean Fisher in eval mode. The "
        "first mask is empty as in the code (mask_init). Its README's ρ 0.7 for ImageNet looks "
        "like a slip of 0.07.",
    ),
    "ssam_d": Row(
        "SSAM-D", "arXiv:2210.05177", "e = m ρ g1/‖g1‖, m: drop weakest, grow others; gd = g2",
        "ρ 0.1, sparsity 0.5, drop rate 0.5", "2F 2B", "2", "parity",
        "Code: the live share shrinks when (1 - s) r > s (official_quirks=True, the form in "
        "parity); default: constant.",
    ),
    "sam_on": Row(
        "SAM-ON", "arXiv:2306.04226", "e = ρ T² g1/‖T g1‖ on norm layers alone; gd = g2",
        "WRN-28-10: elementwise, ρ 10", "2F 2B, the first partial", "norm layers", "parity",
        "Code selects by \"norm\" or \"bn\" in the name (match=\"name\"); default: by module type. "
        "Layer-wise T: ‖w‖(1 + η) in the code (default), ‖w‖ + η in the paper. The code's script "
        "without flags takes T = w with its sign, which for p = 2 is |w| and for p = ∞ is not "
        "offered here.",
    ),
    "zsharp": Row(
        "ZSharp", "arXiv:2505.02369", "e = ρ f/‖f‖, f = g1·1[|z| > Q(|z|)] per tensor; gd = g2",
        "ρ 0.05, percentile 0.95, Adam", "2F 2B", "1", "parity",
        "Paper, as read: one norm, ‖e‖ = ρ (default). Code: a norm per tensor, ‖e‖ = ρ√(K + s1) "
        "(norm_scope=\"tensor\", the form in parity). Standard deviation and eps cannot matter.",
    ),
    "lagnp": Row(
        "LAGNP", "arXiv:2503.14205", "on the layers of largest ‖g1‖: gd = (1 - α) g1 + α g2",
        "not stated where we could read", "2F 1B + partial B",
        "selected layers", "our reading",
        "No code was found. Number of layers, interval, averaging and α, ρ (GNP's) are options.",
    ),
    "gnp": Row(
        "GNP", "arXiv:2202.03599", "gd = (1 - α) g1 + α g2", "α 0.8, ρ 0.1 (CIFAR)",
        "2F 2B", "2", "equation",
        "Code by default blends g1/‖g1‖ (unit_g1=True); default: the paper's g1.",
    ),
    "gsam": Row(
        "GSAM", "arXiv:2203.08065", "gd = g2 - α (g1 orthogonal to g2); ρ tied to lr",
        "α 0.4", "2F 2B", "2", "parity",
        "Code uses rho_min in its very first step because of its schedulers; default: not. In "
        "parity: the authors' PyTorch port; their JAX code was not executed.",
    ),
    "gcsam": Row(
        "GCSAM", "arXiv:2501.11584", "u = g1 centred per output unit, e = ρ u/‖g1‖; gd = g2",
        "ρ 0.05, Adam", "2F 2B", "1", "parity",
        "Code divides by the uncentred norm and leaves g2 (default); paper, as read: centred norm "
        "(norm_of) and centred g2 (centre_descent).",
    ),
    "stable_sam": Row(
        "Stable SAM", "arXiv:2401.07250", "gd = g2 ‖g1‖/‖g2‖", "ρ 0.05", "2F 2B", "1", "parity",
        "The code's example does not normalize e (normalized=False); default: it is. Its adaptive "
        "form (adaptive=True) takes the second norm at w + e; both are in parity.",
    ),
    "esam": Row(
        "ESAM", "arXiv:2110.03141",
        "e = ρ g1/(β ‖g1‖) on random tensors; gd = gradient of the examples whose loss rose most",
        "β 0.6, γ 0.5, ρ 0.05", "(2 + γ)F, partial B + γB", "1", "parity",
        "Paper: random weights, γB examples; code (default): random tensors, one example fewer "
        "(strict).",
    ),
    "looksam": Row(
        "LookSAM", "arXiv:2203.02714", "every k steps SAM; between: gd = g1 + α ‖g1‖/‖gv‖ gv",
        "k 5-10, α 0.7, ρ 0.1", "(1 + 1/k)F, (1 + 1/k)B", "2", "equation",
        "A third-party implementation projects per tensor and doubles g1 between; not reproduced. "
        "Default: global (scope).",
    ),
    "sampa": Row(
        "SAMPa", "arXiv:2410.10683",
        "e = ρ h/‖h‖; gd = (1 - λ) ∇L_{t-1}(x + e) + λ h', h' = ∇L_t(x - lr h)",
        "ρ 0.1, λ 0.2", "2F 2B, parallel in principle", "3", "parity",
        "Code adds momentum and weight decay to the look-ahead (default) and never perturbs at "
        "λ = 0; here h is carried, as in the paper.",
    ),
    "async_sam": Row(
        "Async-SAM", "arXiv:2503.11147", "e = ρ g_{t-1}/‖g_{t-1}‖; gd = g2", "not stated",
        "2F 2B, parallel in principle", "2", "equation",
        "No code was released; e_0 = 0 assumed. Of the two copies one belongs to each device where "
        "the passes run in parallel.",
    ),
    "msam": Row(
        "MSAM", "arXiv:2401.12033", "e = -ρ v/‖v‖, v the momentum; gd = g2", "ρ 0.3, momentum 0.9",
        "1F 1B", "1", "equation",
        "Code takes weight decay at w + e; default: at w, in the base optimizer.",
    ),
    "sl_sam": Row(
        "SL-SAM", "arXiv:2602.09395",
        "e = ρ g1/‖g1‖ on tensors drawn by a bandit; the others are not updated",
        "share 0.5, ρ 0.01", "2F, 2 partial B", "1", "parity",
        "Its README's command takes share 0.2, its code 0.5 (default).",
    ),
    "wsam": Row(
        "WSAM", "arXiv:2305.15817", "gd = a g2 + (1 - a) g1, a = γ/(1 - γ), or decoupled",
        "γ 0.9, ρ 0.05", "2F 2B", "2", "parity",
        "In parity: a widely used third-party implementation, coupled and decoupled; the authors' "
        "own was not executed. No disagreement is known.",
    ),
    "focal_sam": Row(
        "Focal-SAM", "arXiv:2505.01660",
        "gd = ∇mean((1 - c) l)(w) + ∇mean(c l)(w + e), e along ∇mean(c l)(w)",
        "sharpness 0.5, γ 1, ρ 0.2 (CIFAR-LT), 0.05 (iNaturalist)", "2F 3B", "2", "equation",
        "The code was read and not executed; no disagreement is known.",
        options={"class_counts": (3, 2, 1)},
    ),
    "saf": Row(
        "SAF", "arXiv:2205.14083", "L + λ τ² KL(outputs E epochs ago ‖ outputs)",
        "τ 5, E 2-3, λ 0.3", "1F 1B", "N(E + 1)C numbers", "equation",
        "Code's own defaults are λ 0.16 and E 3, its README's λ 0.3 and E 2 (default). Read and "
        "not executed.",
        options={"num_examples": 1000},
    ),
    "mesa": Row(
        "MESA", "arXiv:2205.14083", "L + λ τ² KL(averaged weights' outputs ‖ outputs)",
        "τ 5, decay 0.9998, λ 0.8", "2F 1B", "1", "equation",
        "Code's own default is λ 0.3, its README's 0.8 (default). Read and not executed.",
    ),
    "random_mask": Row(
        "Random mask", "", "e = ρ f/‖f‖, f = g1 on random coordinates; gd = g2", "", "2F 2B", "1",
        "control",
    ),
    "topk_gradient": Row(
        "Top-|g| mask", "", "e = ρ f/‖f‖, f = g1 where |g1| is largest; gd = g2", "", "2F 2B", "1",
        "control",
    ),
}  # fmt: skip


def slots_of(variant: Variant) -> dict[str, str]:
    """Each slot of a variant in words of its code; what is SAM's own choice is left out."""
    usual = {"gradient", "everything", "always", "SameBatch()", "Descent()", "Geometry()", "None"}
    out = {}
    for name in ("source", "selector", "geometry", "radius", "gate", "evaluate", "correction",
                 "loss_term"):  # fmt: skip
        text = _slot_text(getattr(variant, name))
        if text not in usual:
            out[name] = text
    return out


def _slot_text(slot: Any) -> str:
    """Name of a function, or a dataclass with the fields that are not its defaults."""
    if not dataclasses.is_dataclass(slot):
        return "None" if slot is None else slot.title
    shown = [
        f"{f.name}={value.__name__ if callable(value) else repr(value)}"
        for f in dataclasses.fields(slot)
        if (value := getattr(slot, f.name)) != f.default
    ]
    return f"{type(slot).__name__}({', '.join(shown)})"


def table(recipes: Mapping[str, Callable[..., Variant]]) -> str:
    """Markdown: one section of facts per recipe, made from the rows and from the code's slots."""
    lines = [
        "# The variants",
        "",
        "Written by `python -m landscape.sam` from the code's own rows. g1, g2: gradients at w and "
        "w + e; gd: the gradient that the base optimizer steps with. Slots that are SAM's are left "
        "out.",
        "",
        *(f"- **{name}**: {text}." for name, text in EVIDENCE.items()),
        "",
        "| recipe | equation | passes | extra copies | evidence | source |",
        "|---|---|---|---|---|---|",
    ]
    for name in recipes:
        row = ROWS[name]
        cells = (f"[`{name}`](#{name})", row.equation, row.passes, row.memory, row.evidence,
                 row.source or "-")  # fmt: skip
        lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    for name, recipe in recipes.items():
        lines += _section(name, ROWS[name], recipe(**ROWS[name].options))
    return "\n".join([*lines, "", loops(), OWN_SLOTS])


def loops() -> str:
    """How a step looks in loops of other people, as the docstring of `SAM` has it."""
    text = inspect.cleandoc(SAM.__doc__ or "")
    text = text[text.index("Loops that step") : text.index("Every variant that")]
    lines = ["## In other people's loops", ""]
    for code, parts in itertools.groupby(text.strip().split("\n\n"), _is_code):
        shown = "\n\n".join(parts)
        lines += ["```python", textwrap.dedent(shown), "```", ""] if code else [shown, ""]
    return "\n".join(lines)


def _is_code(paragraph: str) -> bool:
    return paragraph.startswith("    ")


OWN_SLOTS = """## Your own slots

A slot is a function; what it keeps between steps it puts into `state`, which is saved with the
optimizer. A zeroth-order source, from two losses along a random direction:

```python
def zeroth_order(point, state, step=1e-3):
    z = [torch.randn(w.shape, generator=point.generator, device=w.device) for w in point.weights]
    up, down = (point.loss_at([sign * step * x for x in z]) for sign in (1, -1))
    return [x * ((up - down) / (2 * step)) for x in z]
```

Radii per tensor that follow its shape, as in maximal-update parametrization with perturbation
(‖e_l‖ = ρ √(fan_out/fan_in), for tensors of ndim > 1):

```python
def spectral_radii(point, u, mask, rho):
    scale = [(w.shape[0] / w[0].numel()) ** 0.5 if w.ndim > 1 else 1.0 for w in point.weights]
    return [rho * s * x / (x.norm() + 1e-12) for s, x in zip(scale, u)]


variant = dataclasses.replace(sam.sam(0.1), source=zeroth_order, geometry=spectral_radii)
```
"""


def _section(name: str, row: Row, variant: Variant) -> list[str]:
    facts = {
        "Source": row.source,
        "Published": row.published,
        "Slots": "; ".join(f"{k} = `{v}`" for k, v in slots_of(variant).items()),
        "Needs": ", ".join(sorted(variant.needs)),
        "Paper and code": row.disagreement,
    }
    shown = [f"- {key}: {value}" for key, value in facts.items() if value]
    return ["", f"## {name}", "", f"**{row.title}** ({row.evidence}): {row.equation}", "", *shown]
