"""A model as a list of operations, each run for several candidates at once.

torch.fx records which operation feeds which. The first axis of a value that differs
between candidates is `candidates * batch`; images lie in channels-last memory, where
one row of the memory holds all channels of a pixel.
"""

from __future__ import annotations

import contextlib
import copy
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from course_lib.rso.eager import eligibility, kinds
from course_lib.rso.eager.kernels import FoldedConv, average_blocks, pooling

Reduce = Callable[[Tensor], Tensor]  # sums a tensor over all processes
Env = dict[fx.Node, Any]

CONSTANT = "_tensor_constant"  # torch.fx's prefix of the names of constants


class NotTraceable(Exception):
    """torch.fx can't record the model; the message says why."""


@dataclass
class Network:
    """The operations of a model in order, with the shapes seen in one pass."""

    model: nn.Module
    nodes: list[fx.Node]
    shapes: dict[fx.Node, tuple[int, ...] | None]  # without the batch
    reduce: Reduce | None = None
    folded: dict[fx.Node, tuple[fx.Node, FoldedConv]] = field(default_factory=dict)
    batches: set[fx.Node] = field(default_factory=set)  # a row for each sample
    output: fx.Node = field(init=False, repr=False)
    _modules: dict[str, nn.Module] = field(default_factory=dict)
    _constants: dict[str, Tensor] = field(default_factory=dict)

    @staticmethod
    def trace(model: nn.Module, inputs: Tensor, reduce: Reduce | None) -> Network:
        """Record a model's operations, in `modes.search_mode`.

        Raises:
            NotTraceable: which operations run depends on values or on code that
                torch.fx can't follow, or hooks change them; see `eligibility`.
        """
        if obstacle := eligibility.obstacle(model):
            raise NotTraceable(obstacle)
        graph, constants = _graph(model)
        nodes = [n for n in graph.nodes if n.op != "output"]
        if sum(n.op == "placeholder" for n in nodes) != 1:
            raise NotTraceable("it takes more than one input")
        network = Network(model, nodes, {}, reduce)
        network._constants = constants
        modules = model.named_modules()
        network._modules = {name: _out_of_place(module) for name, module in modules}
        network.output = next(n for n in graph.nodes if n.op == "output").args[0]
        if not isinstance(network.output, fx.Node):
            raise NotTraceable("it returns more than one tensor")
        more = torch.cat([inputs, inputs[:1]])
        env, longer = network._run(inputs), network._run(more)
        if not _agree(model(inputs.clone()), env[network.output]):
            raise NotTraceable("torch.fx's record of it gives other numbers")
        network._require_faithful(inputs, env)
        network.batches = {
            node
            for node in network.after(nodes[:1])
            if _rows(env[node]) == len(inputs) and _rows(longer[node]) == len(more)
        }
        network.shapes = {
            node: tuple(env[node].shape[1:]) if node in network.batches else None
            for node in nodes
        }
        network._fold()
        return network

    def _require_faithful(self, inputs: Tensor, env: Env) -> None:
        """Raise NotTraceable where this record may differ from the model later.

        torch.fx records as a constant whatever it does not see computed from weights.
        """
        if effect := eligibility.side_effect(self.model, inputs):
            raise NotTraceable(effect)
        found = [env[node] for node in self.after(self.nodes[:1])]
        dtypes = {v.dtype for v in found if eligibility.is_inexact(v)} - {inputs.dtype}
        if dtypes:
            values = dtypes.pop()
            raise NotTraceable(f"values of {values}, and inputs of {inputs.dtype}")
        for seed in range(2):
            with _other_weights(self.model, seed):
                wanted, got = self.model(inputs.clone()), self._run(inputs)
            if not _agree(wanted, got[self.output]):
                raise NotTraceable(
                    "torch.fx's record of it gives other numbers with other weights"
                )

    def _run(self, inputs: Tensor) -> Env:
        env: Env = {self.nodes[0]: inputs}
        for node in self.nodes[1:]:
            env[node] = self.call(node, env)
        return env

    def _fold(self) -> None:
        """Find each average pooling that can be folded into the layer before it."""
        for node in self.nodes:
            blocks = average_blocks(self.module(node))
            conv = node.all_input_nodes[0] if blocks else node
            is_alone = len(conv.users) == 1 and conv is not self.output
            if blocks and self.kind(conv) == "conv" and is_alone:
                folded = FoldedConv(self.module(conv), blocks)
                if folded.can_fold:
                    self.folded[node] = conv, folded

    @property
    def steps(self) -> list[fx.Node]:
        """Return the nodes without the convolutions that are folded into a pooling."""
        inner = {conv for conv, _ in self.folded.values()}
        return [node for node in self.nodes if node not in inner]

    def used_by(self, node: fx.Node) -> list[fx.Node]:
        """Return what a step reads."""
        if node in self.folded:
            node = self.folded[node][0]
        return node.all_input_nodes

    def conv_of(self, node: fx.Node) -> FoldedConv | None:
        """Return the convolution or linear layer that a step runs, or None."""
        if node in self.folded:
            return self.folded[node][1]
        is_dense = self.kind(node) in ("conv", "linear")
        return FoldedConv(self.module(node)) if is_dense else None

    def module(self, node: fx.Node) -> nn.Module | None:
        """Return the module that a node calls, or None."""
        return self._modules[node.target] if node.op == "call_module" else None

    def kind(self, node: fx.Node) -> str:
        """Return what a node does; "unknown" is run for one candidate at a time."""
        if node in self.folded:
            return "conv"
        if not self.batches.issuperset([node, *node.all_input_nodes]):
            return "unknown"
        kind = kinds.kind_of(node, self.module(node))
        is_sequence = kind == "norm" and len(self.shapes[node]) == 2
        return "unknown" if is_sequence else kind

    def parameters_of(self, node: fx.Node) -> list[nn.Parameter]:
        """Return the parameters that a node reads."""
        if node.op == "get_attr" and node.target not in self._constants:
            owner, _, name = node.target.rpartition(".")
            value = getattr(self._modules[owner], name)
            return [value] if isinstance(value, nn.Parameter) else []
        module = self.module(node)
        return list(module.parameters()) if module is not None else []

    def readers(self, parameter: nn.Parameter) -> list[fx.Node]:
        """Return the nodes that read a parameter, in order."""
        return [
            node
            for node in self.nodes
            if any(p is parameter for p in self.parameters_of(node))
        ]

    def after(self, sources: list[fx.Node]) -> list[fx.Node]:
        """Return the nodes that depend on `sources`, and those themselves, in order."""
        found = dict.fromkeys(sources)
        for node in self.nodes:
            if any(used in found for used in node.all_input_nodes):
                found[node] = None
        return [node for node in self.nodes if node in found]

    def needed(
        self, wanted: set[fx.Node], given: set[fx.Node], sources: set[fx.Node]
    ) -> list[fx.Node]:
        """Return the steps from what is given to what is wanted, in order.

        sources: steps whose inputs are not needed.
        """
        needed = set(wanted)
        for node in reversed(self.steps):
            if node in needed and node not in given | sources:
                needed.update(self.used_by(node))
        return [n for n in self.steps if n in needed - given]

    def step(
        self, node: fx.Node, *, is_live: bool, kept: set[fx.Node]
    ) -> Callable[[Env, int], Tensor]:
        """Return what runs a step for all candidates: `(env, batch) -> value`.

        Args:
            node: the step.
            is_live: read the kernel at each call; otherwise it is that of now.
            kept: steps whose values must not be overwritten.
        """
        kind, used = self.kind(node), self.used_by(node)
        if kind == "add":
            return lambda env, batch: _add(env[used[0]], env[used[-1]], batch)
        if kind == "conv":
            conv, layout = self.conv_of(node), torch.channels_last
            weight = conv.weight().contiguous(memory_format=layout)

            def convolve(env: Env, batch: int) -> Tensor:
                kernel = conv.weight() if is_live else weight
                return conv(env[used[0]].contiguous(memory_format=layout), kernel)

            return convolve
        module = self.module(node)
        if kind == "pool":
            run = pooling(module)
            return lambda env, batch: run(env[used[0]])
        if type(module) is nn.ReLU and self._can_overwrite(used[0], kept):
            return lambda env, batch: env[used[0]].relu_()
        return lambda env, batch: self.call(node, env)

    def _can_overwrite(self, node: fx.Node, kept: set[fx.Node]) -> bool:
        """Tell whether a value has one reader, and is neither a view nor an input."""
        is_new = self.kind(node) in ("norm", "linear")
        return is_new and len(node.users) == 1 and node not in kept

    def one_by_one(self, node: fx.Node, env: Env, batch: int) -> Any:
        """Run an operation that may mix the samples for each candidate alone."""
        parts = {}
        for used in node.all_input_nodes:
            if isinstance(env[used], Each):
                parts[used] = env[used]
            elif used in self.batches:
                value = env[used]
                if node not in self.batches:  # may be a view, and outlive this memory
                    value = value.clone()
                parts[used] = value.split(batch)
        count = max(map(len, parts.values()), default=1)
        rows = [[*part] * (count // len(part)) for part in parts.values()]
        results = [
            self.call(node, {**env, **dict(zip(parts, row, strict=True))})
            for row in zip(*rows, strict=True)
        ] or [self.call(node, env)]
        if node not in self.batches:
            return Each(results)
        return torch.cat(results) if len(results) > 1 else results[0]

    def activation(self, node: fx.Node) -> Callable[[Tensor], Tensor]:
        """Return the function of one tensor that an elementwise node computes."""
        module, (used,) = self.module(node), node.all_input_nodes
        if type(module) is nn.ReLU:
            return torch.relu
        return module or (lambda x: self.call(node, {used: x}))

    def call(self, node: fx.Node, env: Env) -> Any:
        """Run one node as the model would, on one candidate."""
        is_called = node.op == "call_module" and not node.kwargs
        if is_called and all(type(part) is fx.Node for part in node.args):
            return self.module(node)(*[env[part] for part in node.args])  # as a rule
        if kinds.overwrites(node):  # others may read these values again
            env = {n: _copied(env[n]) for n in node.all_input_nodes}
        args = fx.map_arg(node.args, env.__getitem__)
        kwargs = fx.map_arg(node.kwargs, env.__getitem__)
        if node.op == "get_attr" and node.target in self._constants:
            return self._constants[node.target]
        if node.op == "get_attr":
            return operator.attrgetter(node.target)(self.model)
        if node.op == "call_module":
            return self.module(node)(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], node.target)(*args[1:], **kwargs)
        return node.target(*args, **kwargs)


def _add(x: Tensor, y: Tensor, batch: int) -> Tensor:
    """Add two values, of which one may be the same for all candidates."""
    if len(x) == len(y):
        return x + y
    long, short = (x, y) if len(x) > len(y) else (y, x)
    parts = [part + short for part in long.split(batch)]
    return torch.cat(parts)


class Each(list):
    """One value for each candidate, where the values are not batches of samples."""


def _graph(model: nn.Module) -> tuple[fx.Graph, dict[str, Tensor]]:
    """Return a model's operations, and the constants among them.

    It is traced twice, for a pass may depend on those before. torch.fx leaves the
    constants as attributes of the model, from which they are removed here.
    """
    found = []
    for _ in range(2):
        before = set(vars(model))
        try:
            graph = fx.Tracer().trace(model)
        except Exception as error:
            raise NotTraceable(f"torch.fx can't follow it: {error}") from error
        finally:
            new = [n for n in vars(model) if n.startswith(CONSTANT) and n not in before]
            constants = {name: vars(model).pop(name) for name in new}
        found.append((graph, constants))
    if str(found[0][0]) != str(found[1][0]):
        raise NotTraceable("its operations differ from pass to pass")
    return found[0]


@contextlib.contextmanager
def _other_weights(model: nn.Module, seed: int) -> Iterator[None]:
    """Change all trainable weights by much, and restore them at the end."""
    weights = [p for p in model.parameters() if p.requires_grad]
    before = [weight.detach().clone() for weight in weights]
    generator = torch.Generator().manual_seed(seed)
    try:
        with torch.no_grad():
            for weight, old in zip(weights, before, strict=True):
                drawn = torch.randn(weight.shape, generator=generator).to(old.device)
                reach = old.double().abs().mean().clamp_min(0.1)
                weight.add_((reach * drawn).to(old.dtype))
        yield
    finally:
        with torch.no_grad():
            for weight, old in zip(weights, before, strict=True):
                weight.copy_(old)


def _rows(value: Any) -> int:
    return len(value) if isinstance(value, Tensor) and value.dim() else 0


def _agree(wanted: Any, got: Any) -> bool:
    if not isinstance(wanted, Tensor) or not isinstance(got, Tensor):
        return False
    if wanted.shape != got.shape or wanted.dtype != got.dtype:
        return False
    return torch.allclose(wanted, got, rtol=1e-4, atol=1e-6, equal_nan=True)


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _out_of_place(module: nn.Module) -> nn.Module:
    """Return the module, or a copy with the same tensors that overwrites nothing."""
    if getattr(module, "inplace", False) is not True:
        return module
    module = copy.copy(module)
    module.inplace = False
    return module
