"""Run by hand in each Keras: what its layers make of masks, a column of masks.json.

    python keras_live_masks.py masks.json

Each entry says what comes out of a layer whose inputs have masks: "passes" (the first
input's mask), "ends" (no mask), "changes" and the new mask, or "raises"; and "uses"
where the mask changes the output. The layers are in `LAYERS`, in the words of Keras 2
and 3, and in `OLD_LAYERS`, in those of Keras 1.
"""

import json
import sys

import numpy as np


def layer(kind, rank=3, masks="1", *, label=None, **config):
    """A layer, the rank of its inputs, which of them are masked, and its settings."""
    return label or kind, kind, rank, masks, config


def inside(kind, **config):
    return {"class_name": kind, "config": config}


def wrapped(kind, rank, inner, **config):
    label = f"{kind} of {inner}"
    return layer(kind, rank, label=label, layer=inside(inner, **config))


def plain(names, rank=3, **config):
    return [layer(name, rank, **config) for name in names.split()]


def merged(names, prefix="", **config):
    found = []
    for name in names.split():
        settings = {"mode": name, **config} if prefix else config
        for masks, word in (("11", "both"), ("10", "first"), ("01", "second")):
            label = f"{prefix} {name}, {word}"
            found.append(
                layer(prefix or name, 3, masks, label=label.strip(), **settings)
            )
    return found


def recurrent(units):
    found = []
    for kind in ("SimpleRNN", "LSTM", "GRU"):
        found.append(layer(kind, **units))
        many = {"return_sequences": True, **units}
        found.append(layer(kind, label=kind + ", sequences", **many))
        found.append(wrapped("Bidirectional", 3, kind, **many))
        found.append(wrapped("TimeDistributed", 4, kind, **many))
    return found


COMMON = [
    *plain("Flatten LeakyReLU ELU PReLU ThresholdedReLU Masking BatchNormalization"),
    *plain("GlobalMaxPooling1D GlobalAveragePooling1D UpSampling1D"),
    layer("ZeroPadding1D", padding=1),
    *plain("Cropping1D ActivityRegularization"),
    *plain("GlobalMaxPooling2D GlobalAveragePooling2D UpSampling2D", 4),
    layer("ZeroPadding2D", 4, padding=[1, 1]),
    layer("Cropping2D", 4),
    *plain("UpSampling3D ZeroPadding3D Cropping3D", 5),
    layer("Activation", activation="tanh"),
    layer("Reshape", target_shape=[3, 4]),
    layer("Permute", dims=[2, 1]),
    layer("RepeatVector", 2, n=3),
    layer("Embedding", input_dim=9, output_dim=2),
    layer("Embedding", label="Words", input_dim=9, output_dim=2, mask_zero=True),
    wrapped("TimeDistributed", 4, "Flatten"),
]
JOINED = merged("Concatenate")
UNITS = {"units": 2}
CELLS = [inside("LSTMCell", **UNITS), inside("GRUCell", **UNITS)]
LAYERS = [
    *COMMON,
    *recurrent(UNITS),
    *plain("Softmax ReLU LayerNormalization UnitNormalization RMSNormalization"),
    *plain("GlobalMaxPooling3D GlobalAveragePooling3D", 5),
    *plain("Identity Normalization"),
    *plain("MaxPooling1D AveragePooling1D", pool_size=2),
    *plain("MaxPooling2D AveragePooling2D", 4, pool_size=2),
    *plain("MaxPooling3D AveragePooling3D", 5, pool_size=2),
    layer("Dense", **UNITS),
    layer("GroupNormalization", groups=1),
    layer("Rescaling", scale=2.0),
    *plain("Dropout GaussianDropout AlphaDropout SpatialDropout1D", rate=0.5),
    layer("SpatialDropout2D", 4, rate=0.5),
    layer("SpatialDropout3D", 5, rate=0.5),
    layer("GaussianNoise", stddev=0.5),
    *plain("Conv1D Conv1DTranspose SeparableConv1D", filters=2, kernel_size=2),
    *plain("LocallyConnected1D", filters=2, kernel_size=2),
    *plain("Conv2D Conv2DTranspose SeparableConv2D", 4, filters=2, kernel_size=2),
    *plain("LocallyConnected2D", 4, filters=2, kernel_size=2),
    *plain("Conv3D Conv3DTranspose", 5, filters=2, kernel_size=2),
    layer("DepthwiseConv1D", 3, kernel_size=2),
    layer("DepthwiseConv2D", 4, kernel_size=2),
    layer("ConvLSTM1D", 4, filters=2, kernel_size=2),
    layer("ConvLSTM2D", 5, filters=2, kernel_size=2),
    layer("EinsumDense", equation="btx,xy->bty", output_shape=[None, 2]),
    wrapped("TimeDistributed", 3, "Dense", **UNITS),
    wrapped("TimeDistributed", 4, "BatchNormalization"),
    wrapped("TimeDistributed", 5, "Conv2D", filters=2, kernel_size=2),
    wrapped("TimeDistributed", 4, "GlobalAveragePooling1D"),
    wrapped("SpectralNormalization", 3, "Dense", **UNITS),
    wrapped("SpectralNormalization", 3, "Conv1D", filters=2, kernel_size=2),
    layer("RNN", cell=CELLS),
    layer("RNN", label="RNN, sequences", cell=CELLS, return_sequences=True),
    *merged("Add Subtract Multiply Average Maximum Minimum"),
    *JOINED,
    *merged("Attention AdditiveAttention"),
    *merged("Dot", axes=2),
    *[("Steps: " + label, *rest, {"axis": 1}) for label, *rest, _ in JOINED],
    *merged("MultiHeadAttention", num_heads=2, key_dim=2),
    *merged(
        "GroupQueryAttention", num_query_heads=2, head_dim=2, num_key_value_heads=1
    ),
    layer("Resizing", 4, height=2, width=2),
    layer("CenterCrop", 4, height=2, width=2),
    layer("RandomCrop", 4, height=2, width=2),
    layer("RandomFlip", 4),
    *plain("RandomRotation RandomContrast RandomBrightness RandomWidth", 4, factor=0.1),
    *plain("RandomHeight RandomHue RandomSaturation RandomSharpness", 4, factor=0.1),
    *plain("RandomColorDegeneration RandomPosterization", 4, factor=0.1),
    *plain("RandomShear RandomGrayscale RandomColorJitter RandomPerspective", 4),
    *plain("RandomElasticTransform RandomErasing RandomGaussianBlur RandomInvert", 4),
    *plain("MixUp CutMix AugMix RandAugment", 4),
    *plain("LayerScale", init_values=0.5, projection_dim=3),
    layer("StochasticDepth", drop_path_rate=0.5),
    *merged("CustomScaleLayer", scale=0.5),
    layer("RandomZoom", 4, height_factor=0.1),
    layer("RandomTranslation", 4, height_factor=0.1, width_factor=0.1),
    layer("CategoryEncoding", 2, num_tokens=9, output_mode="count"),
    layer("Discretization", bin_boundaries=[1.5, 2.5]),
    layer("IntegerLookup", vocabulary=[1, 2, 3]),
]
OLD_UNITS = {"output_dim": 2}
OLD_LAYERS = [
    *COMMON,
    *recurrent(OLD_UNITS),
    *plain("SReLU ParametricSoftplus MaxPooling1D AveragePooling1D"),
    *plain("MaxPooling2D AveragePooling2D", 4),
    *plain("MaxPooling3D AveragePooling3D", 5),
    layer("Dense", 2, **OLD_UNITS),
    layer("MaxoutDense", 2, **OLD_UNITS),
    layer("TimeDistributedDense", **OLD_UNITS),
    layer("Highway", 2),
    *plain("Dropout GaussianDropout SpatialDropout1D", p=0.5),
    layer("SpatialDropout2D", 4, p=0.5),
    layer("SpatialDropout3D", 5, p=0.5),
    layer("GaussianNoise", sigma=0.5),
    *plain("Convolution1D LocallyConnected1D", nb_filter=2, filter_length=2),
    *plain("Convolution2D LocallyConnected2D", 4, nb_filter=2, nb_row=2, nb_col=2),
    *plain("SeparableConvolution2D", 4, nb_filter=2, nb_row=2, nb_col=2),
    wrapped("TimeDistributed", 3, "Dense", **OLD_UNITS),
    *merged("sum mul ave max concat", "Merge"),
]


def samples(rank, masks):
    """Whole numbers from 1 to 4; in masked inputs some steps are 0."""
    found = []
    for number, mask in enumerate(masks):
        shape = (2,) + (4,) * (rank - 2) + (3,)
        x = (np.arange(np.prod(shape)) * 7 % 4 + 1).reshape(shape).astype("float32")
        if mask == "1":
            x[1, 2 - number :: 1 + number] = 0
        found.append(x)
    return found


def entry(mask, given, changed):
    """Put into words what became of a mask."""
    if mask is None:
        word = "ends"
    elif given is not None and mask.shape == given.shape and (mask == given).all():
        word = "passes"
    else:
        rows = mask.reshape(len(mask), -1).astype(int)
        word = "changes " + " ".join("".join(map(str, row)) for row in rows)
    return word + ", uses" * changed


def make(layers, kind, config):
    config = dict(config)
    if "layer" in config:
        inner = config["layer"]
        config["layer"] = make(layers, inner["class_name"], inner["config"])
    if "cell" in config:
        config["cell"] = [
            make(layers, cell["class_name"], cell["config"]) for cell in config["cell"]
        ]
    if kind in ("LayerScale", "StochasticDepth", "CustomScaleLayer"):
        from keras.src.applications import convnext, inception_resnet_v2

        layers = inception_resnet_v2 if kind == "CustomScaleLayer" else convnext
    while not hasattr(layers, kind):  # tf.keras 2.5 has some of them further inside
        layers = getattr(layers, "experimental", None) or layers.preprocessing
    return getattr(layers, kind)(**config)


def call(made, kind, tensors):
    random = ("Random", "MixUp", "CutMix", "AugMix", "RandAug")
    options = {"training": False} if kind.startswith(random) else {}
    if kind in ("MultiHeadAttention", "GroupQueryAttention"):
        return made(*tensors)
    return made(tensors if len(tensors) > 1 else tensors[0], **options)


def run_graph(layers, kind, rank, masks, config):
    """Keras 1 and 2: build a graph and run it."""
    from keras import backend

    backend.clear_session()

    arrays = samples(rank, masks)
    inputs = [layers.Input(x.shape[1:]) for x in arrays]
    masked = [
        layers.Masking()(x) if mask == "1" else x
        for x, mask in zip(inputs, masks)  # noqa: B905
    ]
    made = make(layers, kind, config)
    other = call(made, kind, inputs)
    made = make(layers, kind, config) if kind == "Merge" else made  # it has one call
    try:
        y = call(made, kind, masked)
    except Exception as error:
        report(kind, error)
        return "raises"
    mask = made.get_output_mask_at(y._keras_history[1])
    found = [] if mask is None else [mask]
    given = [layers.Masking().compute_mask(x) for x in inputs[:1]]
    function = backend.function(
        [*inputs, backend.learning_phase()], [y, other, *given, *found]
    )
    try:
        y, other, given, *found = function([*arrays, 0])
    except Exception as error:
        report(kind, error)
        return "raises"
    given = given if masks[0] == "1" else None
    return entry(
        found[0] if found else None, given, not np.allclose(y, other, atol=1e-5)
    )


def to_numpy(tensor):
    tensor = tensor.detach() if hasattr(tensor, "detach") else tensor
    return None if tensor is None else tensor.numpy()


def run_eager(layers, kind, rank, masks, config):
    """tf.keras and Keras 3: call the layers."""
    arrays = samples(rank, masks)
    made = make(layers, kind, config)
    pairs = list(zip(arrays, masks))  # noqa: B905
    tensors = [layers.Masking(mask_value=-1.0)(x) for x in arrays]
    for x in tensors:
        x._keras_mask = None
    other = call(made, kind, tensors)
    masked = [
        layers.Masking()(x) if m == "1" else t
        for (x, m), t in zip(pairs, tensors)  # noqa: B905
    ]
    given = to_numpy(getattr(masked[0], "_keras_mask", None))
    try:
        y = call(made, kind, masked)
    except Exception as error:
        report(kind, error)
        return "raises"
    changed = not np.allclose(to_numpy(y), to_numpy(other), atol=1e-5)
    return entry(to_numpy(getattr(y, "_keras_mask", None)), given, changed)


def main(path):
    try:
        import tensorflow

        is_tf = tensorflow.__version__ >= "2"
    except ImportError:
        is_tf = False
    if is_tf:
        from tensorflow.keras import layers

        version = tensorflow.__version__.rpartition(".")[0] + ".0"
    else:
        import keras
        from keras import layers

        version = keras.__version__
    run = run_eager if is_tf or version >= "3" else run_graph
    with open(path) as file:
        table = json.load(file)
    for label, *rest in OLD_LAYERS if version < "2" else LAYERS:
        row = table.setdefault(label, {})
        for versions in row.values():
            versions[:] = [other for other in versions if other != version]
        try:
            row.setdefault(run(layers, *rest), []).append(version)
        except Exception as error:  # it does not run without a mask either
            report(label, error)
    rows = []
    for label, row in table.items():
        row = {word: versions for word, versions in row.items() if versions}
        rows.append(f"{json.dumps(label)}: {json.dumps(row)}")
    with open(path, "w") as file:
        file.write("{\n" + ",\n".join(rows) + "\n}\n")


def report(kind, error):
    """Say why a layer did not run, if asked to."""
    if "-v" in sys.argv:
        print(kind, repr(error)[:200])


if __name__ == "__main__":
    main(sys.argv[1])
