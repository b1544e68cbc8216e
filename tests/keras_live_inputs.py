"""What keras_live_operations.py and keras_live_tensorflow.py share: inputs, outputs."""

import numpy as np

SHAPES = {"x": (4,), "y": (4,), "p": (4,), "u": (4,), "i": (4,)}
SHAPES |= {"m": (4, 4), "n": (4, 4), "im": (5, 6, 3)}


def array(name, shape, rng):
    """Draw three samples: whole numbers for i, above 0 for p, in [0, 1] for images."""
    shape = (3, *shape)
    if name == "i":
        return rng.integers(0, 4, shape).astype("int32")
    x = rng.normal(size=shape).astype("float32")
    if name == "p":
        return np.abs(x) + np.float32(0.3)
    return 1 / (1 + np.exp(-x)) if name in ("u", "im", "ch") else x


def outputs(text, names):
    """Evaluate expressions; a comma or a line ends one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    rows = (eval(f"[{line}]", names) for line in lines)
    return [output for row in rows for output in row]


def record(case, model, arrays, values):
    """Write one case of the tests: the model, its inputs and its outputs."""
    case.mkdir(exist_ok=True)
    (case / "model.json").write_text(model.to_json())
    np.savez(case / "weights.npz")
    found = {f"x{i}": x for i, x in enumerate(arrays)}
    found |= {f"y{i}": np.asarray(y) for i, y in enumerate(values)}
    np.savez_compressed(case / "io.npz", **found)
