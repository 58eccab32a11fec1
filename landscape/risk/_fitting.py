"""How many rows fit: measured on a few rows, since no formula knows a model's activations."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from landscape import devices
from landscape.errors import LandscapeError
from landscape.risk._data import Batch, Examples
from landscape.risk._engine import Engine, Statistics
from landscape.risk._sparse import bytes_of, parts_of

GIB = 2**30
# A pass without derivatives holds a few layers at a time, not all: a cautious share of the graph.
_SHARE_OF_A_PASS = 4
_PARTS, _LEAST_ROWS = 8, 16
_CPU_BATCH, _LEAST_CPU_ROWS, _CACHED_ROWS = 2**26, 32, 128


def default(device: torch.device) -> int:
    """Bytes for kept graphs when the caller states none."""
    free = devices.free_memory(device)
    return GIB if free is None else free // 2


def default_rows(examples: Examples) -> int:
    """Rows of a pass without derivatives: all of a small set, else what caches take well."""
    if devices.is_accelerator(examples.device):
        return _even(min(4096, 2**27 // examples.row_bytes), examples)
    # Of images of 32 x 32 pieces of 128 take 0.83 of the time of 256 at once.
    fits = max(_CACHED_ROWS, 2**21 // examples.row_bytes)
    return _even(min(1024, 2**23 // examples.row_bytes, fits), examples)


def _even(rows: int, examples: Examples) -> int:
    """At most so many rows, in pieces of one size: a last one of few rows costs its start."""
    count = max(1, examples.num_examples)
    return -(-count // -(-count // max(1, rows)))


def visit(
    engine: Engine,
    theta: Tensor,
    visit: Callable[[Batch, Any, Tensor], None],
    *,
    statistics: Statistics | None = None,
) -> None:
    """One pass without derivatives over batches that fit: visit(batch, output, losses).

    statistics: of BatchNorm, instead of those of the engine's mode.
    """
    # Asked first: measuring a graph puts BatchNorm back to its frozen statistics.
    whole = engine.couples and statistics is None and _fits_one_pass(engine)
    size = engine.examples.num_examples if whole else pass_rows(engine)
    engine.visit(theta, visit, size, whole=whole, statistics=statistics)


def pass_rows(engine: Engine) -> int:
    """Rows of a pass without derivatives; of tokens, whose width no row tells, those that fit."""
    if engine.batch_size:
        return engine.batch_size
    rows = default_rows(engine.examples)
    if engine.examples.num_tokens == 1 or rows <= 2:
        return rows
    with contextlib.suppress(Exception):  # of a loss without a graph
        rows = min(rows, most_rows(engine, 1, _SHARE_OF_A_PASS * engine.memory))
    return _even(rows, engine.examples)


def graph_batches(engine: Engine, order: int) -> list[Batch]:
    """Batches whose graph fits; the whole set where BatchNorm needs it, or a refusal."""
    if order > 1:
        engine.prepare_second_derivatives()
    if not engine.examples.apart:
        _graph_size(engine, order)
        return engine.examples.cut(0)
    if engine.couples:
        _refuse_large_graph(engine, order)
        return engine.examples.cut(engine.examples.num_examples)
    return engine.examples.cut(engine.batch_size or _graph_rows(engine, order))


def kept_and_rebuilt(engine: Engine) -> tuple[list[Batch], list[Batch]]:
    """Batches whose graphs of second order are held together, and those rebuilt one by one."""
    kept, rebuilt, room = [], [], float(engine.memory)
    batches = graph_batches(engine, order=2)
    if engine.network.borrowed:
        return [], batches  # a graph would outlive the loan
    sizes = [graph_bytes(engine, batch.count, order=2) for batch in batches]
    room -= max(sizes) if sum(sizes) > room else 0.0
    for batch, size in zip(batches, sizes, strict=True):
        room -= size
        (rebuilt if room < 0 else kept).append(batch)
    return kept, rebuilt


def _graph_rows(engine: Engine, order: int) -> int:
    """Rows whose graph of this order of derivative stays within the memory allowed.

    Of second order, where not all fit, an eighth: seven may be kept while one is rebuilt. But not
    batches so small that what each of them holds of the weights and starting them would matter.
    """
    rows = default_rows(engine.examples)
    fixed, each = _graph_size(engine, order)
    most = int((engine.memory - fixed) / max(each, 1))
    if order > 1 and most < engine.examples.num_examples:
        part = int((engine.memory / _PARTS - fixed) / max(each, 1))
        most = part if part >= _LEAST_ROWS else most
    if not devices.is_accelerator(engine.device):
        # Above this the allocator asks the system for fresh pages at every operation, which costs
        # up to a third of a product or gradient; below so many rows starting them costs as much.
        most = min(most, max(_LEAST_CPU_ROWS, int((_CPU_BATCH - fixed) / max(each, 1))))
    return _even(min(rows, most), engine.examples)


def most_rows(engine: Engine, order: int, memory: float) -> int:
    """Rows whose graph of this order takes at most this memory, at least one."""
    fixed, each = _graph_size(engine, order)
    return max(1, int((memory - fixed) / max(each, 1)))


def graph_bytes(engine: Engine, count: int, *, order: int) -> float:
    """Estimated bytes that the graph of `count` rows holds."""
    fixed, each = _graph_size(engine, order)
    return fixed + each * count


def _fits_one_pass(engine: Engine) -> bool:
    """Whether all rows may go through the network at once without derivatives."""
    size = engine.examples.num_examples
    if not engine.examples.apart:
        return len(engine.examples.units) == 1
    if len(engine.examples.chunks) > 1 or (engine.batch_size or size) < size:
        return False
    return graph_bytes(engine, size, order=1) / _SHARE_OF_A_PASS <= engine.memory


def _refuse_large_graph(engine: Engine, order: int) -> None:
    """bn="full_batch" couples all examples, so its graph has to be one piece."""
    size = engine.examples.num_examples
    if len(engine.examples.chunks) > 1:
        raise LandscapeError(
            f"bn='full_batch' asked for a derivative over {len(engine.examples.chunks)} batches of "
            f"different shapes, which cannot be one batch; pad the inputs to one shape or use "
            f"bn='eval'."
        )
    need = graph_bytes(engine, size, order=order)
    if need > engine.memory:
        raise LandscapeError(
            f"bn='full_batch' needs the graph of all N={size} examples at once, about "
            f"{need / GIB:.2g} GiB; memory={engine.memory} bytes ({engine.memory / GIB:.2g} GiB) "
            f"are allowed. Raise memory, give fewer examples, or use bn='eval'."
        )


def _graph_size(engine: Engine, order: int) -> tuple[float, float]:
    """(fixed bytes, bytes per row) from the tensors saved for two and for four rows; cached.

    Of few rows for a quarter and a half of them: a graph of all would cost as much as a product.
    """
    cache = engine.notes.graph_sizes
    key = (order, engine.bn)
    if key not in cache and order > 1:
        engine.prepare_second_derivatives()  # the graph that will be built, whoever asks first
    if key not in cache and not engine.examples.apart:
        # A unit is one piece, and what it holds may grow faster than its rows.
        unit = max(engine.examples.cut(0), key=lambda unit: unit.count)
        most = max(engine.memory, default(engine.device))
        each = engine.network.agreed(_saved_bytes(engine, unit, order, most) / unit.count)
        cache[key] = (0.0, each)
    if key not in cache:
        chunk = engine.examples.chunks[0]
        least = 2 if engine.couples else 1  # batch statistics of one row are none
        few = min(2, max(least, chunk.count // 4), chunk.count)
        more = min(2 * few, chunk.count)
        small = _saved_bytes(engine, chunk.rows(0, few), order)
        large = small if more == few else _saved_bytes(engine, chunk.rows(0, more), order)
        each = (large - small) / (more - few) if more > few else large / max(1, few)
        fixed = max(0.0, small - each * few)
        cache[key] = engine.network.agreed(fixed), engine.network.agreed(each)
    return cache[key]


def _saved_bytes(engine: Engine, batch: Batch, order: int, most: float = float("inf")) -> float:
    """What a graph holds besides the model's tensors and the examples, there without it."""
    held: dict[int, int] = {}
    there = {place for leaf in batch.leaves() for place, _ in _storages(leaf)}
    together = 0
    network = engine.network

    def pack(tensor: Tensor) -> Any:
        nonlocal together
        if (known := network.packed(tensor)) is not tensor:
            return known
        for place, size in _storages(tensor):
            if place not in there:
                together += size - held.get(place, 0)
                held[place] = size
        if together > most:
            raise LandscapeError(
                f"The loss couples {batch.count} examples, and their graph of order {order} needs "
                f"more than {most / GIB:.2g} GiB in one piece; raise memory (now {engine.memory} "
                f"bytes), or give smaller batches."
            )
        return tensor.detach()  # a graph that holds its own outputs is never freed

    def graph(hooks: contextlib.AbstractContextManager[Any]) -> object:
        with engine.differentiating(order, network.given), hooks:
            for own in (*network.weights, *network.model.parameters(), *network.model.buffers()):
                there.update(place for place, _ in _storages(own))
            return engine.loss_graph(batch) if order == 1 else engine.gradient_graph(batch)

    try:
        graph(torch.autograd.graph.saved_tensors_hooks(pack, network.unpacked))
    except RuntimeError as error:
        if "saved tensor hooks" not in str(error):
            raise
        # torch.func within the model allows no hooks: everything made is counted, which is more.
        with _Made() as made:
            graph(contextlib.nullcontext())
        return made.bytes
    return float(together)


def _storages(tensor: Tensor) -> list[tuple[int, int]]:
    """Place and bytes of what a tensor lies in; of some (nested ones) torch does not say."""
    with contextlib.suppress(RuntimeError):
        parts = [part.untyped_storage() for part in parts_of(tensor)]
        return [(storage.data_ptr(), storage.nbytes()) for storage in parts]
    return []


class _Made(TorchDispatchMode):
    """Counts the bytes of all tensors that are made."""

    bytes = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # fmt: skip
        output = func(*args, **(kwargs or {}))
        self.bytes += sum(bytes_of(t) for t in tree_leaves(output) if isinstance(t, Tensor))
        return output
