"""Run by hand with Keras 3 on torch: the cases 3.15_ops_*, of keras.ops.

    KERAS_BACKEND=torch python keras_live_operations.py FOLDER [GROUP ...]

Each expression below becomes an output of the model that bears its group's name.
"""

import sys
from pathlib import Path

import keras
import numpy as np
from keras import ops  # noqa: F401  (the expressions use it)
from keras.src.ops.numpy import Abs  # noqa: F401
from keras_live_inputs import SHAPES, array, outputs, record

KERNEL = np.linspace(-1, 1, 24, dtype="float32").reshape(2, 2, 3, 2)
FIRST = "channels_first"
GROUPS = {
    "numbers": """
        ops.absolute(x), abs(x), ops.negative(x), ops.exp(x), ops.expm1(x), ops.log(p)
        ops.log1p(p), ops.log2(p), ops.log10(p), ops.sqrt(p), ops.rsqrt(p)
        ops.square(x)
        ops.reciprocal(p), ops.sign(x), ops.floor(x), ops.ceil(x), ops.round(x, 1)
        ops.trunc(3 * x), ops.sin(x), ops.cos(x), ops.tan(x), ops.sinh(x), ops.cosh(x)
        ops.tanh(x), ops.arcsin(u), ops.arccos(u), ops.arctan(x), ops.arcsinh(x)
        ops.arccosh(p + 1), ops.arctanh(u), ops.erf(x), ops.isfinite(x), ops.isnan(x)
        ops.isinf(x), ops.logical_not(x > 0), ops.ones_like(x), ops.zeros_like(x)
        ops.stop_gradient(x), ops.relu(x), ops.relu6(9 * x), ops.sigmoid(x)
        ops.softplus(x), ops.softsign(x), ops.silu(x), ops.log_sigmoid(x)
        ops.hard_sigmoid(x), ops.hard_silu(x), ops.hard_tanh(x), ops.tanh_shrink(x)
        ops.selu(x), ops.sparse_plus(x), ops.sparse_sigmoid(x), ops.gelu(x)
        ops.gelu(x, False), ops.leaky_relu(x), ops.leaky_relu(x, 0.1), ops.elu(x, 0.5)
        ops.celu(x, 2.0), ops.hard_shrink(x), ops.soft_shrink(x, 0.3), ops.squareplus(x)
        ops.clip(x, -0.5, 0.5), ops.cast(9 * x, "int32"), ops.cast(x > 0, "float32")
        ops.cbrt(x), ops.copy(x), ops.deg2rad(x), ops.rad2deg(x), ops.exp2(x)
        ops.signbit(x), ops.nan_to_num(x), ops.full_like(x, 2.0), ops.erfinv(u)
        ops.threshold(x, 0.2, -1.0), ops.convert_to_tensor(x)
        ops.saturate_cast(500 * x, "uint8"), ops.sinc(x), ops.fabs(x), ops.erfc(x)
        ops.ones_like(x, dtype="int32"), ops.cast(x, "float16"), ops.cast(x, "float64")
        ops.round(ops.cast(i, "float32") / 2), ops.clip(x, 0.5, -0.5), Abs()(x)
    """,
    "pairs": """
        ops.add(x, y), ops.subtract(x, y), ops.multiply(x, y), ops.divide(x, p)
        ops.true_divide(x, p), ops.floor_divide(x, p), ops.mod(x, p), ops.power(p, x)
        ops.maximum(x, y), ops.minimum(x, 0.5), x > y, x >= y, x < y, x <= y
        ops.equal(i, 2), ops.not_equal(i, 2), ops.logical_and(x > 0, y > 0)
        ops.logical_or(x > 0, y > 0), ops.logical_xor(x > 0, y > 0), ops.arctan2(x, y)
        ops.where(x > 0, x, y), ops.where(x > 0, x, 0.0), ops.divide_no_nan(x, y)
        ops.logaddexp(x, y), ops.logaddexp2(x, y), ops.hypot(x, y)
        ops.heaviside(x, y), ops.fmax(x, y), ops.fmin(x, y), ops.fmod(x, p)
        ops.binary_crossentropy(u, 1 - u), ops.binary_crossentropy(u, x, True)
        ops.matmul(m, n), ops.einsum("bi,bj->bij", x, y)
        ops.dot(x, ops.transpose(y)), ops.inner(x, y), ops.outer(x, y), ops.det(n)
        ops.tensordot(m, n, axes=[[1, 2], [2, 1]]), ops.tensordot(x, y, axes=[[0], [0]])
        ops.inv(n)
        ops.tril(n), ops.triu(n, 1), ops.trace(n, 0, 1, 2), ops.diagonal(n, 1, 1, 2)
        ops.solve(n, m)
        ops.maximum(i, 1.5), ops.minimum(0.5, i), (i - 2) // 3, (i - 2) % 3, i / 2
        ops.binary_crossentropy(ops.cast(x > 0, "float32"), ops.relu(-x)), i * 0.5
        ops.logical_and(x > 0, i), ops.fmax(i, 0.5), ops.where(x > 0, i, 0.5)
    """,
    "axes": """
        ops.sum(m, axis=1), ops.sum(x), ops.mean(m, axis=[1, 2], keepdims=True)
        ops.max(m, axis=1), ops.min(m, axis=-1), ops.prod(m, axis=[1, 2])
        ops.var(m, axis=1), ops.std(m, axis=1), ops.amax(m, axis=1), ops.amin(m, axis=1)
        ops.any(x > 0, axis=1), ops.all(x > 0, axis=1), ops.average(m, axis=1)
        ops.logsumexp(m, axis=1), ops.count_nonzero(i, axis=1), ops.argmax(m, axis=1)
        ops.argmin(x), ops.norm(x, axis=1), ops.norm(m, ord=1, axis=2)
        ops.normalize(x), ops.normalize(m, axis=1, order=1), ops.cumsum(x)
        ops.cumsum(x, axis=1), ops.cumprod(x, axis=1), ops.cumprod(x), ops.softmax(x)
        ops.softmax(m, axis=1), ops.log_softmax(x), ops.sparsemax(x), ops.glu(x)
        ops.top_k(x, 2)[0], ops.top_k(x, 2)[1], ops.median(m, axis=1)
        ops.quantile(m, 0.3, axis=[1, 2], keepdims=True), ops.ptp(m, axis=1)
        ops.nansum(m, axis=1), ops.nanmean(m, axis=1), ops.moments(m, axes=[1])[1]
        ops.sort(m, axis=1), ops.argsort(x), ops.median(x[:, :3], axis=-1)
        ops.normalize(1e-8 * x), ops.argsort(i), ops.mean(i, 1), ops.std(i, 1)
        ops.argmax(m, axis=1, keepdims=True), ops.argmax(m), ops.var(m, 1, True)
        ops.moments(m, [1], keepdims=True)[0]
        ops.quantile(x, 0.3, axis=1, method="lower"), ops.norm(m, axis=(1, 2))
        ops.average(i, axis=1), ops.median(i, axis=1), ops.var(i), ops.mean(x > 0)
    """,
    "shapes": """
        ops.concatenate([x, y], axis=1), ops.stack([x, y], axis=1), x[:, 1:3]
        m[:, ::2, None], ops.split(x, 2, axis=1)[1], x[:, None]
        ops.split(x, [1, 3], axis=1)[1], ops.reshape(x, (-1, 2, 2)), ops.ravel(x)
        ops.transpose(m, (0, 2, 1)), ops.transpose(x), ops.swapaxes(m, 1, 2)
        ops.moveaxis(m, 1, 2), ops.expand_dims(x, 1), ops.squeeze(x[:, None], 1)
        ops.broadcast_to(x[:1, None], (3, 2, 4)), ops.flip(m, axis=1), ops.flip(x)
        ops.roll(x, 1, axis=1), ops.repeat(x, 2, axis=1), ops.tile(x, [1, 2])
        ops.pad(x, [[0, 0], [1, 2]]), ops.pad(x, [[0, 0], [1, 2]], mode="reflect")
        ops.pad(m, [[0, 0], [1, 1], [0, 1]], mode="symmetric")
        ops.take(x, i[0], axis=1)
        ops.pad(x, [[0, 0], [1, 2]], constant_values=3.0), ops.take(x, [0, 2], axis=1)
        ops.one_hot(i, 5), ops.one_hot(i, 5, axis=1), ops.multi_hot(i, 5)
        ops.unstack(x, axis=1)[2], ops.take_along_axis(x, i, axis=1)
        ops.append(x, y, axis=1), ops.append(x, y), ops.diff(x), ops.diff(m, 2, axis=1)
        ops.fliplr(x), ops.flipud(x), ops.hstack([x, y]), ops.vstack([x, y])
        ops.rot90(m, 3, (1, 2)), ops.slice(x, (0, 1), (2, 2))
        ops.one_hot(i, 4, dtype="int32")
        ops.one_hot(i, 4, dtype="bool"), ops.one_hot(i, 4, axis=0)
        ops.multi_hot(i, 5, dtype="int32"), ops.take(x, [-1, 0], axis=1)
        ops.take(x, [2, 1]), ops.take_along_axis(x, i - 2, axis=1)
        ops.roll(x, 1), ops.repeat(x, 2)
        ops.stack([x, y]), ops.split(ops.transpose(x), 2)[1], ops.concatenate([x, y])
    """,
    "images": """
        ops.max_pool(im, 2), ops.max_pool(im, (3, 2), 1, "same")
        ops.average_pool(im, 2, 1), ops.conv(im, KERNEL, (2, 1), "same")
        ops.conv(im, KERNEL, dilation_rate=2)
        ops.depthwise_conv(im, KERNEL, padding="same")
        ops.separable_conv(im, KERNEL, KERNEL.reshape(1, 1, 6, 4)[..., :2])
        ops.image.resize(im, (7, 8)), ops.image.resize(im, (3, 9), "nearest")
        ops.image.rgb_to_grayscale(im), ops.image.rgb_to_hsv(im)
        ops.image.hsv_to_rgb(im)
        ops.space_to_depth(im[:, :4], 2)
        ops.depth_to_space(ops.concatenate([im] * 4, -1), 2)
        ops.max_pool(ch, 2, data_format=FIRST), ops.conv(ch, KERNEL, data_format=FIRST)
        ops.average_pool(ch, 2, 1, data_format=FIRST)
        ops.depthwise_conv(ch, KERNEL, data_format=FIRST)
        ops.image.rgb_to_grayscale(ch, data_format=FIRST)
        ops.image.rgb_to_hsv(ch, data_format=FIRST)
        ops.image.hsv_to_rgb(ch, data_format=FIRST)
        ops.image.resize(ch, (7, 8), data_format=FIRST)
        ops.depthwise_conv(im, KERNEL, dilation_rate=2)
        ops.separable_conv(im, KERNEL, KERNEL.reshape(1, 1, 6, 4), 1, "same", None, 2)
        ops.image.rgb_to_hsv(ops.zeros_like(im)), ops.max_pool(m, 2, 1)
    """,
}
SHAPES = {**SHAPES, "ch": (3, 5, 6)}


def main(folder, *groups):
    for group in groups or GROUPS:
        rng = np.random.default_rng(0)
        inputs = {
            name: keras.Input(shape, name=name, dtype="int32" if name == "i" else None)
            for name, shape in SHAPES.items()
        }
        made = outputs(GROUPS[group], {**globals(), **inputs})
        model = keras.Model(list(inputs.values()), made)
        arrays = [array(name, shape, rng) for name, shape in SHAPES.items()]
        values = [y.cpu().numpy() for y in model(arrays)]
        record(Path(folder) / f"3.15_ops_{group}", model, arrays, values)


if __name__ == "__main__":
    main(*sys.argv[1:])
