"""A row of the table: one function, and its name in each kind of file.

A row is a function, then what writes it: classes of `keras.ops` in Keras 3, functions
of TensorFlow in tf.keras 2.4 to 2.15, ops of TensorFlow's graph in tf.keras of
TensorFlow 2.0 to 2.3. Several names have commas between them, each with what differs:

    theirs=ours     their name of an argument
    ours:=value     their default
    name            the arguments that the inputs of a graph's op are, in order, where
                    they are not the required ones; *parts takes a list of tensors

A function's positional parameters are tensors, its keyword-only ones are settings.
"""

from collections.abc import Callable
from typing import NamedTuple


class Row(NamedTuple):
    """One operation; its columns are described above."""

    function: Callable
    keras: str = ""
    tensorflow: str = ""
    graph: str = ""

    @property
    def name(self) -> str:
        """Return the first of its names."""
        return (self.keras or self.tensorflow).split()[0].strip(",")
