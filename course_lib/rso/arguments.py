"""What a search is asked for: checks of its arguments, before anything is changed."""

from collections.abc import Mapping
from typing import Any

from course_lib.data import Split
from course_lib.rso.minibatches import KINDS
from course_lib.rso.modes import LOSSES
from course_lib.rso.precision import NAMES as PRECISIONS
from course_lib.rso.proposals import SAMPLERS

ENGINES = ("auto", "reference", "cached", "incremental")
ORDERS = ("output_first", "input_first", "random")
SIGMAS = ("measured", "analytic")
_NAMES = {
    "engine": ENGINES,
    "minibatches": KINDS,
    "order": ORDERS,
    "sigma": SIGMAS,
    "sampler": tuple(SAMPLERS),
    "precision": PRECISIONS,
    "loss": tuple(LOSSES),
}
_FUNCTIONS = ("sampler", "loss")  # may be functions too


def check(split: Split, arguments: Mapping[str, Any]) -> None:
    """Raise ValueError at the first argument of RSO that is out of range."""
    for name, known in _NAMES.items():
        _check_name(name, arguments[name], known)
    for name in ("batch_size", "cycles", "proposals_at_once"):
        if not _is_int(arguments[name]) or arguments[name] < 1:
            raise ValueError(
                f"RSO: got {name}={arguments[name]!r}; wanted an int >= 1."
            )
    for name in ("train_norm", "initialize", "compiled"):
        if not isinstance(arguments[name], bool):
            raise ValueError(
                f"RSO: got {name}={arguments[name]!r}; wanted True or False."
            )
    if not _is_int(arguments["seed"]):
        raise ValueError(f"RSO: got seed={arguments['seed']!r}; wanted an int.")
    if arguments["batch_size"] > len(split):
        raise ValueError(
            f"RSO: got batch_size={arguments['batch_size']}, but the split has "
            f"{len(split)} samples. Take a smaller batch_size."
        )
    final, decay = arguments["final_sigma"], arguments["weight_decay"]
    if not 0 < final <= 1:
        raise ValueError(f"RSO: got final_sigma={final}; wanted it in (0, 1].")
    if not 0 <= decay < 1:
        raise ValueError(f"RSO: got weight_decay={decay}; wanted it in [0, 1).")


def _check_name(name: str, value: object, known: tuple[str, ...]) -> None:
    if value in known or (callable(value) and name in _FUNCTIONS):
        return
    also = ", or a function" if name in _FUNCTIONS else ""
    raise ValueError(
        f"RSO: got {name}={value!r}; wanted one of {', '.join(map(repr, known))}{also}."
    )


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
