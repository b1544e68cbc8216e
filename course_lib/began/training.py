"""Train a BEGAN: steps, their history, sample images, and checkpoints.

>>> from dataclasses import replace
>>> from course_lib.began import DIGITS
>>> pixels = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
>>> run = train(replace(DIGITS, steps=4), pixels, every=2, device="cpu")
>>> run.history["step"], run.samples(3).shape
([2, 4], torch.Size([3, 1, 8, 8]))
"""

import contextlib
import inspect
import itertools
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from tqdm.auto import tqdm

from course_lib.began.history import History, Record
from course_lib.began.losses import BEGANLoss, gradients_
from course_lib.began.networks import Config, autoencoder, generator
from course_lib.checks import require_ints
from course_lib.device import forget_casts, pick_device
from course_lib.files import replacing
from course_lib.training.history import TrainingError
from course_lib.trees import all_finite
from course_lib.vision import import_torchvision

__all__ = ["History", "Run", "image_folder", "learning_rate", "train", "watch"]


class Run:
    """The state of a run: `generator`, `discriminator`, `loss`, `history`, `steps`.

    `train` and `watch` make one and train it. Its weights, batches and latents depend
    on the seed alone, whatever else draws random numbers.
    """

    def __init__(self, config: Config, *, seed: int, device: torch.device) -> None:
        self.config, self.seed, self.device = config, seed, device
        self.steps, self.history = 0, History()
        with torch.random.fork_rng(devices=[]):  # the weights are drawn on the CPU
            torch.default_generator.set_state(_stream(seed, 0).get_state())
            self.generator = generator(config).to(device)
            self.discriminator = autoencoder(config).to(device)
        self.loss = BEGANLoss(gamma=config.gamma, lambda_k=config.lambda_k).to(device)
        both = [*self.generator.parameters(), *self.discriminator.parameters()]
        self.optimizer = torch.optim.Adam(both, fused=True)
        self._random = _stream(seed, 1)

    def step(self, images: Tensor) -> Tensor:
        """Update both players, then k and M; return L_real, L_gen and M, shape (3,).

        Raises:
            TrainingError: an error or a gradient is not finite; the weights and k are
                unchanged.
        """
        latents = self._latents(len(images), self._random)
        self.optimizer.param_groups[0]["lr"] = learning_rate(self.config, self.steps)
        self.optimizer.zero_grad()
        players = self.loss, self.generator, self.discriminator
        mixed = self.config.mixed_precision
        errors = gradients_(*players, images, latents, mixed_precision=mixed)
        self._require_finite(torch.stack(errors))
        self.optimizer.step()
        forget_casts()
        self.loss.update_(*errors)
        self.steps += 1
        return torch.stack([*errors, self.loss.M])

    @torch.no_grad()
    def samples(self, count: int = 64) -> Tensor:
        """Return generated pixels in [0, 1], from the same latents at each call."""
        latents = self._latents(count, _stream(self.seed, 2))
        return self.generator(latents).clamp(0, 1)

    def _latents(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw from U(-1, 1), on the CPU: the same numbers for every device."""
        drawn = torch.rand(count, self.config.latent, generator=generator)
        return (2 * drawn - 1).to(self.device)

    def _require_finite(self, errors: Tensor) -> None:
        real, made = errors.tolist()  # the step's one wait for a GPU
        moved = self.optimizer.param_groups[0]["params"]
        if not (math.isfinite(real) and math.isfinite(made)):
            found = f"L_real is {real:.4g} and L_gen {made:.4g}; wanted finite numbers"
            advice = ", or look for nan in the images"
        elif not all_finite([p.grad for p in moved if p.grad is not None]):
            found = "a gradient is nan or infinite, though the errors are finite"
            advice = ""
        else:
            return
        raise TrainingError(
            f"began: step {self.steps + 1}: {found}. The weights and k are those "
            f"before this step. Lower the learning rate{advice}.",
            self.history,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a run needs to continue to the same numbers."""
        parts = {name: getattr(self, name).state_dict() for name in _PARTS}
        records = [tuple(record) for record in self.history.records]
        own = {"steps": self.steps, "records": records, "seed": self.seed}
        random = self._random.get_state()
        return {**parts, **own, "random": random, "config": asdict(self.config)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state of a run with the same seed and configuration.

        The number of steps in the configuration may differ: a run can be extended.

        Raises:
            ValueError: the seed or the configuration differs.
        """
        ours = {**asdict(self.config), "seed": self.seed, "steps": None}
        theirs = {**state["config"], "seed": state["seed"], "steps": None}
        for name, value in ours.items():
            if theirs.get(name) != value:
                raise ValueError(
                    f"load_state_dict: the checkpoint's run has {name}="
                    f"{theirs.get(name)!r}, this one {value!r}. Take that value, or "
                    "another file."
                )
        for name in _PARTS:
            getattr(self, name).load_state_dict(state[name])
        self._random.set_state(state["random"])
        self.steps = state["steps"]
        self.history.records[:] = [Record(*each) for each in state["records"]]


_PARTS = ("generator", "discriminator", "loss", "optimizer")


def _stream(seed: int, number: int) -> torch.Generator:
    """Return generator 0 to 3: of weights, latents, samples, order of the images."""
    return torch.Generator().manual_seed(4 * seed + number)


def learning_rate(config: Config, step: int) -> float:
    """Return the rate of a step, counted from 0.

    >>> from course_lib.began import FOLDER_64
    >>> [learning_rate(FOLDER_64, step) for step in (0, 4999, 5000, 10**6)]
    [0.0001, 0.0001, 9e-05, 1e-05]
    """
    rate = config.learning_rate * config.decay ** (step // config.decay_every)
    return max(rate, config.lowest_rate)


def image_folder(path: str | os.PathLike[str], *, size: int = 64) -> TorchDataset:
    """Return the images in the subfolders of `path`, as pixels `(3, size, size)`.

    torchvision's ImageFolder: an image is read when it is used, scaled, and cut to its
    middle square.

    Raises:
        ValueError: there is no image in a subfolder of `path`.
    """
    vision = import_torchvision()
    change = vision.transforms
    steps = [change.Resize(size), change.CenterCrop(size), change.ToTensor()]
    try:
        return vision.datasets.ImageFolder(path, transform=change.Compose(steps))
    except OSError as error:
        raise ValueError(
            f"image_folder: found no images in the subfolders of {path}; wanted at "
            "least one, such as faces/0001.jpg. Put the images into a subfolder."
        ) from error


def train(
    config: Config,
    images: Tensor | TorchDataset,
    *,
    on_record: Callable[[Run], object] | None = None,
    progress: bool = True,
    **options: Any,
) -> Run:
    """Train to the configuration's last step and return the run.

    Args:
        config: as for `watch`.
        images: as for `watch`.
        on_record: called with the run at each record, for example to draw
            `run.samples()`; a true answer stops.
        progress: show a bar; TQDM_DISABLE=1 in the environment hides it too.
        **options: the other arguments of `watch`, whose errors it raises.

    Raises:
        TypeError: there is no such option.
    """
    _require_options(options)
    stretches = watch(config, images, **options)
    hidden = not progress or bool(os.environ.get("TQDM_DISABLE"))
    bar = tqdm(total=config.steps, unit="step", disable=hidden)
    with bar, contextlib.closing(stretches):
        for run in stretches:
            bar.update(run.steps - bar.n)
            last = run.history.records[-1]
            bar.set_postfix(k=f"{last.k:.3f}", M=f"{last.M:.3g}")
            if on_record and on_record(run):
                break
    return run


def _require_options(given: Iterable[str]) -> None:
    known = {
        name: None
        for function in (train, watch)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    for name in given:
        if name not in known:
            raise TypeError(
                f"began: train has no option {name!r}; wanted one of "
                f"{', '.join(known)}. The rest is in the Config: "
                "dataclasses.replace(DIGITS, steps=1000)."
            )


def watch(
    config: Config,
    images: Tensor | TorchDataset,
    *,
    every: int = 100,
    seed: int = 0,
    device: str | torch.device | None = None,
    workers: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Iterator[Run]:
    """Return an iterator that trains for `every` steps and yields the run.

    It yields the same object each time. Arguments are checked at the call.

    Args:
        config: DIGITS, FOLDER_64 or your own.
        images: real pixels in [0, 1], `(n, channels, size, size)`, or a data set of
            (pixels, label) such as `image_folder` returns.
        every: steps between two records of the history.
        seed: of the weights, the batches and the latents.
        device: where to compute; None is `pick_device()`.
        workers: processes that read a data set's images; 0 reads them here.
        checkpoint: a file where the run is saved at each record. If it exists, the run
            continues from it, to the same numbers as without a stop (on a GPU, up to
            the order in which its kernels add).

    Raises:
        TrainingError: L_real, L_gen or a gradient is not finite; the error carries the
            history.
        ValueError: an argument is out of range, the images don't fit the
            configuration, or the checkpoint is of another run.

    >>> from dataclasses import replace
    >>> from course_lib.began import DIGITS
    >>> pixels = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> for run in watch(replace(DIGITS, steps=4), pixels, every=2, device="cpu"):
    ...     print(run.steps, run.loss.k <= 1)
    2 tensor(True)
    4 tensor(True)
    """
    if not isinstance(config, Config):
        raise ValueError(
            f"began: got a configuration of type {type(config).__name__}; wanted a "
            "Config, for example DIGITS."
        )
    require_ints("began", every=every)
    require_ints("began", None, seed=seed)
    require_ints("began", 0, workers=workers)
    if checkpoint is not None and not Path(checkpoint).absolute().parent.is_dir():
        raise ValueError(
            f"began: the folder of the checkpoint {checkpoint} is missing. Make it "
            "first."
        )
    _check_images(config, images)
    run = Run(config, seed=seed, device=pick_device(device))
    if checkpoint is not None and Path(checkpoint).exists():
        run.load_state_dict(_read(Path(checkpoint)))
    return _stretches(run, images, every, workers, checkpoint)


def _stretches(
    run: Run,
    images: Tensor | TorchDataset,
    every: int,
    workers: int,
    checkpoint: str | os.PathLike[str] | None,
) -> Iterator[Run]:
    """Train the run; yield it at each multiple of `every`, and at the end."""
    if run.steps >= run.config.steps:  # a checkpoint of a finished run
        yield run
        return
    start, first = time.perf_counter(), run.steps
    total = torch.zeros(3, device=run.device)
    for batch in _batches(run, images, workers):
        total += run.step(batch)
        if run.steps % every and run.steps != run.config.steps:
            continue
        real, made, convergence = (total / (run.steps - first)).tolist()
        errors, k = (run.steps, real, made), run.loss.k.item()
        seconds = time.perf_counter() - start
        run.history.records.append(Record(*errors, k, convergence, seconds))
        if checkpoint is not None:
            with replacing(checkpoint) as stream:
                torch.save(run.state_dict(), stream)
        yield run
        start, first = time.perf_counter(), run.steps
        total.zero_()


def _batches(run: Run, images: Tensor | TorchDataset, workers: int) -> Iterator[Tensor]:
    """Yield the batches from the run's next step to its last, on its device."""
    order = _order(len(images), run.config.batch_size, run.seed)
    rest = itertools.islice(order, run.steps, run.config.steps)
    if isinstance(images, Tensor):
        here = images.to(run.device, torch.float32)
        yield from (here[chosen.to(run.device)] for chosen in rest)
        return
    pinned = run.device.type == "cuda"
    indices = (chosen.tolist() for chosen in rest)
    options = {"num_workers": workers, "pin_memory": pinned}
    for batch, *_ in DataLoader(images, batch_sampler=indices, **options):
        yield batch.to(run.device, torch.float32, non_blocking=True)


def _order(count: int, size: int, seed: int) -> Iterator[Tensor]:
    """Yield the indices of each batch, shuffled again in each pass.

    The samples that don't fill the last batch of a pass are left out of it.
    """
    generator = _stream(seed, 3)
    while True:
        shuffled = torch.randperm(count, generator=generator)
        yield from shuffled[: count - count % size].split(size)


def _read(path: Path) -> dict[str, Any]:
    """Read a checkpoint; nothing in the file is run."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not {*_PARTS, "steps", "records", "seed", "random", "config"} <= set(state):
            raise ValueError("entries are missing")
    except Exception as error:  # a damaged file can fail in any way
        raise ValueError(
            f"began: {path} is not a checkpoint of a BEGAN run "
            f"({str(error).splitlines()[0]}). Delete it, or name another file."
        ) from error
    return state


def _check_images(config: Config, images: Tensor | TorchDataset) -> None:
    """Check all of a tensor, or the first image of a data set."""
    if not isinstance(images, Tensor | TorchDataset):
        raise ValueError(
            f"began: got images of type {type(images).__name__}; wanted a tensor or a "
            "data set, for example image_folder(path)."
        )
    if len(images) < config.batch_size:
        raise ValueError(
            f"began: got {len(images)} images; wanted at least one batch of "
            f"{config.batch_size}. Find more, or lower the batch size."
        )
    first = images[0]
    if not isinstance(images, Tensor):
        if not isinstance(first, tuple | list) or not isinstance(first[0], Tensor):
            raise ValueError(
                f"began: the data set gave {type(first).__name__}; wanted (pixels, "
                "label), pixels a tensor. Pass the pixels themselves, or change its "
                "transform."
            )
        first = first[0]
    wanted = (config.channels, config.size, config.size)
    if first.shape != wanted:
        raise ValueError(
            f"began: got images of shape {tuple(first.shape)}; the configuration wants "
            f"{wanted}. Resize them, or change its size and channels."
        )
    low, high = (images if isinstance(images, Tensor) else first).aminmax()
    in_range = low >= 0 and high <= 1  # nan is not
    if not (first.is_floating_point() and in_range):
        raise ValueError(
            f"began: got {first.dtype} pixels from {low:.3g} to {high:.3g}; wanted "
            "floats in [0, 1]. Undo a normalization with data.pixels(inputs), divide "
            "bytes by 255."
        )
