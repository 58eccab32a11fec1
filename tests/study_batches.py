"""Problems "of somebody else" whose batches are not (inputs, targets) alone."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset


def _source(seed):
    return torch.Generator().manual_seed(seed)


def _rows(count, seed):
    y = torch.arange(count) % 3
    return torch.randn(count, 4, generator=_source(seed)) + y[:, None], y


def _splits(make):
    return {"train": make(48, 0), "val": make(24, 1), "test": make(24, 2)}


# Two inputs ---------------------------------------------------------------------------------------


def _two(count, seed):
    x, y = _rows(count, seed)
    return (x[:, :2], x[:, 2:].clone()), y


def two_inputs():
    return _splits(_two)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(2, 4), nn.Linear(2, 4), nn.Linear(4, 3)

    def forward(self, first, second):
        return self.head(torch.tanh(self.a(first) + self.b(second)))


# Items that are dicts -----------------------------------------------------------------------------


class _Items(Dataset):
    def __init__(self, count, seed):
        (self.first, self.second), self.y = _two(count, seed)

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return {"second": self.second[i], "first": self.first[i], "labels": int(self.y[i])}


def dicts():
    return _splits(lambda count, seed: DataLoader(_Items(count, seed), batch_size=12))


# Language -----------------------------------------------------------------------------------------


def _tokens(count, seed):
    ids = torch.randint(0, 7, (count, 6), generator=_source(seed))
    mask = torch.ones_like(ids)
    mask[::3, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def tokens():
    return _splits(_tokens)


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(7, 4), nn.Linear(4, 7)

    def forward(self, input_ids, attention_mask=None):
        hidden = torch.tanh(self.table(input_ids)).cumsum(1)
        return self.head(hidden)


def labelled():
    return _splits(lambda count, seed: _labelled(_tokens(count, seed)))


def _labelled(batch):
    return batch | {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}


class OwnLoss(Language):
    """Computes its loss itself, as transformers' models do."""

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = super().forward(input_ids)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return {"loss": loss, "logits": logits}


# A loss that couples the rows of a batch ----------------------------------------------------------


def views():
    return _splits(lambda n, seed: DataLoader(_Views(n, seed), batch_size=8))


class _Views(Dataset):
    def __init__(self, count, seed):
        self.x = torch.randn(count, 4, generator=_source(seed))
        self.other = self.x + 0.1 * torch.randn(count, 4, generator=_source(seed + 9))

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"first": self.x[i], "second": self.other[i]}


def encoder():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def contrast(model, batch):
    a, b = (F.normalize(model(batch[key]), dim=1) for key in ("first", "second"))
    return F.cross_entropy(a @ b.T / 0.5, torch.arange(len(a), device=a.device))


# Graphs of unequal size ---------------------------------------------------------------------------


@dataclass
class Graph:
    x: Tensor
    edges: Tensor
    y: Tensor


def _graphs(count, seed):
    made = []
    for number in range(count // 4):
        nodes = 3 + number % 4
        x = torch.randn(nodes, 4, generator=_source(100 * seed + number))
        edges = torch.stack([torch.arange(nodes), (torch.arange(nodes) + 1) % nodes])
        made.append(Graph(x, edges, (x.sum(1) > 0).long()))
    return made


def graphs():
    return _splits(_graphs)


class GraphNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.own, self.near = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, graph):
        near = torch.zeros_like(graph.x).index_add(0, graph.edges[1], graph.x[graph.edges[0]])
        return torch.tanh(self.own(graph.x)) + self.near(near)


def nodes(model, batch):
    return F.cross_entropy(model(batch), batch.y)
