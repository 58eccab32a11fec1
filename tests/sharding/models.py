"""Models cut over processes in every way that torch has, and the same ones whole."""

import torch
from torch import nn
from torch.nn import functional as F

from landscape import EmpiricalRisk

CE = nn.CrossEntropyLoss()


class LanguageModel(nn.Module):
    """Two places of one embedding, attention, LayerNorms; odd sizes, so that parts differ."""

    def __init__(self, vocabulary=11, width=6):
        super().__init__()
        self.embed, self.norm = nn.Embedding(vocabulary, width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 9), nn.Linear(9, width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens)
        q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return self.head(self.norm(x + self.down(F.gelu(self.up(x))))).transpose(1, 2)


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5), nn.Tanh(),
        nn.Linear(5, 3),
    )  # fmt: skip


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.lstm = nn.Embedding(11, 4), nn.LSTM(4, 3, batch_first=True)
        self.head = nn.Linear(3, 11)

    def forward(self, tokens):
        return self.head(self.lstm(self.embed(tokens))[0]).transpose(1, 2)


def narrow():
    """A layer of one row, of which the second of two processes holds nothing."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(36, 3), nn.Tanh(), nn.Linear(3, 1), nn.Tanh(), nn.Linear(1, 3)
    )


MODELS = {
    "language": LanguageModel,
    "convolutional": convolutional,
    "recurrent": Recurrent,
    "narrow": narrow,
}


def data(name, dtype):
    source = torch.Generator().manual_seed(1)
    if name in ("convolutional", "narrow"):
        x = torch.randn(8, 1, 6, 6, generator=source, dtype=dtype)
        return x, torch.randint(3, (8,), generator=source)
    return tuple(torch.randint(11, (6, 5), generator=source) for _ in range(2))


def made(name, dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MODELS[name]().to(dtype)


def fully_sharded(model, mesh):
    from torch.distributed.fsdp import fully_shard

    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and module is not getattr(model, "head", None):
            fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def tensor_parallel(model, mesh):
    """Attention and the feed-forward part of the language model; the rest is in every process."""
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    plan = {
        "qkv": ColwiseParallel(output_layouts=Replicate()),
        "out": RowwiseParallel(input_layouts=Replicate()),
        "up": ColwiseParallel(),
        "down": RowwiseParallel(),
    }
    return parallelize_module(model, mesh, plan)


def both(name, shard, mesh, dtype=torch.float64, **options):
    """(risk of the sharded model, risk of the whole one)."""
    cut = shard(made(name, dtype), mesh)
    return tuple(
        EmpiricalRisk(m, CE, data(name, dtype), **options) for m in (cut, made(name, dtype))
    )


class Heads(nn.Module):
    """Attention of four heads; `local_heads` counts those of one of two processes."""

    def __init__(self, *, local_heads=None):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.norm, self.drop = nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.local_heads = local_heads

    def split(self, x):
        shape = (-1, 2) if self.local_heads is None else (self.local_heads, -1)
        return x.unflatten(-1, shape).transpose(1, 2)

    def forward(self, x):
        q, k, v = (self.split(layer(x)) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.norm(self.out(self.drop(mixed)).mean(1))


def heads_in_parts(model, mesh, *, out=None):
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    plan = dict.fromkeys("qkv", ColwiseParallel()) | {"out": out or RowwiseParallel()}
    return parallelize_module(model, mesh, plan)
