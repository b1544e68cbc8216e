"""Checks of arguments that many modules share."""


def is_int(value: object) -> bool:
    """Return whether it is an int; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def require_ints(place: str, least: int | None = 1, **values: object) -> None:
    """Raise ValueError unless each value is an int >= least (any int for None)."""
    for name, value in values.items():
        if not is_int(value) or (least is not None and value < least):
            wanted = "an int" if least is None else f"an int >= {least}"
            raise ValueError(f"{place}: got {name}={value!r}; wanted {wanted}.")
