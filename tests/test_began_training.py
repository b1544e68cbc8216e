"""The BEGAN run against a loop by hand: numbers, checkpoints, history, wrong input."""

import copy
import io
import math
from dataclasses import replace

import matplotlib.figure
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from course_lib.began import DIGITS, Config, History, Run, image_folder, train, watch
from course_lib.began.history import Record
from course_lib.began.run import learning_rate
from course_lib.data import load
from course_lib.training import TrainingError
from tests.pretended_gpu.tensors import waits

TINY = Config(
    size=4,
    channels=1,
    latent=3,
    widths=(4, 6),
    steps=6,
    batch_size=4,
    lambda_k=0.2,  # so that k matters within a few steps
    gamma=0.9,
    learning_rate=1e-3,
    decay=0.5,
    decay_every=2,
    lowest_rate=3e-4,
)


def pixels(count=11, size=4):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 1, size, size, generator=generator)


def start(config=TINY, device="cpu", seed=0):
    return Run(config, seed=seed, device=torch.device(device))


def state(run):
    """Return everything of a run that its clock has no part in."""
    found = run.state_dict()
    found["records"] = [record[:-1] for record in found["records"]]
    return found


def assert_same(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def test_an_autocast_around_a_run_sees_the_weights_move():
    inside = start(replace(TINY, mixed_precision=True))
    around = start(replace(TINY, mixed_precision=True))
    for images in pixels(12).split(4):
        inside.step(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # which holds casts to its end
        for images in pixels(12).split(4):
            around.step(images)
    assert_same(around.generator.state_dict(), inside.generator.state_dict())


# The step


def loop_by_hand(run, batches, latents):
    """The paper's two losses with an optimizer for each player, and k as a float."""
    discriminator, generator = run.discriminator, run.generator
    config, k, rows = run.config, run.loss.k.item(), []
    optimizers = [torch.optim.Adam(n.parameters()) for n in (discriminator, generator)]

    def error(images):
        return (images - discriminator(images)).abs().mean()

    for step, (images, z) in enumerate(zip(batches, latents, strict=True)):
        rate = max(config.learning_rate * 0.5 ** (step // 2), config.lowest_rate)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = rate
        real, generated = error(images), error(generator(z))
        losses = real - k * error(generator(z).detach()), generated
        grads = [
            torch.autograd.grad(loss, list(network.parameters()))
            for loss, network in zip(losses, (discriminator, generator), strict=True)
        ]
        for network, grad in zip((discriminator, generator), grads, strict=True):
            for parameter, its in zip(network.parameters(), grad, strict=True):
                parameter.grad = its
        for optimizer in optimizers:
            optimizer.step()
        imbalance = config.gamma * real.item() - generated.item()
        rows.append((real.item(), generated.item(), real.item() + abs(imbalance)))
        k = min(max(k + config.lambda_k * imbalance, 0.0), 1.0)
    return rows, k


def test_a_run_is_the_loop_written_by_hand(device):
    ours, theirs = start(device=device), start(device=device)
    for run in (ours, theirs):
        run.loss.k.fill_(0.5)
    batches = [batch.to(device) for batch in pixels(20).split(4)]
    source = copy.deepcopy(ours._random)
    latents = [(2 * torch.rand(4, 3, generator=source) - 1).to(device) for _ in batches]

    seen = torch.stack([ours.step(batch) for batch in batches])
    rows, k = loop_by_hand(theirs, batches, latents)

    torch.testing.assert_close(seen.cpu(), torch.tensor(rows), rtol=1e-4, atol=1e-6)
    assert ours.loss.k.item() == pytest.approx(k, abs=1e-5)
    assert abs(k - 0.5) > 0.01
    assert ours.loss.k.device.type == device.type
    for name in ("generator", "discriminator"):
        mine, his = (getattr(run, name).state_dict() for run in (ours, theirs))
        torch.testing.assert_close(mine, his, rtol=1e-3, atol=1e-5)
    assert ours.steps == 5


def test_the_learning_rate_falls_to_its_floor():
    rates = [learning_rate(TINY, step) for step in range(6)]
    assert rates == [1e-3, 1e-3, 5e-4, 5e-4, 3e-4, 3e-4]


def test_the_equilibrium_is_reached_on_the_digits():
    digits = load("digits", device="cpu")
    config = replace(DIGITS, steps=400)
    history = train(config, digits.pixels(digits.train.inputs), device="cpu").history
    ratio = history["generated"][-1] / history["real"][-1]
    assert ratio == pytest.approx(config.gamma, rel=0.2)
    assert history["M"] == sorted(history["M"], reverse=True)
    assert all(0 < k < 1 for k in history["k"])


def test_a_run_follows_from_its_seed_alone():
    torch.manual_seed(123)
    before = torch.get_rng_state()
    one = train(TINY, pixels(), device="cpu")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    same, other = (train(TINY, pixels(), seed=s, device="cpu") for s in (0, 1))
    assert_same(state(one), state(same))
    assert not torch.equal(one.generator[0].weight, other.generator[0].weight)


def test_each_pass_takes_each_image_once_in_another_order():
    images = torch.arange(8.0).div(8)[:, None, None, None].expand(8, 1, 4, 4)
    seen, original = [], Run.step

    def step(self, batch):
        seen.extend(batch[:, 0, 0, 0].mul(8).int().tolist())
        return original(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "step", step)
        train(TINY, images, device="cpu")
    passes = [seen[i : i + 8] for i in (0, 8, 16)]
    assert [sorted(each) for each in passes] == [list(range(8))] * 3
    assert len(set(map(tuple, passes))) == 3


def test_bfloat16_trains_to_nearly_the_same_errors(device):
    plain = train(TINY, pixels(), device=device)
    mixed = train(replace(TINY, mixed_precision=True), pixels(), device=device)
    assert mixed.history["real"] == pytest.approx(plain.history["real"], rel=0.05)
    assert mixed.history["real"] != plain.history["real"]
    assert {p.dtype for p in mixed.generator.parameters()} == {torch.float32}
    assert mixed.loss.k.dtype == torch.float32


# Records, live and at the end


def test_the_history_holds_means_over_the_stretch_and_the_last_k():
    fine = train(TINY, pixels(), every=1, device="cpu").history
    coarse = train(TINY, pixels(), every=4, device="cpu").history
    assert (fine["step"], coarse["step"]) == ([1, 2, 3, 4, 5, 6], [4, 6])
    for column in ("real", "generated", "M"):
        means = [sum(fine[column][:4]) / 4, sum(fine[column][4:]) / 2]
        assert coarse[column] == pytest.approx(means)
    assert coarse["k"] == [fine["k"][3], fine["k"][5]]
    assert all(seconds > 0 for seconds in coarse["seconds"])


def test_watching_is_training_in_stretches():
    seen = []
    for run in watch(TINY, pixels(), every=2, device="cpu"):
        seen.append((run.steps, run.loss.k.item(), run.samples(5)))
    whole = train(TINY, pixels(), every=2, device="cpu")
    assert_same(state(run), state(whole))
    assert [steps for steps, _, _ in seen] == whole.history["step"] == [2, 4, 6]
    assert [k for _, k, _ in seen] == whole.history["k"]
    assert seen[0][2].shape == (5, 1, 4, 4)
    assert not torch.equal(seen[0][2], seen[1][2])  # the players have moved on


def test_samples_are_the_same_pixels_until_the_next_step():
    run = start()
    first = run.samples(6)
    assert torch.equal(run.samples(6), first)
    assert not first.requires_grad
    assert (first.min(), first.max().item() <= 1) == (0, True)
    assert_same(state(run), state(start()))


def test_a_true_answer_of_on_record_stops():
    answers = iter([False, True])
    run = train(
        TINY, pixels(), every=2, device="cpu", on_record=lambda _: next(answers)
    )
    assert run.steps == 4


def records(count):
    return [Record(i, 0.5, 0.25, 0.125, 0.75, 1.0) for i in range(1, count + 1)]


def test_the_history_prints_as_a_table_with_its_two_ends():
    assert repr(History()) == "History: no record yet"
    assert repr(History(records(1))) == (
        "step  L_real   L_gen       k       M\n   1  0.5000  0.2500  0.1250  0.7500"
    )
    words = [line.split()[0] for line in repr(History(records(12))).split("\n")]
    assert words == ["step", *"12345", "...", "9", "10", "11", "12"]
    with pytest.raises(KeyError, match="History: got 'm'; wanted one of step, real"):
        History(records(1))["m"]


def test_the_history_plots_k_and_m_or_what_is_named():
    ax, other = matplotlib.figure.Figure().subplots(1, 2)
    history = History(records(2))
    assert history.plot(ax) is ax
    history.plot(other, "real")
    drawn = [
        [(line.get_label(), list(line.get_ydata())) for line in each.lines]
        for each in (ax, other)
    ]
    assert drawn == [[("k", [0.125] * 2), ("M", [0.75] * 2)], [("real", [0.5] * 2)]]
    assert list(ax.lines[0].get_xdata()) == [1, 2]
    assert ax.get_xlabel() == "step"


@pytest.mark.parametrize(
    ("progress", "disable", "shown"),
    [(True, "", True), (False, "", False), (True, "1", False)],
)
def test_the_bar_shows_unless_told_otherwise(monkeypatch, progress, disable, shown):
    written = io.StringIO()
    monkeypatch.setattr("sys.stderr", written)
    monkeypatch.setenv("TQDM_DISABLE", disable)
    train(TINY, pixels(), device="cpu", progress=progress)
    assert ("6/6" in written.getvalue()) is shown
    assert ("M=" in written.getvalue()) is shown


# Checkpoints


@pytest.mark.parametrize("images", [pixels(), TensorDataset(pixels(), pixels())])
def test_a_resumed_run_goes_on_to_the_same_numbers(tmp_path, device, images):
    file = tmp_path / "run.pt"
    options = {"every": 2, "device": device}
    first = train(replace(TINY, steps=4), images, checkpoint=file, **options)
    resumed = train(TINY, images, checkpoint=file, **options)
    whole = train(TINY, images, **options)

    assert (first.steps, resumed.steps) == (4, 6)
    tolerance = {"rtol": 0, "atol": 0} if device.type == "cpu" else {}
    torch.testing.assert_close(state(resumed), state(whole), **tolerance)
    assert 0 < resumed.loss.k.item() < 1
    assert resumed.loss.k.device.type == device.type
    assert list(tmp_path.iterdir()) == [file]


def test_an_interrupted_run_goes_on_from_its_last_record(tmp_path):
    options = {"every": 2, "device": "cpu", "checkpoint": tmp_path / "run.pt"}
    train(TINY, pixels(), on_record=lambda run: run.steps == 4, **options)
    steps = [run.steps for run in watch(TINY, pixels(), **options)]
    assert steps == [6]
    assert [run.steps for run in watch(TINY, pixels(), **options)] == [6]  # finished


@pytest.mark.parametrize(
    ("changes", "seed", "message"),
    [
        ({"gamma": 0.25}, 0, "the checkpoint's run has gamma=0.9, this one 0.25"),
        ({"widths": (4, 8)}, 0, r"has widths=\(4, 6\), this one \(4, 8\)"),
        ({}, 3, "has seed=0, this one 3"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, changes, seed, message):
    options = {"device": "cpu", "checkpoint": tmp_path / "run.pt"}
    train(TINY, pixels(), **options)
    with pytest.raises(ValueError, match=message):
        train(replace(TINY, **changes), pixels(), seed=seed, **options)


@pytest.mark.parametrize("content", ["bytes", "state"])
def test_a_file_that_is_no_checkpoint_is_refused_and_kept(tmp_path, content):
    file = tmp_path / "run.pt"
    if content == "bytes":
        file.write_bytes(b"not a checkpoint")
    else:
        torch.save({"generator": {}}, file)
    before = file.read_bytes()
    with pytest.raises(ValueError, match=r"run\.pt is not a checkpoint of a BEGAN run"):
        train(TINY, pixels(), device="cpu", checkpoint=file)
    assert file.read_bytes() == before


def test_a_save_that_fails_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    file = tmp_path / "run.pt"
    train(replace(TINY, steps=2), pixels(), device="cpu", checkpoint=file)
    before = file.read_bytes()

    def fail(state, stream):
        stream.write(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="full"):
        train(TINY, pixels(), device="cpu", checkpoint=file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


# What cannot go on


def test_a_nan_among_the_images_stops_before_the_update():
    run, twin = start(), start()
    with pytest.raises(
        TrainingError,
        match=r"began: step 1: L_real is nan and L_gen 0\.\d+; wanted finite numbers\. "
        r"The weights and k are those before this step\. Lower the learning rate",
    ) as caught:
        run.step(torch.full((4, 1, 4, 4), math.nan))
    for name in ("generator", "discriminator", "optimizer"):
        ours, theirs = (getattr(each, name).state_dict() for each in (run, twin))
        assert_same(ours, theirs)
    assert (run.loss.k, run.steps) == (0, 0)
    assert caught.value.history is run.history


def test_the_error_carries_the_history_so_far():
    images = pixels(8)
    images[3] = math.nan  # a data set is looked at image by image
    with pytest.raises(TrainingError, match=r"step [12]: L_real is nan") as caught:
        train(TINY, TensorDataset(images, images), every=1, device="cpu")
    assert len(caught.value.history) == int(str(caught.value)[12]) - 1


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (pixels(3), "got 3 images; wanted at least one batch of 4"),
        (pixels(0), "got 0 images"),
        (pixels(size=8), r"of shape \(1, 8, 8\); the configuration wants \(1, 4, 4\)"),
        (pixels()[:, 0], r"of shape \(4, 4\)"),
        (
            pixels() - 0.5,
            r"pixels from -0\.\d+ to 0\.\d+; wanted floats in \[0, 1\]\. U",
        ),
        (pixels() * math.nan, "pixels from nan to nan"),
        (
            pixels().gt(0.5).byte(),
            r"got torch\.uint8 pixels from 0 to 1; wanted floats",
        ),
        ([1, 2], "images of type list; wanted a tensor or a data set"),
        (TensorDataset(pixels(size=8), pixels()), r"of shape \(1, 8, 8\)"),
    ],
)
def test_images_that_do_not_fit_are_refused_at_the_call(images, message):
    with pytest.raises(ValueError, match=message):
        watch(TINY, images, device="cpu")


@pytest.mark.parametrize("every", [0, 1.5, True])
def test_every_counts_steps(every):
    with pytest.raises(ValueError, match=f"began: got every={every}; wanted an int"):
        watch(TINY, pixels(), every=every)


def test_an_option_that_there_is_not_is_refused_with_those_that_there_are():
    words = "has no option 'steps'; wanted one of on_record, progress, every, seed, dev"
    with pytest.raises(TypeError, match=f"^began: train {words}.*checkpoint.*Config"):
        train(TINY, pixels(), steps=3)


# A folder of images


def picture(path, size, color):
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", size, color).save(path)


def test_a_folder_gives_the_middle_squares_as_pixels(tmp_path):
    picture(tmp_path / "a" / "wide.png", (30, 10), (255, 0, 51))
    picture(tmp_path / "b" / "high.png", (4, 9), (0, 255, 0))
    images = image_folder(tmp_path, size=8)
    assert len(images) == 2
    for (image, _), color in zip(images, [(1.0, 0, 0.2), (0, 1.0, 0)], strict=True):
        expected = torch.tensor(color)[:, None, None].expand(3, 8, 8)
        torch.testing.assert_close(image, expected)


def test_a_folder_trains_as_a_tensor_of_its_pixels_does(tmp_path):
    for i in range(5):
        picture(tmp_path / "all" / f"{i}.png", (4, 4), (50 * i, 10 * i, 0))
    images = image_folder(tmp_path, size=4)
    config = replace(TINY, channels=3)
    from_folder = train(config, images, device="cpu")
    tensor = torch.stack([image for image, _ in images])
    assert_same(state(from_folder), state(train(config, tensor, device="cpu")))


def test_a_wide_image_is_cut_and_not_squeezed(tmp_path):
    image = Image.new("RGB", (12, 4), (255, 0, 0))
    image.paste((0, 0, 255), (4, 0, 8, 4))  # the middle third
    (tmp_path / "a").mkdir()
    image.save(tmp_path / "a" / "wide.png")
    ((pixels, _),) = image_folder(tmp_path, size=4)
    assert pixels[2].eq(1).all()
    assert not pixels[:2].any()


@pytest.mark.parametrize("where", [".", "nowhere", "flat.png"])
def test_a_folder_without_images_in_subfolders_is_refused(tmp_path, where):
    picture(tmp_path / "flat.png", (4, 4), 0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ValueError, match=r"found no images in the subfolders of .*0001"
    ):
        image_folder(tmp_path / where)


# What people bring


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_pixels_of_another_float_are_trained_on_in_float32(dtype):
    images = (pixels() * 8).round() / 8  # exact in each of them
    wanted = train(TINY, images, every=3, device="cpu")
    for other in (images.to(dtype), TensorDataset(images.to(dtype), torch.zeros(11))):
        run = train(TINY, other, every=3, device="cpu")
        assert run.history["real"] == wanted.history["real"]


def test_a_data_set_needs_no_labels():
    wanted = train(TINY, pixels(), every=3, device="cpu").history["real"]
    run = train(TINY, TensorDataset(pixels()), every=3, device="cpu")
    assert run.history["real"] == wanted


class Bare(torch.utils.data.Dataset):
    def __len__(self):
        return 11

    def __getitem__(self, index):
        return pixels()[index]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1.5}, r"got seed=1\.5; wanted an int\."),
        ({"seed": None}, "got seed=None"),
        ({"every": 0}, "got every=0; wanted an int >= 1"),
        ({"workers": -1}, "got workers=-1; wanted an int >= 0"),
        ({"config": None}, r"a configuration of type NoneType; .*DIGITS"),
        ({"images": Bare()}, r"gave Tensor; wanted \(pixels, label\)"),
        ({"checkpoint": "nowhere/run.pt"}, "the folder of the checkpoint nowhere/run"),
    ],
)
def test_arguments_of_other_kinds_are_refused(changes, message):
    options = {"config": TINY, "images": pixels(), "device": "cpu", **changes}
    with pytest.raises(ValueError, match=message):
        train(**options)


class Spoil(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * math.nan


def test_a_gradient_that_is_nan_stops_before_the_update():
    run = start()
    run.step(pixels(TINY.batch_size))
    before = copy.deepcopy(state(run))
    run.generator.register_forward_hook(lambda m, x, y: Spoil.apply(y))
    with pytest.raises(TrainingError, match="step 2: a gradient is nan or infinite"):
        run.step(pixels(TINY.batch_size))
    for name, value in run.generator.state_dict().items():
        assert torch.equal(value, before["generator"][name])
    assert run.loss.k == before["loss"]["k"]
    assert run.steps == 1


@pytest.mark.parametrize("spoils", ["errors", "a gradient"])
def test_a_gpu_is_asked_later_and_nothing_moves_after_the_failure(gpu, spoils):
    """The third of five steps fails; nobody waits until the check."""
    batches = pixels(5 * TINY.batch_size).split(TINY.batch_size)
    run, twin = start(device=gpu), start()
    waits.clear()
    for number, images in enumerate(batches):
        images = images.to(gpu)
        if number == 2 and spoils == "errors":
            images[1] = math.nan
        elif number == 2:
            hook = run.generator.register_forward_hook(lambda *a: Spoil.apply(a[2]))
        run.step(images)
        if number == 2 and spoils != "errors":
            hook.remove()
    assert not waits
    with pytest.raises(TrainingError, match=r"^began: step 3: .*those before this"):
        run.check()
    for images in batches[:2]:
        twin.step(images)
    assert run.steps == 2
    for name in ("generator", "discriminator"):
        for key, tensor in getattr(twin, name).state_dict().items():
            ours = getattr(run, name).state_dict()[key]
            torch.testing.assert_close(ours.cpu(), tensor)
    torch.testing.assert_close(run.loss.k.cpu(), twin.loss.k)
    assert twin.loss.k > 0
    run.step(batches[2].to(gpu))  # and it goes on from there
    assert not torch.equal(run.loss.k.cpu(), twin.loss.k)


def test_a_failure_that_nobody_saw_is_in_no_checkpoint(gpu):
    run = start(device=gpu)
    run.step(torch.full((4, 1, 4, 4), math.nan, device=gpu))
    with pytest.raises(TrainingError, match="step 1: L_real is nan"):
        run.state_dict()
    assert run.state_dict()["steps"] == 0


def test_a_run_on_a_gpu_waits_for_its_records_alone(gpu):
    counts = []
    for steps in (4, 8):
        waits.clear()
        train(replace(TINY, steps=steps), pixels(), every=steps, device=gpu)
        counts.append(sum(waits.values()))
    assert counts[0] == counts[1] > 0
