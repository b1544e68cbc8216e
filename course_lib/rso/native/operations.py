"""The operations that `program.cpp` has, as functions that add them to a program."""

from __future__ import annotations

import ctypes
import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import fx, nn

from course_lib.rso.eager.kernels import FoldedConv, Pair
from course_lib.rso.eager.network import Network
from course_lib.rso.native import geometry
from course_lib.rso.native.geometry import UnsupportedOperation
from course_lib.rso.native.program import Program, Value, new_op
from course_lib.rso.native.structures import (
    FROM_SCRATCH,
    KINDS,
    SCORED_ONLY,
    STATE_CURRENT,
    Norm,
    Op,
    Operand,
)


def normalize(
    program: Program,
    value: Value,
    module: nn.Module,
    *,
    one_channel: bool = False,
    is_plain: bool = False,
    flags: int = 0,
) -> Value:
    """Apply a batch norm; `is_plain` leaves gamma and beta out."""
    value = program.plain(value, flags)
    norm = Norm(
        channels=value.shape[0],
        pixels=math.prod(value.shape[1:]),
        one_channel=one_channel,
        eps=module.eps,
    )
    for name, own in (("gamma", module.weight), ("beta", module.bias)):
        if own is not None and not is_plain:
            copy = program.copy(module, lambda own=own: own, dtype=torch.float64)
            setattr(norm, name, copy)
    program.norms.append(norm)
    op, number = new_op(), len(program.norms) - 1
    op.norm = number
    program.add_op("stats", value, None, op, flags=flags)
    if value.slot in program.recompute:  # less work than a trip to memory and back
        value = program.recompute[value.slot](value.ready + 1)
    else:
        program.memories[value.slot].is_whole = True
        value = replace(value, ready=value.ready + 1)
    return replace(value, norm=number)


def pool(program: Program, value: Value, module: nn.Module, flags: int = 0) -> Value:
    """Apply a pooling without padding."""
    image = value.shape[1:]
    size, stride = geometry.pool_window(module, image)
    rows, columns = (
        (n - k) // s + 1 for n, k, s in zip(image, size, stride, strict=True)
    )
    starts = geometry.pixels((rows, columns))
    start = [y * stride[0] * image[1] + x * stride[1] for y, x in starts]
    reach = [y * image[1] + x for y, x in geometry.pixels(size)]
    is_max = isinstance(module, (nn.MaxPool2d, nn.AdaptiveMaxPool2d))
    kind, op = "max_pool" if is_max else "average_pool", new_op()
    program.set_tables(op, start, reach)
    return program.add_op(kind, value, (value.shape[0], rows, columns), op, flags=flags)


def conv(program: Program, value: Value, taps: FoldedConv, image: Pair) -> Value:
    """Apply a convolution or linear layer; `image` is its output's size."""
    if geometry.winograd_pays(taps, image):
        return _winograd(program, value, taps, image)
    op = _layer(program, value, taps, image, planes=value.shape[0])
    shape = (op.groups * op.outputs, *image)
    return program.add_op("conv", value, shape, op, flags=SCORED_ONLY)


def _winograd(program: Program, value: Value, taps: FoldedConv, image: Pair) -> Value:
    op, outputs, library = new_op(), len(taps.unpooled()), program.library
    tile, at_once = library.tile_patches(), library.winograd_outputs()
    op.top, op.left = taps.padding
    op.rows, op.columns = (-(-n // 4) for n in image)
    op.padded_height, op.padded_width = 4 * op.rows + 2, 4 * op.columns + 2
    op.groups, op.inputs, op.outputs = 1, value.shape[0], outputs
    op.pixels, op.taps = math.prod(image), 36
    transformed = -(-op.rows * op.columns // tile) * value.shape[0] * 36 * tile
    padded, products = op.padded_height * op.padded_width, outputs * 36 * tile
    op.scratch = program.slot(padded + transformed + products)
    op.weights = program.copy(
        taps.module, lambda: geometry.winograd_weights(taps.unpooled(), at_once)
    )
    op.bias = _bias(program, taps)
    return program.add_op("winograd", value, (outputs, *image), op, flags=SCORED_ONLY)


def spread(
    program: Program,
    value: Value,
    taps: FoldedConv,
    channels: int,
    image: Pair,
    state: int,
    *,
    only_state: bool,
) -> Value:
    """Compute what a change of one of `channels` gives in the next layer.

    That of the base is the state's value `state`, and the others' lie beside it,
    unless only the state is to be updated.
    """
    op = _layer(program, value, taps, image, planes=1)
    value = replace(value, shape=(channels, *value.shape[1:]))
    shape = (op.outputs, *image)

    def added(stage: int, flags: int) -> Value:
        out = program.slot(math.prod(shape), state=state, is_own=not only_state)
        own, placed = Op.from_buffer_copy(op), {"out": out, "stage": stage}
        return program.add_op("spread", value, shape, own, **placed, flags=flags)

    found = added(0, 0)
    program.recompute[found.slot] = lambda stage: added(stage, STATE_CURRENT)
    return found


def fill(
    program: Program, value: Value, channels: int, state: int, *, only_state: bool
) -> Value:
    """Compute a whole value of which one channel is replaced; as `spread`."""
    shape, op = (channels, *value.shape[1:]), new_op()
    out = program.slot(math.prod(shape), state=state, is_own=not only_state)
    op.outputs = channels
    return program.add_op("fill", value, shape, op, out=out)


def perturb(
    program: Program,
    planes: Value | None,
    inputs: Value | None,
    taps: FoldedConv | None,
    channels: int,
    image: Pair,
    recompute: Op | None = None,
) -> Value:
    """Compute the candidates' planes: those of `planes`, moved by weights.

    planes: None where row 0 lists all weights of the channel.
    inputs: what the weights multiply, from `arrange`; None stands for ones.
    taps: where the weights belong to a convolution or linear layer.
    recompute: how what they multiply is computed from `inputs` instead.
    """
    op = new_op()
    if taps is None:
        op.groups, op.inputs, op.outputs = channels, 1, 1
        op.plane = math.prod(image)
        program.set_tables(op, list(range(math.prod(image))), [0])
    else:
        program.set_tables(op, *geometry.set_layer(op, taps, image))
    if planes is None:
        op.bias = _bias(program, taps)
    if recompute is not None:
        op.recompute = ctypes.addressof(recompute)
    return program.add_op(
        "perturb",
        planes or inputs,
        (1, *image),
        op,
        other=inputs,
        out=program.slot(math.prod(image), is_whole=True),
        flags=FROM_SCRATCH if planes is None else 0,
    )


def recompute_input(
    program: Program,
    value: Value,
    affine: Value | None,
    floor: float,
    layers: tuple[FoldedConv, FoldedConv],
    images: tuple[Pair, Pair],
) -> Op:
    """Return how `perturb` computes a channel of its input where none is stored.

    value: what the layer before reads, from `arrange`.
    affine: scale and shift of each channel, before the floor.
    layers: the layer before, and the swept one.
    images: the size of their outputs.
    """
    op, (before, taps) = new_op(), layers
    op.kind, op.input = KINDS.index("recompute"), value.operand()
    op.other = Operand(-1 if affine is None else affine.slot, -1, 0, floor)
    op.channels, (op.height, op.width) = len(before.unpooled()), images[0]
    program.set_tables(op, *geometry.set_layer(op, before, images[0]))
    geometry.set_arrangement(op, (1, *images[0]), taps, images[1])
    plane = math.prod(geometry.arranged((1, *images[0]), taps, images[1]))
    op.scratch = program.slot(op.padded_height * op.padded_width + plane)
    op.weights = program.copy(before.module, before.unpooled)
    op.bias = _bias(program, before)
    program.pointed_to.append(op)
    return op


def arrange(program: Program, value: Value, taps: FoldedConv, image: Pair) -> Value:
    """Arrange what the weights of a layer multiply for its taps."""
    op, shape = new_op(), geometry.arranged(value.shape, taps, image)
    geometry.set_arrangement(op, value.shape, taps, image)
    op.scratch = program.slot(op.padded_height * op.padded_width)
    op.plane = math.prod(shape[1:])
    return program.add_op("arrange", value, shape, op)


def loss(program: Program, value: Value) -> None:
    """Compute the cross-entropy."""
    program.add_op("loss", program.plain(value, SCORED_ONLY), None, flags=SCORED_ONLY)


def _layer(
    program: Program, value: Value, taps: FoldedConv, image: Pair, planes: int
) -> Op:
    """Return an operation with a layer's weights, and scratch for some planes."""
    op = new_op()
    program.set_tables(op, *geometry.set_layer(op, taps, image))
    geometry.set_arrangement(op, value.shape, taps, image)
    if not isinstance(taps.module, nn.Linear):
        op.plane |= 1  # odd: planes fall into different cache sets
    op.scratch = program.slot(op.padded_height * op.padded_width + planes * op.plane)
    tile = program.library.tile_outputs()
    op.weights = program.copy(
        taps.module, lambda: geometry.packed(taps.unpooled(), taps.groups, tile)
    )
    op.bias = _bias(program, taps)
    return op


def _bias(program: Program, taps: FoldedConv) -> int | None:
    module = taps.module
    return None if module.bias is None else program.copy(module, lambda: module.bias)


def add_step(
    program: Program, network: Network, node: fx.Node, values: dict[fx.Node, Value]
) -> Value:
    """Add one step of a network, for all channels.

    Raises:
        UnsupportedOperation: program.cpp has no such operation.
    """
    kind, module = network.kind(node), network.module(node)
    given = [values[used] for used in network.used_by(node)]
    shape = network.shapes[node]
    if not given:
        raise UnsupportedOperation(f"{node.target!r}, which reads no value")
    if kind in ("conv", "linear"):
        if kind == "linear" and len(shape) != 1:
            raise UnsupportedOperation("a linear layer of sequences")
        image = (1, 1) if kind == "linear" else shape[1:]
        return conv(program, given[0], network.conv_of(node), image)
    if kind == "norm":
        return normalize(program, given[0], module, flags=SCORED_ONLY)
    if kind == "pool" and len(shape) == 3:
        return pool(program, given[0], module, SCORED_ONLY)
    if kind == "flatten":
        value = program.plain(given[0], SCORED_ONLY)
        return replace(value, shape=(math.prod(value.shape), 1, 1))
    if kind == "add" and len({value.shape for value in given}) == 1:
        value, other = given[0], given[-1]
        return program.add_op(kind, value, value.shape, other=other, flags=SCORED_ONLY)
    return unchanged(network, node, given[0])


def unchanged(network: Network, node: fx.Node, value: Value) -> Value:
    """Return the output of a step that needs no pass: identity, ReLU.

    Raises:
        UnsupportedOperation: it needs one, and program.cpp has none for it.
    """
    kind = network.kind(node)
    if kind == "identity":
        return value
    if kind == "elementwise" and is_relu(network, node):
        return replace(value, floor=0.0)
    name = getattr(node.target, "__name__", node.target)
    raise UnsupportedOperation(f"{network.module(node) or name}")


def is_relu(network: Network, node: fx.Node) -> bool:
    """Tell whether a step is ReLU, as a module or a function."""
    module = network.module(node)
    if module is not None:
        return type(module) is nn.ReLU
    return node.target in (torch.relu, F.relu, "relu")
