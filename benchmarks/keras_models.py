"""What an imported Keras model costs: loading a large one, and running a small one.

A ResNet-50-sized functional model of 25.6 million weights is loaded from its JSON with
a list of arrays and run once, and loaded from a whole-model `.h5`; a CNN for images of
28x28, channels last, runs beside the same network by hand in PyTorch. Exits with 1
where a bound is missed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import h5py
import numpy as np
import torch
from _timing import complain, measure, median_ratio, parse
from torch import Tensor, nn

from course_lib.device import pick_device
from course_lib.keras_models import load_keras

SECONDS, MEMORY, RATIO = 3.0, 2.0, 1.1


def main() -> int:
    """Measure, print one table, and return 1 where a bound is missed."""
    options, device = parse(__doc__, rounds=200), pick_device()

    print(f"| threads: {options.threads}, on {device} | figure | bound |")
    print("|---|---:|---:|")
    figures = [*large(), *small(device, options.rounds)]
    missed = []
    for name, value, unit, bound in figures:
        print(f"| {name} | {value:.3f} {unit} | {bound if bound else ''} |")
        if bound and value > bound:
            missed.append(f"{name}: {value:.3f} {unit}, wanted {bound}")
    return complain(missed)


# Loading


def large() -> list[tuple[str, float, str, float | None]]:
    """Load and run a model of ResNet-50's size; measure seconds and memory."""
    text = json.dumps(resnet())
    arrays = [np.zeros(shape, np.float32) for shape in shapes(text)]
    weights = sum(array.nbytes for array in arrays)
    before = resident()
    start = perf_counter()
    model = load_keras(text, weights=arrays)
    with torch.no_grad():
        model(torch.zeros(1, 224, 224, 3))
    seconds = perf_counter() - start
    rows = [("load and run 25.6 M weights", seconds, "s", SECONDS)]
    if before:
        grown = (peak() - before) / weights
        rows.append(("its memory over that of its weights", grown, "", MEMORY))
    return [*rows, ("load the same from .h5", from_hdf5(text, arrays), "s", SECONDS)]


def from_hdf5(text: str, arrays: list[np.ndarray]) -> float:
    """Load a whole-model file; measure the median of five in seconds."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.h5"
        with h5py.File(path, "w") as file:
            file.attrs["model_config"] = text
            group, rest = file.create_group("model_weights"), iter(arrays)
            layers = json.loads(text)["config"]["layers"]
            group.attrs["layer_names"] = [layer["name"] for layer in layers]
            for layer in layers:
                inside = group.create_group(layer["name"])
                names = [f"array_{i}" for i in range(len(layer["sizes"]))]
                inside.attrs["weight_names"] = names
                for name in names:
                    inside[name] = next(rest)
        seconds = []
        for _ in range(5):
            start = perf_counter()
            load_keras(path)
            seconds.append(perf_counter() - start)
    return median(seconds)


def shapes(text: str) -> list[tuple[int, ...]]:
    """Return the shapes of Keras's arrays, layer by layer."""
    result = []
    for layer in json.loads(text)["config"]["layers"]:
        config = layer["config"]
        if "sizes" in layer:
            result += [tuple(shape) for shape in layer["sizes"]]
        assert config
    return result


def resnet() -> dict:
    """Return the JSON of ResNet-50, as Keras 2.15 writes it."""
    layers: list[dict] = [
        {
            "class_name": "InputLayer",
            "name": "image",
            "config": {"name": "image", "batch_input_shape": [None, 224, 224, 3]},
            "inbound_nodes": [],
            "sizes": (),
        }
    ]

    def add(kind: str, *inputs: str, sizes: tuple = (), **config: object) -> str:
        name = f"{kind.lower()}_{len(layers)}"
        node = [[[name, 0, 0, {}] for name in inputs]]
        layers.append(
            {
                "class_name": kind,
                "name": name,
                "config": {"name": name, **config},
                "inbound_nodes": node,
                "sizes": sizes,
            }
        )
        return name

    def conv(x: str, before: int, after: int, kernel: int, stride: int = 1) -> str:
        options = {"kernel_size": [kernel] * 2, "strides": [stride] * 2}
        sizes = ((kernel, kernel, before, after), (after,))
        x = add("Conv2D", x, sizes=sizes, filters=after, padding="same", **options)
        return add("BatchNormalization", x, sizes=((after,),) * 4, axis=[3])

    def relu(x: str) -> str:
        return add("Activation", x, activation="relu")

    x = relu(conv("image", 3, 64, 7, 2))
    x = add("MaxPooling2D", x, pool_size=[3, 3], strides=[2, 2], padding="same")
    channels = 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            step = stride if block == 0 else 1
            y = relu(conv(x, channels, width, 1, step))
            y = conv(relu(conv(y, width, width, 3)), width, 4 * width, 1)
            if block == 0:
                x = conv(x, channels, 4 * width, 1, step)
            x, channels = relu(add("Add", x, y)), 4 * width
    x = add("GlobalAveragePooling2D", x)
    x = add("Dense", x, sizes=((2048, 1000), (1000,)), units=1000, activation="softmax")
    config = {"name": "resnet", "layers": layers, "input_layers": [["image", 0, 0]]}
    config["output_layers"] = [[x, 0, 0]]
    return {"class_name": "Functional", "keras_version": "2.15.0", "config": config}


def resident() -> int:
    """Return the bytes of memory in use, 0 where the system does not tell."""
    return status("VmRSS")


def peak() -> int:
    """Return the most bytes of memory that were in use."""
    return status("VmHWM")


def status(key: str) -> int:
    try:
        with open("/proc/self/status") as lines:
            found = [line.split()[1] for line in lines if line.startswith(key)]
        return 1024 * int(found[0])
    except (OSError, IndexError):
        return 0


# Running


def small(
    device: torch.device, rounds: int
) -> list[tuple[str, float, str, float | None]]:
    """Run an imported CNN beside the same one by hand, on batches of 1 and 64."""
    imported = load_keras(cnn()).to(device)
    hand = ByHand(imported).to(device).eval()
    rows = []
    for batch in (1, 64):
        x = torch.randn(batch, 28, 28, 1, device=device)
        torch.testing.assert_close(imported(x), hand(x), rtol=1e-4, atol=1e-5)
        ways = {"imported": run(imported, x), "hand": run(hand, x)}
        times = measure(ways, rounds)
        for name, seconds in times.items():
            rows.append(
                (f"CNN, batch {batch}, {name}", 1e3 * median(seconds), "ms", None)
            )
        ratio = median_ratio(times["imported"], times["hand"])
        rows.append((f"CNN, batch {batch}, ratio", ratio, "", RATIO))
    return rows


def run(model: nn.Module, x: Tensor):
    def forward() -> None:
        with torch.inference_mode():
            model(x)

    return forward


def cnn() -> dict:
    """Return a Sequential of Keras 2.15 for images of 28x28, channels last."""
    same = {"kernel_size": [3, 3], "padding": "same", "activation": "relu"}
    pool = ("MaxPooling2D", {"pool_size": [2, 2]})
    shape = {"batch_input_shape": [None, 28, 28, 1]}
    layers = [
        ("Conv2D", {"filters": 32, **same, **shape}),
        ("BatchNormalization", {"axis": [3]}),
        pool,
        ("Conv2D", {"filters": 64, **same}),
        ("BatchNormalization", {"axis": [3]}),
        pool,
        ("Flatten", {}),
        ("Dense", {"units": 128, "activation": "relu"}),
        ("Dense", {"units": 10, "activation": "softmax"}),
    ]
    entries = [
        {"class_name": kind, "config": {"name": f"{kind.lower()}_{i}", **config}}
        for i, (kind, config) in enumerate(layers)
    ]
    config = {"name": "cnn", "layers": entries}
    return {"class_name": "Sequential", "keras_version": "2.15.0", "config": config}


class ByHand(nn.Module):
    """The same network as one writes it in PyTorch, with the same weights."""

    def __init__(self, imported: nn.Module) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.BatchNorm2d(32, eps=1e-3),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.BatchNorm2d(64, eps=1e-3),
            nn.MaxPool2d(2),
        )
        self.first, self.last = nn.Linear(64 * 49, 128), nn.Linear(128, 10)
        state = imported.state_dict()
        mine = self.state_dict()
        names = [name for name in mine if not name.endswith("num_batches_tracked")]
        filled = dict(zip(names, state.values(), strict=True))
        self.load_state_dict(filled, strict=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, rows, columns, 1) -> (batch, 10); Keras flattens channels last."""
        x = self.features(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).flatten(1)
        return torch.softmax(self.last(torch.relu(self.first(x))), 1)


if __name__ == "__main__":
    sys.exit(main())
