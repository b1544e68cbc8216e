"""Models and data that the tests of explicit training share."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from course_lib.explicit import (
    update,
    update_,
)
from course_lib.trees import map_tree


class Shared(nn.Module):
    """One submodule under two names, as in this course's autoencoders."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = self.first

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


class Counter(nn.Module):
    """It writes to itself when it runs: an attribute, and a new buffer."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.calls = 0
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("nothing", None)

    def forward(self, x):
        self.calls += 1
        self.last = x
        self.total = self.total + x.sum()
        return self.weight * x


def tied():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    return model


def pruned():
    layer = prune.l1_unstructured(nn.Linear(3, 3), "weight", 2)
    layer.weight = layer.weight.detach()  # torch can't copy it otherwise
    return layer


class First(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)[0]


MODELS = {
    "linear": lambda: nn.Linear(3, 3),
    "one submodule under two names": Shared,
    "tied": tied,
    "batch norm": lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)),
    "dropout": lambda: nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)),
    "lstm": lambda: First(nn.LSTM(3, 3)),
    "gru": lambda: First(nn.GRU(3, 3, 2)),
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(3, 3)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(3, 3)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(3, 3)),
    "pruned": pruned,
    "counter": Counter,
    "module list": lambda: nn.Sequential(*nn.ModuleList([nn.Linear(3, 3)] * 3)),
}


def batch(model):
    torch.manual_seed(1)
    return torch.randn(5, 3, device=next(model.parameters()).device)


def snapshot(model):
    """All that a module holds: which objects stand where, and every bit of them."""
    modules = list(model.modules())
    places = [(m, dict(vars(m))) for m in modules]
    slots = [dict(d) for m in modules for d in (m._parameters, m._buffers)]
    bits = [x.clone() for x in model.state_dict().values()]
    return places, slots, bits


def assert_untouched(model, before):
    places, slots, bits = before
    for module, attributes in places:
        assert vars(module).keys() == attributes.keys()
        assert all(vars(module)[k] is v for k, v in attributes.items())
    dicts = [d for m in model.modules() for d in (m._parameters, m._buffers)]
    for now, then in zip(dicts, slots, strict=True):
        assert now.keys() == then.keys()
        assert all(now[k] is v for k, v in then.items())
    assert all(map(torch.equal, model.state_dict().values(), bits))


def other(params, factor=0.5):
    """Other numbers in the same tree, with the same ties."""
    made = {}
    return map_tree(lambda _, x: made.setdefault(id(x), (factor * x).detach()), params)


mse = nn.functional.mse_loss


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def net(seed=0, device="cpu", *, tie=False):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    if tie:
        model[2].weight = model[0].weight
    return model.to(device)


def batches(n=10, device="cpu"):
    torch.manual_seed(1)
    return [
        tuple(torch.randn(5, 3, dtype=torch.float64, device=device) for _ in "xy")
        for _ in range(n)
    ]


def in_place(state, params, grads):
    update_(state, params, grads)
    return state, params


steps = pytest.mark.parametrize("step", [update, in_place], ids=["pure", "in place"])
