"""Products of matrices, and parts of them."""

from typing import Any

import torch
from torch import Tensor

from course_lib.keras_models.layers.operations.row import Row


def _matmul(
    a: Tensor,
    b: Tensor,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    adjoint_a: bool = False,
    adjoint_b: bool = False,
    output_type: Any = None,
) -> Tensor:
    a = a.mT if transpose_a or adjoint_a else a
    b = b.mT if transpose_b or adjoint_b else b
    return a @ b


def _tensordot(a: Tensor, b: Tensor, *, axes: Any = 2) -> Tensor:
    if isinstance(axes, tuple):
        axes = [list(part) if isinstance(part, tuple) else [part] for part in axes]
    return torch.tensordot(a, b, dims=axes)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return numpy's dot: the last axis of a with the last but one of b."""
    if b.dim() < 2:
        return a @ b if b.dim() else a * b
    return torch.tensordot(a, b, dims=[[-1], [-2]])


def _diagonal(x: Tensor, *, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Tensor:
    return x.diagonal(offset, axis1, axis2)


def _trace(x: Tensor, *, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Tensor:
    return x.diagonal(offset, axis1, axis2).sum(-1)


def _inverse(x: Tensor, *, adjoint: bool = False) -> Tensor:
    return torch.linalg.inv(x.mT if adjoint else x)


def _band_part(x: Tensor, *, num_lower: int, num_upper: int) -> Tensor:
    """Return the matrices with 0 outside of a band; below 0 all is in it."""
    x = x if num_lower < 0 else x.triu(-num_lower)
    return x if num_upper < 0 else x.tril(num_upper)


ROWS = (
    Row(
        _matmul,
        "Matmul",
        "linalg.matmul",
        "MatMul, BatchMatMulV2 adj_x=adjoint_a adj_y=adjoint_b",
    ),
    Row(lambda parts, *, subscripts: torch.einsum(subscripts, *parts), "Einsum *parts"),
    Row(_dot, "Dot"),
    Row(lambda a, b: torch.inner(a, b), "Inner"),
    Row(lambda a, b: torch.outer(a.flatten(), b.flatten()), "Outer"),
    Row(_tensordot, "Tensordot", "tensordot"),
    Row(_trace, "Trace", "linalg.trace axis1:=-2 axis2:=-1"),
    Row(_diagonal, "Diagonal", "linalg.diag_part k=offset axis1:=-2 axis2:=-1"),
    Row(lambda x, *, k=0: x.tril(k), "Tril"),
    Row(lambda x, *, k=0: x.triu(k), "Triu"),
    Row(torch.linalg.det, "Det", "linalg.det"),
    Row(_inverse, "Inv", "linalg.inv"),
    Row(lambda a, b: torch.linalg.solve(a, b), "Solve"),
    Row(_band_part, "", "linalg.band_part"),
    Row(lambda x: torch.diag_embed(x), "", "linalg.diag"),
    Row(lambda x: x.mT, "", "linalg.matrix_transpose"),
    Row(lambda a, b: torch.linalg.cross(a, b), "", "linalg.cross"),
)
