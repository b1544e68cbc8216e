"""BEGAN's loss against hand arithmetic, and its one pass against the paper's two."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from course_lib.began import (
    DIGITS,
    FOLDER_64,
    BEGANLoss,
    Config,
    autoencoder,
    generator,
    gradients_,
)

TINY = Config(size=4, channels=2, latent=3, widths=(4, 6), steps=6, batch_size=5)


def scalars(*values):
    return torch.tensor(values, dtype=torch.float64).unbind()


# The loss

BY_HAND = [  # gamma 0.5, lambda_k 0.25: L_real, L_gen -> loss with the old k, k, M
    (0.75, 0.25, 0.75, 0.03125, 0.875),
    (0.5, 0.125, 0.49609375, 0.0625, 0.625),
    (0.25, 0.5, 0.21875, 0.0, 0.625),  # 0.0625 - 0.09375 is below 0
    (6.0, 0.5, 6.0, 0.625, 8.5),
    (4.0, 0.25, 3.84375, 1.0, 5.75),  # 0.625 + 0.4375 is above 1
    (0.5, 0.25, 0.25, 1.0, 0.5),  # balanced: k stays
]


def test_k_and_m_follow_the_arithmetic_by_hand_in_float64(device):
    loss = BEGANLoss(gamma=0.5, lambda_k=0.25).double().to(device)
    for real, generated, *wanted in BY_HAND:
        errors = [error.to(device) for error in scalars(real, generated)]
        value = loss(*errors)
        loss.update_(*errors)
        assert [value.item(), loss.k.item(), loss.M.item()] == wanted
        assert loss.k.device.type == device.type


def test_fractions_without_a_short_binary_form_agree_with_python_floats():
    loss, k = BEGANLoss(gamma=0.7, lambda_k=0.001, k=0.3).double(), 0.3
    loss.k.fill_(0.3)  # double() widened the float32 next to 0.3
    for i in range(50):
        real, generated = 0.1 / (i + 1), 0.03 + 0.001 * i
        loss.update_(*scalars(real, generated))
        k = min(max(k + 0.001 * (0.7 * real - generated), 0.0), 1.0)
        assert loss.k.item() == pytest.approx(k, rel=1e-14)
        m = real + abs(0.7 * real - generated)
        assert loss.M.item() == pytest.approx(m, rel=1e-14)


def test_the_discriminator_wants_generated_images_rebuilt_badly():
    real, generated = (e.requires_grad_() for e in scalars(0.5, 0.25))
    BEGANLoss(k=0.75).double()(real, generated).backward()
    assert (real.grad.item(), generated.grad.item()) == (1.0, -0.75)


def test_k_and_m_are_saved_and_restored():
    old, new = BEGANLoss(lambda_k=0.1), BEGANLoss(lambda_k=0.1)
    assert old.M.isnan()
    old.update_(torch.tensor(0.9), torch.tensor(0.1))
    assert set(old.state_dict()) == {"k", "M"}
    new.load_state_dict(old.state_dict())
    assert (new.k, new.M) == (old.k, old.M)
    assert new.k > 0
    assert list(new.parameters()) == []


def test_updating_leaves_no_graph_behind():
    loss = BEGANLoss(lambda_k=0.1)
    loss.update_(*(e.float().requires_grad_() for e in scalars(0.9, 0.1)))
    assert not loss.k.requires_grad
    assert not loss.M.requires_grad
    assert repr(loss) == "BEGANLoss(gamma=0.5, lambda_k=0.1)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": -0.1}, r"BEGANLoss: got gamma=-0\.1; wanted it in \[0, 1\]"),
        ({"gamma": 1.5}, r"got gamma=1\.5"),
        ({"gamma": math.nan}, "got gamma=nan"),
        ({"k": 2}, r"got k=2; wanted it in \[0, 1\]"),
        ({"k": -1}, "got k=-1"),
        ({"lambda_k": 0}, r"got lambda_k=0; wanted a finite number > 0\. At 0"),
        ({"lambda_k": math.inf}, "got lambda_k=inf"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BEGANLoss(**options)


# The gradients


@pytest.fixture
def game(device):
    """A loss in the middle of its range, both players, images and latents."""
    torch.manual_seed(0)
    players = generator(TINY).double(), autoencoder(TINY).double()
    loss = BEGANLoss(k=0.375).double()
    images = torch.rand(5, 2, 4, 4, dtype=torch.float64)
    latents = torch.rand(5, 3, dtype=torch.float64) * 2 - 1
    return [part.to(device) for part in (loss, *players, images, latents)]


def gradients(network):
    return [parameter.grad for parameter in network.parameters()]


def two_passes(loss, generator, discriminator, images, latents):
    """Return the errors and gradients of the paper's two losses, each by itself."""

    def error(pixels):
        return (pixels - discriminator(pixels)).abs().mean()

    real = error(images)
    with torch.no_grad():
        made = generator(latents)
    by_discriminator = torch.autograd.grad(
        real - loss.k * error(made), list(discriminator.parameters())
    )
    generated = error(generator(latents))
    by_generator = torch.autograd.grad(generated, list(generator.parameters()))
    return (real, generated), by_generator, by_discriminator


@pytest.mark.parametrize("k", [0.0, 0.375, 1.0])
def test_one_pass_has_the_gradients_of_the_papers_two(game, k):
    game[0].k.fill_(k)
    errors, by_generator, by_discriminator = two_passes(*game)
    ours = gradients_(*game)
    torch.testing.assert_close(ours, errors)
    torch.testing.assert_close(gradients(game[1]), list(by_generator))
    torch.testing.assert_close(gradients(game[2]), list(by_discriminator))
    assert not any(error.requires_grad for error in ours)
    assert game[0].k.item() == k


def test_bfloat16_gives_float32_gradients_in_nearly_the_same_direction(game):
    game = [part.float() for part in game]
    twin = copy.deepcopy(game)
    plain = gradients_(*game)
    mixed = gradients_(*twin, mixed_precision=True)
    assert {error.dtype for error in mixed} == {torch.float32}
    torch.testing.assert_close(mixed, plain, rtol=0.02, atol=0)
    assert not torch.equal(torch.stack(mixed), torch.stack(plain))
    for network, other in zip(game[1:3], twin[1:3], strict=True):
        ours, theirs = (
            nn.utils.parameters_to_vector(gradients(n)) for n in (network, other)
        )
        assert theirs.dtype == torch.float32
        assert torch.cosine_similarity(ours, theirs, dim=0) > 0.98


def test_a_generator_of_other_images_is_refused(game):
    loss, make, discriminator, images, latents = game
    message = r"made images of shape \(4, 2, 4, 4\); the real ones have \(5, 2, 4, 4\)"
    with pytest.raises(ValueError, match=message):
        gradients_(loss, make, discriminator, images, latents[:4])
    assert gradients(make) == [None] * len(gradients(make))


def test_a_discriminator_that_rebuilds_another_size_is_refused(game):
    loss, make, discriminator, images, latents = game
    smaller = nn.Sequential(discriminator, nn.AvgPool2d(2))
    with pytest.raises(ValueError, match="shape"):
        gradients_(loss, make, smaller, images, latents)


# The networks


@pytest.mark.parametrize("config", [TINY, DIGITS, replace(FOLDER_64, widths=(4, 4, 6))])
def test_the_players_keep_to_the_configurations_shapes(config):
    images = torch.rand(2, config.channels, config.size, config.size)
    latents = torch.rand(2, config.latent)
    discriminator = autoencoder(config)
    assert discriminator[0](images).shape == latents.shape
    assert discriminator(images).shape == generator(config)(latents).shape
    assert generator(config)(latents).shape == images.shape


def test_the_first_images_depend_on_z():
    torch.manual_seed(0)
    make = generator(DIGITS)
    layer = make[0]
    reach = math.sqrt(6 / (layer.in_features + layer.out_features))  # Glorot's
    assert 0.9 * reach < layer.weight.abs().max() <= reach
    assert not any(
        parameter.any()
        for network in (make, autoencoder(DIGITS))
        for name, parameter in network.named_parameters()
        if name.endswith("bias")
    )
    latents = torch.rand(64, DIGITS.latent) * 2 - 1
    assert make(latents).std(dim=0).mean() > 0.05  # 0.01 with torch's own start


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma": 1.2}, r"BEGANLoss: got gamma=1\.2"),
        ({"steps": 0}, r"Config: got steps=0; wanted an int >= 1\."),
        ({"batch_size": 1.5}, r"got batch_size=1\.5"),
        ({"latent": True}, "got latent=True"),
        ({"widths": (4, 0)}, r"got widths\[1\]=0"),
        ({"widths": ()}, "0 widths; wanted at least one width"),
        ({"size": 9}, "got size=9 and 2 widths; .*Take fewer widths"),
        ({"lowest_rate": 1.0}, "wanted 0 < lowest_rate <= learning_rate"),
        ({"lowest_rate": 0.0}, r"lowest_rate=0\.0"),
        ({"decay": 0.0}, r"decay=0\.0; wanted"),
        ({"learning_rate": math.nan}, "learning_rate=nan"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(DIGITS, **changes)


def test_the_seeds_hyperparameters():
    wanted = {"gamma": 0.5, "lambda_k": 0.001, "batch_size": 16, "latent": 64}
    wanted |= {"learning_rate": 1e-4, "decay": 0.9, "lowest_rate": 1e-5, "size": 64}
    assert {name: getattr(FOLDER_64, name) for name in wanted} == wanted


# In halves, and after errors that are not finite


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("inside", [False, True])
def test_k_moves_as_in_float32_when_its_model_is_cast(dtype, inside, device):
    ours, theirs = BEGANLoss(k=0.3).to(device), BEGANLoss(k=0.3).to(device)
    (nn.Sequential(nn.Linear(1, 1), ours) if inside else ours).to(dtype)
    assert torch.equal(ours.k, theirs.k)  # not 0.3 rounded to a half
    real, generated = torch.tensor([1.0, 0.25], device=device).unbind()
    for _ in range(100):
        ours.update_(real.to(dtype), generated.to(dtype))
        theirs.update_(real, generated)
    assert (ours.k, ours.M) == (theirs.k, theirs.M)
    assert ours.k.item() == pytest.approx(0.3 + 100 * 0.001 * 0.25, rel=1e-5)


def test_a_cast_model_saves_and_loads():
    old, new = BEGANLoss(k=0.3).bfloat16(), BEGANLoss().bfloat16()
    new.load_state_dict(old.state_dict())
    assert (new.k.item(), new.k.dtype) == (old.k.item(), torch.float32)
    halves = {name: value.half() for name, value in old.state_dict().items()}
    for assign in (False, True):
        new.load_state_dict(halves, assign=assign)
        assert new.k.dtype == torch.float32
        assert new.k.item() == pytest.approx(0.3, rel=1e-3)
    new.load_state_dict({"k": torch.tensor(0), "M": torch.tensor(1)}, assign=True)
    new.update_(torch.tensor(1.0), torch.tensor(0.25))
    assert new.k.item() == pytest.approx(0.001 * 0.25)
    assert copy.deepcopy(old).k.item() == old.k.item()
    assert old.double().k.dtype == torch.float64
    assert BEGANLoss(k=0.3).to("meta").half().to_empty(device="cpu").k.dim() == 0


def test_a_default_of_halves_leaves_k_precise():
    torch.set_default_dtype(torch.bfloat16)
    try:
        loss = BEGANLoss(k=0.3)
    finally:
        torch.set_default_dtype(torch.float32)
    assert loss.k.item() == pytest.approx(0.3, rel=1e-7)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_an_error_that_is_not_finite_leaves_k_and_shows_in_m(wrong, place):
    loss, errors = BEGANLoss(k=0.3), [torch.tensor(1.0), torch.tensor(0.25)]
    before = loss.k.clone()
    spoiled = list(errors)
    spoiled[place] = torch.tensor(wrong)
    loss.update_(*spoiled)
    assert loss.k == before
    assert not loss.M.isfinite()
    loss.update_(*errors)
    assert loss.k.item() == pytest.approx(0.3 + 0.001 * 0.25)
    assert loss.M.item() == pytest.approx(1.25)


def test_plain_numbers_are_errors_too():
    loss = BEGANLoss(k=0.5)
    assert loss(1.0, 0.5).item() == 0.75
    loss.update_(1.0, 0.25)
    assert loss.k.item() == pytest.approx(0.50025)
    with pytest.raises(
        ValueError, match=r"the real error has shape \(3,\); wanted a s"
    ):
        loss.update_(torch.ones(3), torch.ones(3))


@pytest.mark.parametrize("options", [{"gamma": "0.5"}, {"k": None}, {"lambda_k": "1"}])
def test_texts_are_no_numbers(options):
    (name,) = options
    with pytest.raises(
        ValueError, match=f"BEGANLoss: got {name}={options[name]!r}; want"
    ):
        BEGANLoss(**options)


def test_gradients_that_are_left_over_are_refused(game):
    loss, generator, discriminator, images, latents = game
    gradients_(loss, generator, discriminator, images, latents)
    message = "has a gradient, which would be multiplied by -k"
    with pytest.raises(ValueError, match=message):
        gradients_(loss, generator, discriminator, images, latents)
    discriminator.zero_grad(set_to_none=False)
    gradients_(loss, generator, discriminator, images, latents)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": 4}, "got widths=4; wanted a tuple of ints"),
        ({"learning_rate": "x"}, "learning_rate='x'"),
        ({"decay": None}, "decay=None"),
    ],
)
def test_a_configuration_of_other_types_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **options)
