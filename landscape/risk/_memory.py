"""How many rows fit: measured on a few rows, since no formula knows a model's activations."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.risk._data import Batch, Examples

if TYPE_CHECKING:
    from landscape.risk._empirical import EmpiricalRisk

GIB = 2**30
# A pass without derivatives holds a few layers at a time, not all: a cautious share of the graph.
_SHARE_OF_A_PASS = 4


def default(device: torch.device) -> int:
    """Bytes for kept graphs when the caller states none."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    return GIB


def default_rows(examples: Examples) -> int:
    """Rows of a pass without derivatives: all of a small set, else what a cache or GPU takes well."""
    budget, most = (2**27, 4096) if examples.device.type == "cuda" else (2**23, 1024)
    return max(1, min(examples.num_examples, most, budget // examples.row_bytes))


def graph_rows(risk: "EmpiricalRisk", order: int) -> int:
    """Rows whose graph of this order of derivative stays within the risk's memory."""
    rows = default_rows(risk._shared.examples)
    fixed, each = _graph_size(risk, order)
    return max(1, min(rows, int((risk._shared.memory - fixed) / max(each, 1))))


def graph_bytes(risk: "EmpiricalRisk", count: int, *, order: int) -> float:
    """Estimated bytes that the graph of `count` rows holds."""
    fixed, each = _graph_size(risk, order)
    return fixed + each * count


def fits_one_pass(risk: "EmpiricalRisk") -> bool:
    """Whether all rows may go through the network at once without derivatives."""
    shared, size = risk._shared, risk.num_examples
    if len(shared.examples.chunks) > 1 or (risk._batch_size or size) < size:
        return False
    return graph_bytes(risk, size, order=1) / _SHARE_OF_A_PASS <= shared.memory


def refuse_large_graph(risk: "EmpiricalRisk", order: int) -> None:
    """bn="full_batch" couples all examples, so its graph has to be one piece."""
    shared, size = risk._shared, risk.num_examples
    if len(shared.examples.chunks) > 1:
        raise LandscapeError(
            f"bn='full_batch' asked for a derivative over {len(shared.examples.chunks)} batches of "
            f"different shapes, which cannot be one batch; pad the inputs to one shape or use "
            f"bn='eval'."
        )
    need = graph_bytes(risk, size, order=order)
    if need > shared.memory:
        raise LandscapeError(
            f"bn='full_batch' needs the graph of all N={size} examples at once, about "
            f"{need / GIB:.2g} GiB; memory={shared.memory} bytes ({shared.memory / GIB:.2g} GiB) are "
            f"allowed. Raise memory, give fewer examples, or use bn='eval'."
        )


def _graph_size(risk: "EmpiricalRisk", order: int) -> tuple[float, float]:
    """(fixed bytes, bytes per row) from the tensors saved for two and for four rows; cached."""
    cache = risk._shared.graph_sizes
    key = (order, risk.bn)
    if key not in cache:
        chunk = risk._shared.examples.chunks[0]
        few, more = min(2, chunk.count), min(4, chunk.count)
        small = _saved_bytes(risk, chunk.rows(0, few), order)
        large = small if more == few else _saved_bytes(risk, chunk.rows(0, more), order)
        each = (large - small) / (more - few) if more > few else large / max(1, few)
        cache[key] = (max(0.0, small - each * few), each)
    return cache[key]


def _saved_bytes(risk: "EmpiricalRisk", batch: Batch, order: int) -> float:
    held: dict[int, int] = {}
    theta = risk.theta

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = batch.mapped(lambda leaf: leaf.to(risk.device))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        if order == 1:
            leaf = theta.requires_grad_()
            with risk._differentiating(1):
                graph = risk._loss_graph(leaf, batch)
        else:
            graph = risk._gradient_graph(theta, batch)
    del graph
    return float(sum(held.values()))
