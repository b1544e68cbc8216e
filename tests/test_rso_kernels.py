"""The fast engine's arithmetic against torch's own layers."""

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from rso_cases import POOLS
from torch import nn
from torch.testing import assert_close

from course_lib.rso.eager import kernels
from course_lib.rso.eager.kernels import (
    FoldedConv,
    affine_of,
    average_blocks,
    normalize_plane,
    patches,
    pooling,
    standardize,
)

quick = settings(max_examples=60, deadline=None, derandomize=True)
pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


def image(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


# Batch norm


def norm_of(channels, affine=True):
    norm = nn.BatchNorm2d(channels, affine=affine, eps=1e-3).double()
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return norm.requires_grad_(False)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("channels", [1, 3, 40])
def test_a_plane_is_normalized_as_torch_does(channels, affine):
    norm, planes = norm_of(channels, affine), image(3, 4, 5, 6) + 7
    for channel in (0, channels - 1):
        got = normalize_plane(planes.clone(), channel, norm, None)
        for candidate, plane in zip(got, planes, strict=True):
            weight = norm.weight[channel : channel + 1] if affine else None
            bias = norm.bias[channel : channel + 1] if affine else None
            wanted = F.batch_norm(
                plane[:, None], None, None, weight, bias, training=True, eps=1e-3
            )
            assert_close(candidate, wanted[:, 0])


def test_a_plane_is_normalized_in_place():
    planes = image(2, 3, 2, 2)
    got = normalize_plane(planes, 0, norm_of(1), None)
    assert got.data_ptr() == planes.data_ptr()


def test_a_plane_that_two_processes_share():
    norm, planes = norm_of(2), image(3, 6, 2, 2)
    halves = [half.contiguous() for half in planes.split(3, dim=1)]
    totals = []
    for half in halves:
        normalize_plane(half.clone(), 1, norm, lambda t: (totals.append(t), t)[1])
    got = [normalize_plane(h.clone(), 1, norm, lambda t: sum(totals)) for h in halves]
    wanted = normalize_plane(planes.clone(), 1, norm, None)
    assert_close(torch.cat(got, dim=1), wanted)


@pytest.mark.parametrize("shape", [(4, 3, 2, 5), (6, 3), (2, 40, 3, 3), (5, 33)])
def test_standardizing_leaves_gamma_and_beta_out(shape):
    x, norm = image(*shape) - 2, norm_of(shape[1])
    wanted = F.batch_norm(x, None, None, training=True, eps=1e-3)
    kept = x.clone()
    assert_close(standardize(x, norm, None), wanted)
    assert x.equal(kept)


@pytest.mark.parametrize("affine", [True, False])
def test_scale_and_shift_from_sums(affine):
    norm, x = norm_of(3, affine), image(2, 5, 3, 4, 4) + 3  # (candidates, batch, ...)
    sums, squares = x.sum((1, 3, 4)), x.square().sum((1, 3, 4))
    scale, shift = affine_of(sums, squares, 80, norm, None)
    for i in range(2):
        wanted = F.batch_norm(
            x[i], None, None, norm.weight, norm.bias, training=True, eps=1e-3
        )
        got = x[i] * scale[i, :, None, None] + shift[i, :, None, None]
        assert_close(got, wanted)
    doubled = affine_of(sums / 2, squares / 2, 40, norm, lambda t: 2 * t)
    assert_close(doubled, (scale, shift))


# Pooling


@quick
@given(
    make=st.sampled_from(POOLS),
    height=st.integers(4, 9),
    width=st.integers(4, 9),
    last=st.booleans(),
)
def test_pools_are_those_of_torch(make, height, width, last):
    x, module = image(2, 3, height, width, seed=height), make()
    layout = torch.channels_last if last else torch.contiguous_format
    x = x.contiguous(memory_format=layout)
    kept = x.clone()
    got = pooling(module)(x)
    assert_close(got, module(x))
    assert x.equal(kept)


@pytest.mark.parametrize("size", [1, (1, 1)])
@pytest.mark.parametrize("kind", [nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d])
def test_global_pools(kind, size):
    for pixels in range(1, 8):
        x = image(3, 2, pixels, 8 - pixels, seed=pixels)
        assert_close(pooling(kind(size))(x), kind(size)(x))


def test_a_pool_gives_new_memory():
    x = image(2, 3, 4, 4)
    for module in (nn.MaxPool2d(1), nn.MaxPool2d(2), nn.AdaptiveMaxPool2d(1)):
        got = pooling(module)(x)
        assert got.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


def test_nan_stays_in_a_maximum():
    x = image(1, 1, 4, 4)
    x[0, 0, 1, 1] = float("nan")
    assert pooling(nn.MaxPool2d(2))(x).isnan().sum() == 1
    assert pooling(nn.AdaptiveMaxPool2d(1))(x).isnan().all()


@pytest.mark.parametrize(
    ("module", "wanted"),
    [
        (nn.AvgPool2d(2), (2, 2)),
        (nn.AvgPool2d((1, 3)), (1, 3)),
        (nn.AvgPool2d(2, 2), (2, 2)),
        (nn.AvgPool2d(2, 1), None),
        (nn.AvgPool2d(2, padding=1), None),
        (nn.AvgPool2d(2, ceil_mode=True), None),
        (nn.AvgPool2d(2, divisor_override=1), None),
        (nn.MaxPool2d(2), None),
        (nn.AdaptiveAvgPool2d(2), None),
        (None, None),
    ],
)
def test_which_pools_a_convolution_takes_in(module, wanted):
    assert average_blocks(module) == wanted


# Convolutions


@st.composite
def taps(draw):
    """Return (taps, the layers that they stand for, an input)."""
    groups = draw(st.sampled_from([1, 2]))
    module = nn.Conv2d(
        2 * groups,
        2 * groups,
        draw(pairs),
        stride=draw(st.tuples(st.integers(1, 3), st.integers(1, 2))),
        padding=draw(st.tuples(st.integers(0, 2), st.integers(0, 3))),
        dilation=draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (2, 3)])),
        groups=groups,
        bias=draw(st.booleans()),
    ).double()
    blocks = draw(st.sampled_from([(1, 1), (2, 2), (2, 1), (3, 2)]))
    if module.dilation != (1, 1):
        blocks = (1, 1)
    x = image(3, 2 * groups, draw(st.integers(6, 11)), draw(st.integers(6, 11)))
    try:
        size = tuple(nn.AvgPool2d(blocks)(module(x)).shape[2:])
    except RuntimeError:  # nothing is left of the image
        size = (0, 0)
    assume(all(size))
    return FoldedConv(module, blocks), nn.Sequential(module, nn.AvgPool2d(blocks)), x


@quick
@given(case=taps())
def test_folded_pools_give_the_same_numbers(case):
    folded, layers, x = case
    with torch.no_grad():
        assert_close(folded(x, folded.weight()), layers(x))


def test_what_folding_saves():
    """A kernel of 4x4 for each output, instead of four of 3x3."""
    conv = nn.Conv2d(1, 1, 3)
    assert FoldedConv(conv, (2, 2)).weight().shape == (1, 1, 4, 4)
    assert FoldedConv(conv, (2, 2)).can_fold
    assert not FoldedConv(
        nn.Conv2d(1, 1, 1, stride=3), (2, 2)
    ).can_fold  # 4x4 for 1x1 x 4
    assert not FoldedConv(nn.Conv2d(1, 1, 3, dilation=2), (2, 2)).can_fold


@quick
@given(case=taps())
def test_each_tap_reads_a_stretch_of_a_phase(case):
    """w of one tap moves the output by dw times the stretch that it reads."""
    folded, layers, x = case
    conv = layers[0]
    with torch.no_grad():
        before = layers(x)
        size = tuple(before.shape[2:])
        phases, places = folded.phases(x, size).flatten(2, 3), folded.places(size)
        rows, columns = folded.padded(size)
        width = conv.in_channels // conv.groups
        for channel in (0, conv.out_channels - 1):
            group = channel // (conv.out_channels // conv.groups)
            for source in range(width):
                for tap, (phase, offset) in enumerate(places):
                    kernel = conv.weight[channel, source].view(-1)
                    kernel[tap] += 1
                    moved = layers(x) - before
                    kernel[tap] -= 1
                    stretch = phases[group * width + source, phase, offset:]
                    plane = x.new_zeros(rows * columns, len(x))  # (pixels, batch)
                    plane[: len(stretch)] = stretch
                    plane = plane.t().view(len(x), rows, columns)
                    assert_close(moved[:, channel], plane[:, : size[0], : size[1]])


@quick
@given(case=taps())
def test_patches_make_a_convolution_a_matrix_product(case):
    folded, layers, x = case
    assume(folded.groups == 1)
    with torch.no_grad():
        wanted = layers(x)
        size, kernel = wanted.shape[2:], folded.weight()
        total = torch.zeros_like(wanted)
        for source in range(x.shape[1]):
            planes = x[:, source].unflatten(0, (1, -1))  # one candidate
            out = x.new_empty(*kernel.shape[2:], 1, len(x), *size)
            columns = patches(planes, folded, tuple(kernel.shape[2:]), out)
            assert columns.data_ptr() == out.data_ptr()
            weight = kernel[:, source].flatten(1)
            product = weight @ columns.view(weight.shape[1], -1)
            total += product.view(-1, len(x), *size).transpose(0, 1)
        if layers[0].bias is not None:
            total += layers[0].bias.view(-1, 1, 1)
    assert_close(total, wanted)


def test_a_linear_layer_is_a_convolution_of_one_pixel():
    module, x = nn.Linear(5, 3).double(), image(4, 5)
    own = FoldedConv(module)
    with torch.no_grad():
        assert_close(own(x, own.weight())[:, :, 0, 0], module(x))
    assert own.phases(x, (1, 1)).flatten(1).equal(x.t())
    assert own.places((1, 1)) == [(0, 0)]


def test_pair():
    assert kernels.pair(3) == kernels.pair((3, 3)) == kernels.pair([3, 3]) == (3, 3)
