"""Language models over long sequences and large vocabularies: what is held of a row."""

import logging
from dataclasses import replace

from torch import Tensor, nn

from landscape.risk._criterion import Criterion, logits_of
from landscape.risk._data import Batch
from landscape.risk._engine import Engine
from landscape.risk._head import Deferred, Head

log = logging.getLogger("landscape.risk")

# Of the memory allowed: what the logits of a row may take, of whose second derivatives a graph
# holds about ten times as much, and those of a piece of tokens.
_OF_ROW, _OF_PIECE = 1 / 16, 1 / 32
_LEAST = 2**22  # bytes of a row's logits that are never cut, whatever the memory
_MOST_TRIED = 4  # numbers of rows that tensors have: of tokens, of places


def with_head(engine: Engine) -> Engine:
    """The engine whose loss makes the logits itself, in pieces, where those of a row are large.

    Where the model ends with a linear map by a tensor of its own, and computes nothing with its
    logits; of any other, and of a sharded one, those of whole rows are made.
    """
    engine = replace(engine, criterion=engine.criterion.with_head(None))
    network, criterion = engine.network, engine.criterion
    tokens = max(map(_tokens, engine.examples.chunks))
    if not tokens or not _is_cross_entropy(criterion) or network.space is not None:
        return engine
    of_class = tokens * engine.dtype.itemsize
    rows = {len(p) for p in network.model.parameters() if p.ndim == 2}
    most = max(_LEAST, _OF_ROW * engine.memory)
    large = sorted((n for n in rows if n * of_class > most), reverse=True)
    for classes in large[:_MOST_TRIED]:
        size = int(max(_LEAST / 2, _OF_PIECE * engine.memory)) // (classes * engine.dtype.itemsize)
        head = Head(classes, max(1, size))
        if _defers(engine, head):
            return replace(engine, criterion=criterion.with_head(head))
    if large and large[0] * of_class > engine.memory:
        log.warning(
            "the logits of one row, %d tokens over as many classes as the largest tensor has rows "
            "(%d), take %.2g GiB, and derivatives several times that: they are made whole, since "
            "%s does not return a linear map of hidden states as it is (.logits of a last layer "
            "without adapters, hooks or capping). Shorten the sequences where memory does not "
            "suffice.",
            tokens, large[0], large[0] * of_class / 2**30, type(network.model).__name__,
        )  # fmt: skip
    return engine


def _defers(engine: Engine, head: Head) -> bool:
    """Whether a row comes back with logits that are not computed."""
    network, row = engine.network, engine.examples.on_device(engine.examples.few(1))
    try:
        with network.finding_casts(), engine.evaluating(network.theta):
            model, batch = network.ready(row)
            output = head.deferred(model, *batch.args, **batch.kwargs)
    except Exception:  # it computes with them; what else fails is said by the checks
        return False
    return isinstance(logits_of(output), Deferred)


def _is_cross_entropy(criterion: Criterion) -> bool:
    known = criterion.form != "batch" and criterion.torch is not None
    return known and criterion.torch.kind is nn.CrossEntropyLoss


def _tokens(chunk: Batch) -> int:
    """Labels of a row, 0 where these are no classes of tokens."""
    labels = chunk.targets
    fits = isinstance(labels, Tensor) and labels.ndim == 2 and not labels.is_floating_point()
    return labels.shape[1] if fits else 0
