"""What a cycle of a search reports: loss and accuracy on all training data."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn

from course_lib.rso.eager.network import Network
from course_lib.rso.eager.pipeline import run_network
from course_lib.rso.engines import LOW_PRECISION
from course_lib.rso.losses import Loss, loss_sum
from course_lib.rso.minibatches import Minibatches
from course_lib.rso.parallel.processes import Processes


class CycleReport(NamedTuple):
    """One visit to every weight."""

    cycle: int  # from 1
    loss: float  # mean over the training samples, batch norm with batch statistics
    accuracy: float  # of the same pass, in [0, 1]; nan where labels are no classes
    proposals: int
    accepted: float  # share of the weights that moved
    seconds: float
    proposals_a_second: float


def evaluate(
    model: nn.Module,
    network: Network | None,
    minibatches: Minibatches,
    loss: Loss,
    processes: Processes,
) -> tuple[float, float]:
    """Return (mean loss, accuracy) on all mini-batches, in `modes.search_mode`."""
    totals = torch.zeros(3, dtype=torch.float64, device=minibatches.inputs.device)
    is_classes = True
    for inputs, labels in minibatches.all():
        if network is None or inputs.dtype in LOW_PRECISION:
            outputs = model(inputs.clone())
        else:
            outputs = run_network(network, inputs)
        is_classes = outputs.dim() == 2 and labels.dim() == 1
        totals[0] += loss_sum(loss, outputs, labels)
        totals[1] += (outputs.argmax(1) == labels).sum() if is_classes else 0
        totals[2] += len(labels)
    mean, right, samples = processes.total(totals).tolist()
    return mean / samples, right / samples if is_classes else math.nan
