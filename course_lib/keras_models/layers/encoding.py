"""Layers that turn numbers into categories, and categories into vectors."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from course_lib.keras_models.layers.base import Function, Layer
from course_lib.keras_models.layers.core import numbers
from course_lib.keras_models.registry import keras_layer
from course_lib.keras_models.settings import Settings

MODES = ("one_hot", "multi_hot", "count")


def encode(ids: Tensor, mode: str, count: int) -> Tensor:
    """Turn whole numbers in [0, count) into vectors of this length.

    "one_hot": (batch, steps) -> (batch, steps, count), or (batch, 1) -> (batch, count).
    "multi_hot", "count": (batch, steps) -> (batch, count). Other numbers count nowhere.
    """
    ids = ids.long()
    if ids.dim() < 2:
        raise ValueError(f"the input has {ids.dim()} axis; wanted at least 2")
    if mode == "one_hot" and ids.shape[-1] == 1:
        ids = ids.squeeze(-1)
    vectors = (ids.unsqueeze(-1) == torch.arange(count, device=ids.device)).float()
    if mode == "one_hot":
        return vectors
    return vectors.amax(1) if mode == "multi_hot" else vectors.sum(1)


@keras_layer("CategoryEncoding")
def category_encoding(settings: Settings) -> Layer:
    """Vectors of zeros and ones, or of counts, for whole numbers."""
    old = settings.left.pop("max_tokens", None)  # its name in 2.4
    settings.left.setdefault("num_tokens", old)
    count = settings.integer("num_tokens")
    if settings.left.get("output_mode") == "binary":  # likewise
        settings.left["output_mode"] = "multi_hot"
    mode = settings.choice("output_mode", MODES, "multi_hot")
    return Function(settings, partial(encode, mode=mode, count=count))


@keras_layer("Discretization")
class Discretization(Layer):
    """The number of boundaries that are not above x, from 0 to all; then encoded."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        if settings.left.get("bin_boundaries") is None:
            settings.left["bin_boundaries"] = settings.left.pop("bins", None)
        found: Any = settings.left["bin_boundaries"]
        if found is not None:
            found = numbers(settings, "bin_boundaries")
        if not isinstance(found, list):
            found = []
            _note_adapted(settings, "boundaries were adapted to data, and are")
        boundaries = torch.tensor(sorted(found), dtype=torch.float32)
        self.register_buffer("boundaries", boundaries, persistent=False)
        self.mode = settings.choice("output_mode", ("int", *MODES), "int")
        settings.ignore("bin_boundaries", "num_bins", "epsilon", "bins")

    def forward(self, x: Tensor) -> Tensor:
        """Return whole numbers of x's shape, or their vectors."""
        count = len(self.boundaries) + 1
        if x.is_meta:
            bins = x.new_empty(x.shape, dtype=torch.int64)
        else:
            x = x.to(self.boundaries.dtype).contiguous()
            bins = torch.bucketize(x, self.boundaries, right=True)
        return bins if self.mode == "int" else encode(bins, self.mode, count)


@keras_layer("IntegerLookup")
class IntegerLookup(Layer):
    """The place of each whole number in a vocabulary; inverted, the number at a place.

    Places begin with that of the mask (not among vectors, which leave it out) and those
    of unknown numbers, which share them out by their remainder.
    Source: keras/src/layers/preprocessing/index_lookup.py at v3.15.1.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.unknown = settings.integer("num_oov_indices", 1, least=0)
        self.mode = settings.choice("output_mode", ("int", *MODES), "int")
        self.inverts = settings.flag("invert", False)
        self.mask = settings.take("mask_token", None)
        self.outside = settings.take("oov_token", -1)
        self.start = int(self.mask is not None and self.mode == "int")
        if settings.left.get("vocabulary") is None:
            _note_adapted(settings, "vocabulary was adapted to data, and is")
        words = settings.list_of_integers("vocabulary", [])
        special = (self.mask,) * self.start + (self.outside,) * self.unknown
        if words[: len(special)] == special:
            words = words[len(special) :]
        table = torch.tensor(words, dtype=torch.int64)
        self.register_buffer("words", table, persistent=False)
        self.first = len(special)
        self.size = self.first + len(words)
        if settings.flag("pad_to_max_tokens", False):
            self.size = settings.integer("max_tokens")
        settings.only("oov_method", "floormod")
        settings.ignore("max_tokens", "vocabulary_dtype", "vocabulary_size", "encoding")
        settings.ignore("has_input_vocabulary")

    def forward(self, x: Tensor) -> Tensor:
        """Look up.

        Raises:
            ValueError: an unknown number, where the vocabulary has no place for it.
        """
        if x.is_meta:
            found = x.new_empty(x.shape, dtype=torch.int64)
        else:
            found = self._words(x.long()) if self.inverts else self._places(x.long())
        return found if self.mode == "int" else encode(found, self.mode, self.size)

    def _words(self, places: Tensor) -> Tensor:
        at = places - self.first
        known = (at >= 0) & (at < len(self.words))
        found = self.words[torch.where(known, at, 0)]
        found = torch.where(known, found, self.outside)
        return found if self.mask is None else found.where(places != 0, self.mask)

    def _places(self, x: Tensor) -> Tensor:
        words, order = self.words.sort()
        near = torch.searchsorted(words, x).clamp(max=len(words) - 1)
        known = words[near] == x
        if self.unknown:
            others = self.start + x % self.unknown
        elif bool(known.all()):
            others = -1
        else:
            raise ValueError(
                f"layer {self.keras_name!r}: the input has numbers that its vocabulary "
                "lacks, and num_oov_indices is 0."
            )
        places = torch.where(known, self.first + order[near], others)
        if self.mask is not None:
            places = places.where(x != self.mask, 0 if self.start else -1)
        return places


def _note_adapted(settings: Settings, what: str) -> None:
    settings.problem(f"its {what} not in its config. {settings.way_out}")
