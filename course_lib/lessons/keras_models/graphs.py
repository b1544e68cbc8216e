"""Functional models of lesson 03: what a call returns, and those of `run`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from course_lib.keras_models.graph.model import KerasModel
from course_lib.lessons.keras_models.files import File, functional, layer

Ref = tuple[str, int]  # a layer, and the number of its call


class Graph(NamedTuple):
    """The calls of a model's layers, what comes out of x, and what mistakes give."""

    place: str
    calls: Mapping[str, Sequence[Sequence[Ref]]]  # the inputs of each call of a layer
    output: Ref
    wanted: Tensor
    mistakes: Mapping[str, Tensor]

    @property
    def file(self) -> File:
        """Return the model's file."""
        entries = [layer("InputLayer", "x", batch_input_shape=[None, 2])]
        entries += [layer("Dense", name, *calls) for name, calls in self.calls.items()]
        file = functional(*entries, output=self.output[0])
        file["config"]["output_layers"] = [[*self.output, 0]]
        return file

    @property
    def modules(self) -> dict[str, Callable[..., Tensor]]:
        """Return what its layers do."""
        return {name: _MODULES[name] for name in self.calls}


def outputs_of_calls(model: KerasModel, *inputs: Tensor) -> list[Tensor]:
    """Run a model; return what each of `model.calls` returned.

    A forward hook runs once for each call, also of a layer that is called twice.
    """
    seen: list[Tensor] = []

    def keep(layer: nn.Module, given: Any, output: Tensor) -> None:
        seen.append(output.detach())

    hooks = [layer.register_forward_hook(keep) for layer in model.children()]
    model(*inputs)
    for hook in hooks:
        hook.remove()
    return seen


def graphs(x: Tensor) -> list[Graph]:
    """Return the models for an input `(batch, 2)`, each harder than the last."""
    return [_in_a_row(x), _two_tensors(x), _two_calls(x), _layer_between(x)]


def _double(x: Tensor) -> Tensor:
    return 2 * x + 1


def _both(first: Tensor, second: Tensor) -> Tensor:
    return torch.cat([first, 3 * second], dim=1)


_MODULES = {"a": torch.square, "b": torch.cos, "double": _double, "both": _both}


def _in_a_row(x: Tensor) -> Graph:
    return Graph(
        "For two layers in a row",
        {"a": [[("x", 0)]], "b": [[("a", 0)]]},
        ("b", 0),
        x.square().cos(),
        {"That is the output of the first layer. Go on": x.square()},
    )


def _two_tensors(x: Tensor) -> Graph:
    a, b = x.square(), x.cos()
    return Graph(
        "For a layer that is called with two tensors",
        {"a": [[("x", 0)]], "b": [[("x", 0)]], "both": [[("b", 0), ("a", 0)]]},
        ("both", 0),
        _both(b, a),
        {
            "The two tensors have changed places": _both(a, b),
            "Each layer got the output of the one before it in the file. Take the "
            "one that its call names": _both(a.cos(), a),
        },
    )


def _two_calls(x: Tensor) -> Graph:
    first, second = _double(x), _double(x.square())
    number = "The second entry of a reference is the number of the call"
    return Graph(
        "For a layer that is called twice",
        {
            "a": [[("x", 0)]],
            "double": [[("x", 0)], [("a", 0)]],
            "both": [[("double", 1), ("double", 0)]],
        },
        ("both", 0),
        _both(second, first),
        {
            f"The first call stands for both. {number}": _both(first, first),
            f"The last call stands for both. {number}": _both(second, second),
            "The two calls have changed places": _both(first, second),
        },
    )


def _layer_between(x: Tensor) -> Graph:
    first = _double(x)
    return Graph(
        "For a model whose output is the second call of a layer",
        {"double": [[("x", 0)], [("b", 0)]], "b": [[("double", 0)]]},
        ("double", 1),
        _double(first.cos()),
        {
            "That is its first call": first,
            "That is the last layer of the file. `output_layers` says which call is "
            "the output": first.cos(),
            "You call `double` on its own output. Its second call takes that of `b`": (
                _double(first)
            ),
        },
    )
