"""Run by test_keras_live in a process of its own: what Keras 3 computes, on torch.

    KERAS_BACKEND=torch python keras_live.py FOLDER COUNT

writes COUNT models as N.keras, the same after one step of SGD as N_after.keras, and
N.npz with inputs, outputs and penalty. Their layers are drawn at random.
"""

import sys
from pathlib import Path

import keras
import numpy as np
from keras import layers, ops, regularizers

RANDOM = 30  # models of the first three kinds; those of films come after them


class Draw:
    """Random models; the seed decides all of them."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def one(self, *options):
        return options[self.rng.integers(len(options))]

    def common(self, *kinds):
        """An activation, and a regularizer for some of a layer's variables."""
        options = {"activation": self.one("relu", "tanh", "gelu", "elu", "softmax")}
        for kind in kinds:
            made = self.one(None, regularizers.L2(0.05), regularizers.L1L2(0.02, 0.03))
            options[f"{kind}_regularizer"] = made
        return options

    def conv(self):
        return layers.Conv2D(
            self.one(3, 4),
            (self.one(2, 3), self.one(1, 3)),
            strides=self.one(1, 2, (2, 1)),
            padding=self.one("same", "valid"),
            **self.common("kernel", "bias"),
        )

    def image_layer(self):
        same = {"padding": "same"}
        return self.one(
            self.conv,
            lambda: layers.DepthwiseConv2D(3, strides=2, **same, **self.common()),
            lambda: layers.SeparableConv2D(4, 3, **same, **self.common("pointwise")),
            # Kernels of 3 with "same" are wrong in its torch backend up to 3.12.
            lambda: layers.Conv2DTranspose(3, self.one(2, 4), strides=2, **same),
            lambda: layers.BatchNormalization(axis=self.one(-1, 1)),
            lambda: layers.LayerNormalization(),
            lambda: layers.PReLU(shared_axes=self.one(None, [1, 2])),
            lambda: layers.MaxPooling2D(2, strides=self.one(1, 2), **same),
            # With "same" Keras's torch backend, unlike its others, counts the padding.
            lambda: layers.AveragePooling2D((2, 1), strides=1),
            lambda: layers.ZeroPadding2D(((1, 0), (2, 1))),
            lambda: layers.UpSampling2D((1, 2)),
            lambda: layers.Conv2D(4, 2, dilation_rate=2, **same),
            lambda: layers.Dropout(0.3),
            lambda: layers.GroupNormalization(self.one(1, -1)),
            lambda: layers.UnitNormalization(axis=self.one(-1, [1, 2])),
            lambda: layers.SpectralNormalization(self.conv()),
            lambda: layers.Resizing(7, 6, crop_to_aspect_ratio=self.one(True, False)),
            lambda: layers.UpSampling2D((2, 1), interpolation="bilinear"),
        )()

    def images(self):
        x = start = keras.Input((9, 8, 3))
        for _ in range(5):
            x = self.image_layer()(x)
        head = self.one(layers.Flatten, layers.GlobalAveragePooling2D)
        return keras.Model(start, layers.Dense(3, **self.common("kernel"))(head()(x)))

    def recurrent(self, units, **more):
        kind = self.one(layers.LSTM, layers.GRU, layers.SimpleRNN)
        options = self.common("kernel", "recurrent", "bias")
        options.pop("activation")
        return kind(units, **options, **more)

    def sequence_layer(self):
        return self.one(
            lambda: self.recurrent(4, return_sequences=True),
            lambda: self.recurrent(4, return_sequences=True, go_backwards=True),
            lambda: layers.Bidirectional(
                self.recurrent(3, return_sequences=True),
                merge_mode=self.one("concat", "sum", "mul", "ave"),
            ),
            lambda: layers.TimeDistributed(layers.Dense(5, **self.common("activity"))),
            lambda: layers.Conv1D(4, 3, padding="causal", **self.common("kernel")),
            lambda: layers.Conv1D(4, 2, strides=2, padding="same"),
            lambda: layers.RMSNormalization(epsilon=self.one(1e-6, 0.1)),
            lambda: layers.EinsumDense(
                "...x,xy->...y", 5, bias_axes="y", **self.common("kernel", "bias")
            ),
            lambda: layers.Identity(),
            lambda: lambda x: self.attend(x),
            lambda: lambda x: layers.Attention(use_scale=True)([x, x]),
            lambda: lambda x: layers.AdditiveAttention()([x, x]),
            lambda: layers.RNN(
                [layers.LSTMCell(3, **self.common("kernel")), layers.GRUCell(4)],
                return_sequences=True,
            ),
        )()

    def attend(self, x):
        causal = self.one(True, False)
        options = self.common("kernel", "bias")
        options.pop("activation")
        layer = layers.MultiHeadAttention(2, 3, value_dim=self.one(None, 2), **options)
        return layer(x, x, use_causal_mask=causal)

    def sequences(self):
        x = start = keras.Input((10, 4))
        if self.one(True, False):
            x = layers.Masking()(x)
            x = self.recurrent(4, return_sequences=True)(x)
        for _ in range(3):
            x = self.sequence_layer()(x)
        return keras.Model(start, layers.Dense(2)(self.recurrent(3)(x)))

    def films(self):
        """Convolutions that remember, over one to three axes of space."""
        rank = self.one(1, 2, 3)
        kind = (layers.ConvLSTM1D, layers.ConvLSTM2D, layers.ConvLSTM3D)[rank - 1]
        padding = self.one("same", "valid")
        options = self.common("kernel", "recurrent", "bias")
        options |= {"kernel_size": self.one(2, 3), "padding": padding}
        # A dilation and a stride don't go together.
        options |= self.one({"strides": 2}, {"dilation_rate": 2}, {})
        options |= {"recurrent_activation": self.one("sigmoid", "hard_sigmoid")}
        options |= {"go_backwards": self.one(True, False)}
        x = start = keras.Input((4, *[6] * rank, 2))
        if padding == "same":
            x = kind(2, return_sequences=True, kernel_size=2, padding="same")(x)
        x = layers.Flatten()(kind(3, **options)(x))
        return keras.Model(start, layers.Dense(2)(x))

    def graphs(self):
        """Shared layers, a nested model called twice, merges and operations."""
        inputs = [keras.Input((6,)), keras.Input((6,))]
        shared = layers.Dense(6, **self.common("kernel", "activity"))
        encoder = keras.Sequential(
            [keras.Input((6,)), layers.Dense(6, **self.common("kernel", "bias"))]
        )
        tensors = list(inputs)
        for _ in range(6):
            a, b = self.rng.integers(len(tensors), size=2)
            x, y = tensors[a], tensors[b]
            step = self.one(
                lambda x, y: shared(x),
                lambda x, y: encoder(x),
                lambda x, y: layers.Add()([x, y, x]),
                lambda x, y: layers.Multiply()([x, y]),
                lambda x, y: layers.Maximum()([x, y]),
                lambda x, y: x * 0.5 - y,
                lambda x, y: ops.tanh(x) + ops.sum(y, axis=-1, keepdims=True),
                lambda x, y: ops.concatenate([x[:, 2:], y[:, :2]], axis=1),
                lambda x, y: layers.BatchNormalization()(x + y),
                lambda x, y: layers.Dense(6, **self.common("kernel", "bias"))(x),
            )
            tensors.append(step(x, y))
        outputs = [layers.Concatenate()([*tensors[2:], shared(inputs[0])])]
        outputs.append(layers.Dense(2)(encoder(inputs[1])))
        return keras.Model(inputs, outputs)

    def array(self, shape):
        return self.rng.normal(size=shape).astype("float32")

    def fill(self, model):
        """Give every variable numbers of its own; a variance is above 0."""
        for variable in model.weights:
            array = 0.4 * self.array(variable.shape)
            positive = "variance" in variable.name
            variable.assign(np.abs(array) + 0.3 if positive else array)


def record(model, draw, folder, number):
    arrays = [draw.array((3, *x.shape[1:])) for x in model.inputs]
    if arrays[0].ndim == 3:
        arrays[0][1, 6:] = 0  # steps that a mask leaves out
    model.save(folder / f"{number}.keras")
    outputs = model(arrays if len(arrays) > 1 else arrays[0], training=False)
    outputs = outputs if isinstance(outputs, list) else [outputs]
    cost = sum(model.losses)  # a number where no layer has a penalty
    (sum((y * y).mean() for y in outputs) + cost).backward()
    for variable in model.trainable_weights:
        gradient = variable.value.grad
        if gradient is not None:
            variable.assign(variable.value.detach() - 0.1 * gradient)
    model.save(folder / f"{number}_after.keras")
    found = {f"x{i}": x for i, x in enumerate(arrays)}
    found |= {f"y{i}": y.detach().cpu().numpy() for i, y in enumerate(outputs)}
    np.savez(
        folder / f"{number}.npz",
        reg_loss=float(getattr(cost, "detach", lambda: cost)()),
        **found,
    )


def main(folder, count):
    for number in range(count):
        draw = Draw(number)
        kinds = draw.images, draw.sequences, draw.graphs
        model = draw.films() if number >= RANDOM else kinds[number % 3]()
        draw.fill(model)
        record(model, draw, folder, number)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
