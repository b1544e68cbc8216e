"""Run by hand with tf.keras 2.15: the cases 2.15_tf_*, of TensorFlow's functions.

    python keras_live_tensorflow.py FOLDER [graph]

Each expression below becomes an output of the model that bears its group's name; with
"graph" tf.keras writes ops of the graph instead, as it did in TensorFlow 2.0 to 2.3.
"""

import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
from keras_live_inputs import SHAPES, array, outputs, record

K = tf.keras.backend
KERNEL = np.linspace(-1, 1, 24, dtype="float32").reshape(2, 2, 3, 2)
BACK = KERNEL.transpose(0, 1, 3, 2)
ROW = np.array([0.5, -1.0, 2.0, 3.0], "float32")
GROUPS = {
    "numbers": """
        1 - x, 2.0 / p, x // 0.7, x % 0.7, x**2, 2.0**x, -x, abs(x), tf.abs(y)
        tf.add(x, y), tf.subtract(x, y), tf.multiply(x, y), tf.divide(x, p), i / 3
        tf.square(x), tf.sqrt(p), tf.math.rsqrt(p), tf.exp(x), tf.math.log(p)
        tf.math.log1p(p), tf.math.expm1(x), tf.maximum(x, y), tf.maximum(0.1, x)
        tf.minimum(x, 0.5), tf.sign(x), tf.round(2 * x), tf.floor(x), tf.math.ceil(x)
        tf.sigmoid(x), tf.tanh(x), tf.sin(x), tf.cos(x), tf.tan(x), tf.asin(u)
        tf.acos(u), tf.atan(x), tf.atan2(x, y), tf.sinh(x), tf.cosh(x), tf.asinh(x)
        tf.acosh(p + 1.0), tf.atanh(0.9 * u), tf.math.erf(x), tf.math.erfc(x)
        tf.math.lgamma(p), tf.math.digamma(p), tf.math.reciprocal(p), x + ROW
        tf.math.divide_no_nan(x, tf.nn.relu(y)), tf.math.squared_difference(x, y)
        tf.math.multiply_no_nan(x, tf.nn.relu(y)), tf.math.xlogy(p, p)
        tf.math.softplus(x), tf.math.log_sigmoid(x), tf.math.scalar_mul(2.0, x)
        tf.add_n([x, y, p]), tf.nn.relu(x), tf.nn.relu6(9 * x), tf.nn.leaky_relu(x)
        tf.nn.leaky_relu(x, 0.1), tf.nn.elu(x), tf.nn.selu(x), tf.nn.gelu(x)
        tf.nn.gelu(x, approximate=True), tf.nn.silu(x), tf.nn.silu(x, 2.0)
        tf.nn.crelu(x), tf.nn.softsign(x), tf.identity(x), tf.stop_gradient(x)
        tf.convert_to_tensor(x), tf.debugging.check_numerics(x, "no")
        tf.clip_by_value(x, -0.5, 0.5), K.clip(x, 0, None), tf.clip_by_value(x, y, p)
        tf.clip_by_norm(x, 1.0, axes=[1]), tf.zeros_like(x), tf.ones_like(x)
        tf.ones_like(x, dtype="int32"), K.hard_sigmoid(x), K.relu(x, max_value=0.3)
        tf.round(tf.cast(i, "float32") / 2), tf.clip_by_value(x, 0.5, -0.5), (i - 2) % 3
        (i - 2) // 3, tf.math.xlogy(tf.nn.relu(x), p), (i - 2) / 3, tf.add(i, 2)
        tf.math.multiply_no_nan(tf.math.log(x), tf.cast(x > 0, "float32"))
        tf.math.scalar_mul(3, i), tf.nn.elu(2 * x), tf.nn.crelu(m, axis=1)
    """,
    "tests": """
        x > 0, x >= 0, x < 0, x <= 0, (x > 0) & (y > 0)
        (x > 0) | (y > 0), (x > 0) ^ (y > 0), ~(x > 0), tf.greater(x, y)
        tf.greater_equal(x, y), tf.less(x, y), tf.less_equal(x, y), tf.equal(i, 2)
        tf.not_equal(i, 2), tf.logical_and(x > 0, y > 0), tf.logical_not(x > 0)
        tf.math.is_nan(x), tf.math.is_inf(x), tf.math.is_finite(x)
        tf.where(x > 0, x, y), tf.where(x > 0, x, 0.0), tf.where(x > 0, -1.0, x)
        tf.cast(9 * x, tf.int32), tf.cast(x, "float16"), tf.cast(x, "float64")
        tf.cast(x > 0, tf.float32), tf.cast(i, tf.uint8), tf.cast(x, "bool")
        tf.cast(i, tf.int64), tf.cast(i, tf.int8), tf.cast(i, tf.int16)
        tf.saturate_cast(500 * x, tf.uint8), K.switch(x > 0, x, y), tf.cast(i, x.dtype)
        tf.reduce_any(x > 0, axis=1), tf.reduce_all(x > 0, axis=1), K.all(x > 0, 1)
    """,
    "axes": """
        tf.reduce_mean(m, axis=1), tf.reduce_mean(m, [1, 2], keepdims=True)
        tf.reduce_mean(i, 1), tf.reduce_sum(m, -1), tf.reduce_sum(x)
        tf.reduce_max(m, axis=1), tf.reduce_min(m, axis=1), tf.reduce_prod(m, axis=1)
        tf.math.reduce_std(m, axis=1), tf.math.reduce_variance(m, axis=[1, 2])
        tf.reduce_logsumexp(m, axis=1), tf.math.reduce_euclidean_norm(m, axis=1)
        tf.math.count_nonzero(i, axis=1), tf.argmax(x), tf.argmax(x, axis=-1)
        tf.argmin(x), tf.argmin(m, 1, output_type=tf.int32), tf.nn.zero_fraction(i)
        tf.cumsum(x, axis=1), tf.cumsum(x), tf.cumsum(m, 1, True, True)
        tf.cumsum(x, 1, exclusive=True), tf.math.cumprod(x, axis=1)
        tf.math.cumprod(x, 1, exclusive=True), tf.math.top_k(x, 2)[0]
        tf.math.top_k(x, 2)[1], tf.nn.top_k(x)[0], tf.sort(x)
        tf.sort(m, axis=1, direction="DESCENDING"), tf.argsort(x)
        tf.argsort(i, direction="DESCENDING", stable=True), tf.norm(x, axis=1)
        tf.norm(m, ord=1, axis=-1, keepdims=True), tf.norm(m, axis=[-2, -1])
        tf.norm(m, ord=np.inf, axis=1), tf.norm(x), tf.nn.softmax(x)
        tf.nn.softmax(m, axis=1), tf.nn.log_softmax(m, axis=1)
        tf.nn.l2_normalize(x, axis=1), tf.math.l2_normalize(m, [1, 2], epsilon=1e-6)
        tf.math.l2_normalize(x), tf.nn.moments(m, axes=[1])[1], tf.nn.l2_loss(x)
        tf.nn.softmax_cross_entropy_with_logits(x, y), K.var(m, axis=1), K.std(m)
        tf.nn.sigmoid_cross_entropy_with_logits(u, y), K.mean(x > 0, axis=1)
        tf.reduce_mean(-i, 1), tf.math.cumprod(m), tf.math.cumprod(x, 1, reverse=True)
        tf.cumsum(x, 1, reverse=True), tf.math.top_k(i, 2)[1]
        tf.math.l2_normalize(1e-6 * x, axis=1), tf.argmax(i, 1), tf.norm(x, ord=3)
        tf.math.top_k(x, 1)[1], tf.argsort(i, axis=0), tf.sort(x, axis=0)
        tf.clip_by_norm(x, 0.5), tf.reduce_all(x > -9), tf.math.count_nonzero(i)
        tf.compat.v1.math.l2_normalize(x, dim=1)
        tf.nn.softmax_cross_entropy_with_logits(m, n, axis=1)
    """,
    "shapes": """
        x[:, 1:3], x[..., ::-1], x[:, None], x[:, tf.newaxis, :2], x[:, -1]
        m[:, 3:0:-2], m[:, 1, ::-1], m[..., 0, :], m[::-1, :, None, 1:]
        tf.concat([x, y], -1), tf.concat([m, n, m], axis=0), tf.stack([x, y])
        tf.stack([x, y], axis=1), tf.stack([x]), tf.split(x, 2, axis=1)[0]
        tf.split(x, [1, 3], axis=1)[1], tf.split(x, [1, -1], -1)[1]
        tf.unstack(x, axis=1)[3], tf.reshape(x, (-1, 2, 2)), tf.transpose(x)
        tf.transpose(m, [0, 2, 1]), tf.expand_dims(x, 1), tf.expand_dims(x, -1)
        tf.squeeze(tf.expand_dims(x, 1), axis=1), tf.squeeze(x[:, None], [1])
        tf.tile(x, [1, 2]), tf.tile(ROW[None], [2, 2]) + x[:1, :1]
        tf.repeat(x, 2, axis=1), tf.repeat(x, [1, 2, 1, 0], axis=1), tf.repeat(x, 2)
        tf.reverse(m, axis=[1, 2]), tf.roll(x, shift=1, axis=1)
        tf.roll(m, shift=[1, -1], axis=[1, 2]), tf.gather(x, [0, 2], axis=1)
        tf.gather(x, [1, 0]), tf.gather(x, i, axis=1, batch_dims=1)
        tf.gather(m, i, axis=2, batch_dims=1), tf.gather(m, i[0], axis=1)
        tf.gather_nd(m, tf.minimum(i[:, :2], 1)), tf.one_hot(i, 5)
        tf.one_hot(i, 3, on_value=2.0, off_value=-1.0, axis=1)
        tf.nn.embedding_lookup(KERNEL[0, :, 0], i % 2), tf.pad(x, [[0, 0], [1, 2]])
        tf.pad(m, [[0, 0], [1, 2], [3, 0]], "REFLECT")
        tf.pad(m, [[0, 0], [1, 4], [3, 0]], "SYMMETRIC")
        tf.pad(x, [[0, 1], [1, 2]], constant_values=3.0), tf.slice(x, [0, 1], [-1, 2])
        tf.strided_slice(x, [0, 1], [2, 3]), tf.ensure_shape(x, (None, 4))
        tf.strided_slice(m, [0, 3, 0], [0, 0, 2], [1, -1, 1], 1, 3)
        K.batch_flatten(m), K.permute_dimensions(m, (0, 2, 1)), K.repeat(x, 3)
        K.repeat_elements(x, 2, axis=1), K.one_hot(i, 5), K.temporal_padding(m, (1, 2))
        tf.one_hot(i, 3, dtype="int32"), tf.one_hot(i, 3, axis=0), tf.concat([x, y], 0)
        tf.roll(x, [1], [0]), tf.gather(m, [[1, 0]], axis=2)
        tf.split(tf.transpose(x), 2)[1]
        tf.pad(m, [[0, 0], [2, 0], [0, 1]], "REFLECT"), tf.tile(m, [1, 1, 2])
    """,
    "sizes": """
        tf.reshape(m, (tf.shape(m)[0], -1)), tf.shape(m), tf.shape(m)[1:], tf.size(m)
        tf.reshape(m, (tf.shape(m)[0], tf.shape(m)[1] * tf.shape(m)[2]))
        tf.reshape(m, tf.concat([tf.shape(m)[:1], [-1]], 0)), tf.rank(m)
        tf.reshape(m, tf.stack([tf.shape(m)[0], -1])), tf.fill(tf.shape(x), 2.0)
        tf.zeros(tf.shape(x)), tf.ones((tf.shape(x)[0], 3)), K.shape(x)[0]
        tf.zeros((tf.shape(x)[0], 2), "int32"), tf.range(tf.shape(x)[1])
        tf.broadcast_to(x[:, None], (tf.shape(x)[0], 2, 4)), tf.shape(m)[-1] - 1
        x * tf.cast(tf.shape(x)[1], "float32")
        x / tf.sqrt(tf.cast(tf.size(x), "float32"))
        tf.range(1, tf.shape(m)[1], 2), tf.eye(tf.shape(x)[1])
        x[:, : tf.shape(x)[1] // 2]
        tf.tile(x[:1], [tf.shape(x)[0], 1]), tf.reduce_prod(tf.shape(m)[1:])
        tf.pad(x, [[0, 0], [0, 8 - tf.shape(x)[1]]]), tf.maximum(tf.shape(x)[0], 7)
        tf.reshape(m, (-1, tf.unstack(tf.shape(m))[2])), tf.shape(m)[1] / 3
        tf.image.resize(im, tf.shape(im)[1:3] * 2), tf.one_hot(i, tf.shape(i)[1])
        tf.transpose(tf.reshape(m, [tf.shape(m)[0], 4, 2, 2]), [0, 2, 1, 3])
        tf.minimum(tf.shape(x)[1], 3), -tf.shape(x), tf.zeros_like(tf.shape(m))
        tf.ones_like(tf.shape(m)), tf.shape(m) > 3, tf.shape(m) >= 4, tf.shape(m) < 4
        tf.shape(m) <= 3, tf.equal(tf.shape(m), 4), tf.not_equal(tf.shape(m), 4)
        tf.where(tf.shape(m) > 3, 1, tf.shape(m)), tf.shape(m) % 3, tf.shape(m) + 1
        tf.identity(tf.shape(x)), tf.stop_gradient(tf.shape(x))
        tf.gather(tf.shape(m), [2, 0]), tf.slice(tf.shape(im), [1], [2])
        tf.slice(tf.shape(im), [2], [-1]), tf.strided_slice(tf.shape(im), [1], [3])
        tf.reduce_sum(tf.shape(im)), tf.reduce_max(tf.shape(im), keepdims=True)
        tf.reduce_min(tf.shape(im)), tf.reshape(tf.shape(x)[1], [1])
        tf.expand_dims(tf.shape(x)[1], 0), tf.squeeze(tf.shape(x)[1:])
        tf.reshape(tf.shape(m), [3, 1]), tf.gather(tf.shape(m), [[0], [1]])
        tf.stack([tf.shape(x), tf.shape(y)]), tf.reverse(tf.shape(m), [0])
        tf.eye(tf.shape(x)[1], 3, [2])
        tf.range(0.0, tf.cast(tf.shape(x)[1], "float32"), 1.5)
        tf.fill(tf.shape(x), 2), tf.fill(tf.shape(x), True), tf.range(tf.rank(m))
        tf.range(0, tf.shape(x)[1], dtype="float32")
    """,
    "matrices": """
        x @ tf.transpose(y), tf.matmul(x, y, transpose_b=True), m @ n
        tf.matmul(m, n, transpose_a=True), tf.matmul(m, n, adjoint_b=True)
        tf.linalg.matvec(m, x), tf.linalg.diag_part(n), tf.linalg.band_part(n, -1, 0)
        tf.linalg.band_part(n, 1, 1), tf.linalg.trace(n), tf.linalg.matrix_transpose(n)
        tf.linalg.diag(x), tf.linalg.det(n), tf.linalg.cross(x[:, :3], y[:, :3])
        tf.linalg.inv(n + 9 * tf.eye(tf.shape(n)[1])), tf.tensordot(x, ROW, 1)
        tf.tensordot(x, KERNEL[0].reshape(4, 3), axes=[[1], [0]])
        tf.tensordot(x, y, axes=[0, 0]), tf.linalg.matmul(x, ROW[:, None])
        K.dot(x, K.transpose(y)), K.batch_dot(m, n, axes=[1, 1]), K.batch_dot(x, y, 1)
        tf.linalg.diag_part(n, k=1), tf.linalg.band_part(n, 0, 2)
        tf.matmul(m, n, adjoint_a=True), tf.linalg.inv(tf.linalg.diag(p), adjoint=True)
        tf.tensordot(m, ROW[:, None] + ROW, 2)
    """,
    "networks": """
        tf.nn.bias_add(im, [1.0, 2.0, 3.0]), tf.nn.avg_pool2d(im, 2, 2, "SAME")
        tf.nn.bias_add(tf.transpose(im, [0, 3, 1, 2]), [1.0, 2.0, 3.0], "NC..")
        tf.nn.avg_pool(im, [1, 2, 2, 1], [1, 1, 1, 1], "VALID")
        tf.nn.avg_pool2d(im, 3, [1, 2], "SAME"), tf.nn.max_pool2d(im, 3, 2, "SAME")
        tf.nn.max_pool(im, 2, 2, "VALID"), tf.nn.avg_pool1d(m, 2, 1, "SAME")
        tf.nn.max_pool1d(m, 2, 1, "SAME"), K.pool2d(im, (2, 2))
        tf.compat.v1.nn.max_pool(im, 3, 2, "SAME")
        K.pool2d(im, (3, 3), pool_mode="avg")
        tf.nn.conv2d(im, KERNEL, 1, "SAME")
        tf.nn.conv2d(im, KERNEL, [1, 2, 2, 1], "VALID")
        tf.nn.conv2d(im, KERNEL, 1, [[0, 0], [1, 1], [1, 2], [0, 0]], dilations=2)
        tf.nn.conv1d(m, KERNEL.reshape(3, 4, 2), 2, "SAME"), K.conv2d(im, KERNEL)
        tf.nn.depthwise_conv2d(im, KERNEL, [1, 1, 1, 1], "SAME")
        tf.nn.conv2d_transpose(im, BACK, [3, 10, 12, 2], 2, "SAME")
        tf.nn.conv2d_transpose(im, BACK, [3, 6, 7, 2], 1, "VALID")
        tf.nn.space_to_depth(im[:, :4], 2)
        tf.nn.depth_to_space(tf.concat([im] * 4, 3), 2)
        tf.nn.local_response_normalization(im), tf.nn.lrn(im, 1, 2.0, 0.3, 0.7)
        tf.image.extract_patches(im, [1, 2, 3, 1], [1, 2, 1, 1], [1, 1, 1, 1], "VALID")
        tf.image.extract_patches(im, [1, 2, 2, 1], [1, 2, 2, 1], [1, 2, 1, 1], "SAME")
        tf.nn.batch_normalization(x, y, p, y, x, 1e-3), tf.image.sobel_edges(im)
        tf.keras.applications.resnet50.preprocess_input(im)
        tf.keras.applications.mobilenet_v2.preprocess_input(im)
        tf.keras.applications.densenet.preprocess_input(im)
        tf.nn.conv2d_transpose(im, BACK, [3, 9, 11, 2], 2)
        tf.compat.v1.nn.depthwise_conv2d(im, KERNEL, [1] * 4, "VALID", rate=[2, 1])
        tf.nn.conv2d(im, KERNEL, [2, 1], "SAME"), tf.nn.max_pool2d(im, 2, 2, "SAME")
        tf.nn.convolution(im, KERNEL, 1, "SAME")
    """,
    "images": """
        tf.image.resize(im, (7, 8)), tf.image.resize(im, [2, 3])
        tf.image.resize(im, (5, 6))
        tf.image.resize(im, [7, 8], "nearest"), tf.image.resize(im, [2, 4], "nearest")
        tf.image.resize(im, [7, 8], "bicubic"), tf.image.resize(im, [3, 3], "bicubic")
        tf.image.resize(im, [2, 3], antialias=True), tf.image.resize(im, [6, 4], "area")
        tf.image.resize(im, [3, 4], "bicubic", antialias=True)
        tf.image.resize(im, [6, 9], "lanczos3"), tf.image.resize(im, [6, 4], "lanczos5")
        tf.image.resize(im, [6, 4], "gaussian")
        tf.image.resize(im, [3, 9], "mitchellcubic")
        tf.image.resize(im, [8, 10], preserve_aspect_ratio=True)
        tf.compat.v1.image.resize_bilinear(im, (6, 8), align_corners=True)
        tf.compat.v1.image.resize_bilinear(im, (7, 4))
        tf.compat.v1.image.resize(im, (7, 3))
        tf.compat.v1.image.resize_nearest_neighbor(im, (6, 8))
        tf.image.resize_with_pad(im, 8, 8), tf.image.resize_with_pad(im, 4, 9)
        tf.image.resize_with_crop_or_pad(im, 3, 9)
        tf.image.resize_with_crop_or_pad(im, 8, 3)
        tf.image.crop_to_bounding_box(im, 1, 0, 2, 3), tf.image.central_crop(im, 0.5)
        tf.image.pad_to_bounding_box(im, 1, 2, 7, 9), tf.image.flip_left_right(im)
        tf.image.flip_up_down(im), tf.image.rot90(im), tf.image.rot90(im, 3)
        tf.image.transpose(im), tf.image.rgb_to_grayscale(im), tf.image.rgb_to_yuv(im)
        tf.image.grayscale_to_rgb(im[..., :1]), tf.image.adjust_brightness(im, 0.1)
        tf.image.adjust_contrast(im, 2.0), tf.image.adjust_gamma(im, 0.5, 2)
        tf.image.adjust_saturation(im, 1.5), tf.image.adjust_hue(im, 0.3)
        tf.image.rgb_to_hsv(im), tf.image.hsv_to_rgb(im), tf.image.yuv_to_rgb(im)
        tf.image.per_image_standardization(im)
        tf.image.convert_image_dtype(im, "float32")
        tf.image.convert_image_dtype(i, "float32")
        K.resize_images(im, 2, 3, "channels_last")
        K.resize_images(im, 2, 2, "channels_last", interpolation="bilinear")
        tf.image.resize(tf.cast(9 * im, "int32"), (3, 9))
        tf.image.resize(tf.cast(9 * im, "int32"), (8, 4), "nearest")
        tf.compat.v1.image.resize(im, (7, 3), 1), tf.image.adjust_hue(im, -0.4)
        tf.compat.v1.image.resize_nearest_neighbor(im, (7, 4), half_pixel_centers=True)
        tf.compat.v1.image.resize_bilinear(im, (7, 4), half_pixel_centers=True)
        tf.image.rgb_to_hsv(im[..., :1] + tf.zeros_like(im)), tf.image.rot90(im, 2)
        tf.image.per_image_standardization(im / 99), tf.image.central_crop(im, 0.7)
        tf.image.convert_image_dtype(tf.cast(9 * im, "uint8"), "float16")
        tf.image.adjust_saturation(im, 9.0), tf.image.resize(im[0], (3, 4), "area")
        tf.image.resize_with_pad(im, 9, 4, "nearest"), tf.image.adjust_gamma(im, 2.0)
        tf.image.resize(im, [9, 4], preserve_aspect_ratio=True)
    """,
}
GRAPH_GROUPS = {
    "graph_ops": """
        abs(x), -x, tf.exp(x), tf.math.log(p), tf.math.log1p(p), tf.sqrt(p)
        tf.math.rsqrt(p), tf.square(x), tf.math.reciprocal(p), tf.sign(x), tf.floor(x)
        tf.math.ceil(x), tf.round(2 * x), tf.sin(x), tf.cos(x), tf.tanh(x)
        tf.sigmoid(x), tf.math.erf(x), tf.nn.relu(x), tf.nn.relu6(9 * x), tf.nn.elu(x)
        tf.nn.selu(x), tf.math.softplus(x), tf.nn.softsign(x), tf.nn.softmax(x)
        tf.nn.log_softmax(x), tf.identity(x), tf.stop_gradient(x)
        tf.logical_not(x > 0), tf.shape(x), tf.size(m), tf.raw_ops.ZerosLike(x=x)
        tf.raw_ops.OnesLike(x=x), tf.raw_ops.Rank(input=x), tf.nn.l2_loss(x)
        tf.raw_ops.Add(x=x, y=y), x + 1, 1 - x, x * y, x / p, x // p, x % p, p**x
        tf.maximum(x, y), tf.minimum(x, 0.5), tf.math.squared_difference(x, y), x > y
        x >= y, x < y, x <= y, tf.equal(i, 2), tf.not_equal(i, 2), i / 3
        tf.logical_and(x > 0, y > 0), tf.logical_or(x > 0, y > 0)
        tf.reduce_mean(m, 1), tf.reduce_mean(m, [1, 2], True), tf.reduce_sum(m, -1)
        tf.reduce_max(m, 1), tf.reduce_min(m, 1), tf.reduce_prod(m, 1)
        tf.reduce_any(x > 0, 1), tf.reduce_all(x > 0, 1), tf.add_n([x, y, p])
        tf.argmax(x, 1), tf.cumsum(x, 1, exclusive=True, reverse=True)
        tf.raw_ops.ClipByValue(t=x, clip_value_min=-0.5, clip_value_max=0.3)
        tf.argmax(x, 1, output_type=tf.int32), tf.argmax(m, 0), tf.cumsum(x, 0)
        tf.round(tf.cast(i, "float32") / 2), tf.reduce_mean(-i, 1), (i - 2) // 3
    """,
    "graph_shapes": """
        m @ n, tf.matmul(m, n, transpose_a=True, adjoint_b=True)
        tf.matmul(x, y, transpose_b=True), tf.nn.bias_add(im, [1.0, 2.0, 3.0])
        tf.broadcast_to(x[:, None], (tf.shape(x)[0], 2, 4)), tf.cast(x > 0, tf.float32)
        tf.cast(9 * x, tf.int32), tf.concat([x, y], -1), tf.expand_dims(x, 1)
        tf.fill([tf.shape(x)[0], 2], 3.0), tf.gather(x, [0, 2], axis=1)
        tf.gather(x, i, axis=1, batch_dims=1), tf.nn.leaky_relu(x, 0.1)
        tf.one_hot(i, 5), tf.one_hot(i, 3, 2.0, -1.0, axis=1), tf.stack([x, y], 1)
        tf.pad(x, [[0, 0], [1, 2]]), tf.pad(x, [[0, 0], [1, 2]], constant_values=3.0)
        tf.pad(x, [[0, 0], [1, 2]], "REFLECT"), tf.range(tf.shape(x)[1])
        tf.reshape(m, (tf.shape(m)[0], -1)), tf.reverse(m, [1]), x[..., ::-1]
        tf.where(x > 0, x, y), tf.slice(x, [0, 1], [-1, 2]), tf.split(x, 2, 1)[1]
        tf.split(x, [1, 3], 1)[1], tf.squeeze(x[:, None], 1), m[:, 1:3, None, -1]
        tf.tile(x, [1, 2]), tf.transpose(m, [0, 2, 1]), tf.unstack(x, axis=1)[2]
        tf.nn.avg_pool2d(im, 3, 2, "SAME"), tf.nn.max_pool2d(im, 3, [2, 1], "SAME")
        tf.nn.conv2d(im, KERNEL, 2, "SAME"), tf.nn.conv2d(im, KERNEL, 1, "VALID")
        tf.nn.space_to_depth(im[:, :4], 2), tf.image.resize(im, (7, 8))
        tf.nn.depth_to_space(tf.concat([im] * 4, 3), 2)
        tf.image.resize(im, (7, 8), "nearest"), tf.reshape(x, (-1, tf.shape(x)[1] // 2))
        tf.compat.v1.image.resize_bilinear(im, (7, 8), align_corners=True)
        tf.matmul(x, y, transpose_a=True), tf.nn.conv2d(im, KERNEL, 1, "SAME", None, 2)
        tf.linalg.matmul(m, n, adjoint_a=True), tf.one_hot(i, 3, axis=0)
        tf.pad(m, [[0, 0], [1, 3], [3, 0]], "SYMMETRIC"), tf.cast(m, "bool")
        tf.nn.bias_add(tf.transpose(im, [0, 3, 1, 2]), [1.0, 2.0, 3.0], "NCHW")
        tf.strided_slice(m, [0, 3, 0], [0, 0, 2], [1, -1, 1], 1, 3), tf.stack([x, y])
        tf.nn.max_pool2d(im, 2, [1, 2], "VALID"), tf.gather(x, [2, 0]), m[..., None, 1]
        tf.compat.v1.image.resize_nearest_neighbor(im, (7, 4))
        tf.split(tf.transpose(x), 2)[1]
        tf.compat.v1.image.resize_bilinear(im, (7, 4)), tf.unstack(m, axis=-1)[1]
        tf.range(1, tf.shape(m)[1], 2), tf.concat([x, y], 0), tf.argmax(i, 1)
    """,
}


def main(folder, graph=None):
    if graph:
        tf.compat.v1.disable_eager_execution()
    for group in GRAPH_GROUPS if graph else GROUPS:
        rng = np.random.default_rng(0)
        inputs = {
            name: tf.keras.Input(
                shape, name=name, dtype="int32" if name == "i" else None
            )
            for name, shape in SHAPES.items()
        }
        text = {**GROUPS, **GRAPH_GROUPS}[group]
        made = outputs(text, {**globals(), **inputs})
        model = tf.keras.Model(list(inputs.values()), made)
        arrays = [array(name, shape, rng) for name, shape in SHAPES.items()]
        values = (
            K.function(model.inputs, model.outputs)(arrays) if graph else model(arrays)
        )
        record(Path(folder) / f"2.15_tf_{group}", model, arrays, values)
        print(group, len(made))


if __name__ == "__main__":
    main(*sys.argv[1:])
