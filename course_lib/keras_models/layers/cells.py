"""RNN over a stack of cells: each is a recurrent layer of its own."""

from torch import Tensor, nn

from course_lib.keras_models.layers.base import Layer, Shape
from course_lib.keras_models.layers.recurrent import Recurrent
from course_lib.keras_models.registry import keras_layer
from course_lib.keras_models.settings import Settings

GROUPS = {"LSTM": "lstm_cell", "GRU": "gru_cell", "SimpleRNN": "simple_rnn_cell"}


@keras_layer("RNN")
class StackedCells(Layer):
    """Several cells: at every step, each takes the output of the one before.

    So they are layers one after another, which share mask and direction.
    """

    uses_mask = True

    def __init__(self, settings: Settings, *cells: Recurrent) -> None:
        super().__init__(settings)
        self.cells = nn.ModuleList(cells)
        self.return_sequences = settings.flag("return_sequences", False)
        self.return_state = settings.flag("return_state", False)
        self.go_backwards = settings.flag("go_backwards", False)
        settings.only("time_major", False)
        settings.only("reverse_state_order", False)
        self.passes_mask = self.return_sequences
        stateful = settings.flag("stateful", False)
        for cell in cells:
            cell.return_sequences = cell.return_state = True
            cell.stateful = stateful
        self.zero_output = settings.flag("zero_output_for_mask", False)
        settings.ignore("unroll", "num_constants")

    def sublayers(self) -> list[Layer]:
        """Return the cells."""
        return list(self.cells)

    @property
    def group_names(self) -> tuple[str, ...]:
        """Return where files of Keras 3 keep the cells, counted by class."""
        names: list[str] = []
        for cell in self.cells:
            group = f"cell/cells/{GROUPS[cell.keras_class.removesuffix('Cell')]}"
            number = sum(name.startswith(group) for name in names)
            names.append(f"{group}_{number}" if number else group)
        return tuple(names)

    def build(self, shape: Shape, *states: Shape) -> None:
        """Build the cells for (batch, steps, features)."""
        for cell in self.cells:
            cell.build(shape)
            shape = (*shape[:-1], cell.units)

    def forward(
        self, x: Tensor, *states: Tensor, mask: Tensor | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """(batch, steps, features) -> (batch, units), or all steps, and all states."""
        if self.go_backwards:
            x, mask = x.flip(1), None if mask is None else mask.flip(1)
        self.cells[-1].zero_output = self.zero_output
        end: list[Tensor] = []
        for cell in self.cells:
            start, states = states[: cell.states], states[cell.states :]
            x, *own = cell(x, *start, mask=mask)
            end += own
        y = x if self.return_sequences else x[:, -1]
        return (y, *end) if self.return_state else y
