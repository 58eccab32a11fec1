"""Norms, dots and products of long vectors are formed in `landscape.vectors` and nowhere else."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "landscape"
RAW = {
    "norm", "vector_norm", "matrix_norm", "_foreach_norm", "dot", "vdot", "mv", "addmv", "addmm",
    "matmul", "einsum", "tensordot", "cosine_similarity",
}  # fmt: skip
OF_TORCH = {"inner", "mm", "bmm"}  # names that others may have
SUMS = {"sum", "mean"}
# Floors that never see a tensor: numpy adds pairwise, and what they hold is short.
WITHOUT_TORCH = {"plot", "report", "snapshots", "stats", "results.py", "storage.py"}

# Where a raw call is right: file, function ("" for all of the file): why.
PERMITTED = {
    ("vectors.py", ""): "this is the home",
    ("cli/checkup.py", "_step"): "a step by hand, of a network of few weights",
    ("linalg/_complement.py", "__init__"): "coefficients in a space of few vectors, in float64",
    ("linalg/_complement.py", "combine"): "coefficients in a space of few vectors, in float64",
    ("linalg/_search.py", "finish"): "the k x k Gram matrix of residuals",
    ("linalg/_proof.py", ""): "k x k matrices and their coefficients, in float64",
    ("measure/curvature/adaptive_sharpness.py", "_centred_logits"): "the classes of one example",
    ("measure/curvature/spectral_density.py", "_density_variables"): "nodes, in numpy's float64",
    ("measure/outcome/calibration.py", "calibration"): "the classes of one example",
    ("measure/perturbations/alignment.py", "enrichment"): "k eigenvectors, per parameter",
    ("measure/perturbations/filter_null.py", "_seen"): "counts, exact in float32, then wide",
    ("measure/perturbations/filter_null.py", "filter_mean"): "counts of filters, in float64",
    ("measure/perturbations/gradient_noise.py", "norms"): "one number per tensor, in float64",
    ("measure/perturbations/perturbation.py", "perturbation"): "one number per tensor, in float64",
    ("measure/perturbations/recorded_masks.py", "_selection"): "shares per tensor, in numpy",
    ("measure/perturbations/counting.py", "_sums"): "chunks of 2^20, in float64",
    ("measure/perturbations/zscore_statistics.py", ""): "sorted values, in float64",
    ("risk/_checks.py", "_fails_twice"): "whether derivatives exist, not their values",
    ("risk/_head.py", "curved"): "a linear layer's own backward pass, of a piece of tokens",
    ("sharding/operations.py", ""): "torch's own operations of a part, as of a whole vector",
    ("sam/finite.py", "all_finite"): "whether it is finite, not how long it is",
    ("sam/objectives.py", "__call__"): "the classes of one example",
    ("sam/passes.py", "split_backward"): "the examples of one batch",
    ("sam/passes.py", "_run_losses"): "the examples of one batch",
    ("streams/moments.py", "_moments_of_block"): "numpy's float64, pairwise",
    ("streams/probes.py", "quadrature_bracket"): "the nodes of one probe, in numpy's float64",
}


def functions_of(tree):
    """Every node with the name of the outermost function or method around it."""

    def walk(node, name):
        for child in ast.iter_child_nodes(node):
            inside = name
            if not name and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                inside = child.name
            yield child, inside
            yield from walk(child, inside)

    yield from walk(tree, "")


def is_square_or_product(node):
    """x.square(), x**2, a * b: what a sum turns into a norm or a dot."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr in ("square", "pow", "mul"):
            return True
        return node.func.attr in ("double", "float") and is_square_or_product(node.func.value)
    power = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow)
    return power or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult))


def raw(node):
    """What of a node is a product or norm by hand, or None."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
        return "@"
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return None
    owner, name = node.func.value, node.func.attr
    if isinstance(owner, ast.Name) and owner.id in ("vectors", "np"):
        return None
    if name in RAW and not (isinstance(owner, ast.Name) and owner.id == "self"):
        return name
    if name in OF_TORCH and isinstance(owner, ast.Name) and owner.id == "torch":
        return name
    if name not in SUMS:
        return None
    summed = owner
    if isinstance(owner, ast.Name) and owner.id == "torch" and node.args:
        summed = node.args[0]
    return f"{name} of a product" if is_square_or_product(summed) else None


def found():
    for path in sorted(ROOT.rglob("*.py")):
        file = str(path.relative_to(ROOT))
        if file.split("/")[0] in WITHOUT_TORCH:
            continue
        for node, function in functions_of(ast.parse(path.read_text())):
            what = raw(node)
            if what is not None:
                yield file, function, node.lineno, what


def test_long_vectors_are_summed_in_one_place():
    loose = [
        f"landscape/{file}:{line} in {function or 'the module'}: {what}"
        for file, function, line, what in found()
        if not {(file, function), (file, "")} & set(PERMITTED)
    ]
    assert not loose, (
        "Sums of products by hand; use landscape.vectors, or state in PERMITTED why the sum is "
        "short:\n" + "\n".join(loose)
    )


def test_every_permission_is_used():
    used = {(file, function) for file, function, _, _ in found()}
    files = {file for file, _ in used}
    assert all((f, n) in used or (n == "" and f in files) for f, n in PERMITTED)


@pytest.mark.parametrize(
    "line",
    ["a @ b", "x.norm()", "torch.linalg.vector_norm(x, dim=1)", "(a * b).sum()", "(x**2).sum()",
     "x.double().square().sum()", "torch.sum(a * b)", "torch.dot(a, b)", "torch._foreach_norm(t)"],
)  # fmt: skip
def test_the_rule_sees(line):
    assert any(raw(node) for node in ast.walk(ast.parse(line)))


@pytest.mark.parametrize("line", ["vectors.norm(x)", "vectors.dot(a, b)", "a * b", "x.sum()"])
def test_the_rule_lets_pass(line):
    assert not any(raw(node) for node in ast.walk(ast.parse(line)))
