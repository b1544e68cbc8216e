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
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from tqdm.auto import tqdm

from course_lib.began.history import Record
from course_lib.began.networks import Config
from course_lib.began.run import PARTS, Run, stream
from course_lib.checks import require_ints
from course_lib.device import pick_device
from course_lib.files import replacing
from course_lib.vision import import_torchvision


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
        run.check()
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
    generator = stream(seed, 3)
    while True:
        shuffled = torch.randperm(count, generator=generator)
        yield from shuffled[: count - count % size].split(size)


def _read(path: Path) -> dict[str, Any]:
    """Read a checkpoint; nothing in the file is run."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not {*PARTS, "steps", "records", "seed", "random", "config"} <= set(state):
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
