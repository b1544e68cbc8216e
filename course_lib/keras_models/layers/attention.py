"""Attention, AdditiveAttention and MultiHeadAttention, with their masks."""

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from course_lib.keras_models.layers.base import (
    Layer,
    Shape,
    drops_masks_of_lists,
    open_sizes,
)
from course_lib.keras_models.layers.einsum import EinsumDense
from course_lib.keras_models.registry import keras_layer
from course_lib.keras_models.settings import Settings
from course_lib.keras_models.spec import LayerSpec

Masks = Sequence[Tensor | None]
_FAR = -1e9  # Keras adds it to a score that must not count


def causal(scores: Tensor) -> Tensor:
    """Return (queries, keys): True where a key does not come after the query."""
    return torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()


@keras_layer("Attention")
class DotAttention(Layer):
    """softmax(query @ key.T) @ value; `score_mode` "concat" adds them up instead.

    A key whose mask is False gets the score -1e9; an output whose query's mask is False
    is 0. Source: Luong et al. 2015; keras/src/layers/attention/attention.py at v3.15.1.
    """

    uses_masks = True
    call_options = ("return_attention_scores", "use_causal_mask")

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.rate = settings.rate("dropout", 0.0)
        self.causal = settings.flag("causal", False)  # to 2.9; then a call says so
        self.read_scores(settings)
        version = settings.version
        self.passes_mask = not drops_masks_of_lists(version)
        # keras v3.11.3 keras/src/layers/attention/attention.py#L211: (batch, keys)
        # beside (batch, queries, keys)
        self.misses_axis = (3, 0) <= version < (3, 12)

    def read_scores(self, settings: Settings) -> None:
        """Read how scores are computed."""
        self.use_scale = settings.flag("use_scale", False)
        modes = ("dot", "concat")
        self.adds = settings.choice("score_mode", modes, "dot") == "concat"

    def build(self, *shapes: Shape) -> None:
        """Make the scales, which are single numbers."""
        if len(shapes) not in (2, 3) or any(len(shape) != 3 for shape in shapes):
            raise ValueError("wanted [query, value] or [query, value, key] of 3 axes")
        self.add_scales(shapes[0][-1])

    def add_scales(self, size: int) -> None:
        """Make the learned factors of the scores."""
        ones = torch.nn.init.ones_
        if self.use_scale:
            self.add("scale", "scale", (), initializer=ones)
        if self.adds:
            self.add("concat_score_weight", "concat", (), initializer=ones)

    def scores(self, query: Tensor, key: Tensor) -> Tensor:
        """Return (batch, queries, keys)."""
        scale = self.scale if self.use_scale else 1.0
        if not self.adds:
            return query @ key.mT * scale
        sums = torch.tanh(scale * (query.unsqueeze(2) + key.unsqueeze(1)))
        return self.concat * sums.sum(-1)

    def forward(
        self,
        query: Tensor,
        value: Tensor,
        key: Tensor | None = None,
        *,
        masks: Masks = (),
        return_attention_scores: bool = False,
        use_causal_mask: bool = False,
    ) -> Any:
        """(batch, queries, size) and (batch, keys, size) -> (batch, queries, size)."""
        key = value if key is None else key
        if query.is_meta:
            scores = query.new_empty(*query.shape[:2], key.shape[1])
            result = query.new_empty(*query.shape[:2], value.shape[-1])
            return (result, scores) if return_attention_scores else result
        query_mask, value_mask = (*masks[:2], None, None)[:2]
        scores = self.scores(query, key)
        counts = None if value_mask is None else value_mask.bool().unsqueeze(1)
        if self.causal or use_causal_mask:
            counts = causal(scores) if counts is None else counts & causal(scores)
        elif counts is not None and self.misses_axis:
            counts = self._without_axis(counts, scores)
        if counts is not None:
            scores = scores + _FAR * ~counts
        weights = F.dropout(scores.softmax(-1), self.rate, self.training)
        result = weights @ value
        if query_mask is not None:
            result = result * query_mask.unsqueeze(-1)
        return (result, weights) if return_attention_scores else result

    def _without_axis(self, counts: Tensor, scores: Tensor) -> Tensor:
        """Return the value's mask as Keras 3.0 to 3.11 broadcast it."""
        if len(counts) not in (1, scores.shape[1]):
            raise ValueError(
                f"layer {self.keras_name!r}: Keras {self.keras_version} can't apply "
                f"the mask of its value to {len(counts)} samples at once, only to one. "
                "Load the model with keras_version='3.12', which can."
            )
        return counts.squeeze(1)


@keras_layer("AdditiveAttention")
class AdditiveAttention(DotAttention):
    """Attention whose score is sum(scale * tanh(query + key)).

    Source: Bahdanau et al. 2015.
    """

    def read_scores(self, settings: Settings) -> None:
        """Read whether each feature has a factor of its own."""
        self.use_scale, self.adds = settings.flag("use_scale", True), False
        self.start = settings.initializer("scale_initializer", "glorot_uniform")
        settings.ignore("score_mode")  # Keras 3 writes that of its base class

    def add_scales(self, size: int) -> None:
        """Make one factor for each feature."""
        if self.use_scale:
            self.add("scale", "scale", (size,), initializer=self.start)

    def scores(self, query: Tensor, key: Tensor) -> Tensor:
        """Return (batch, queries, keys)."""
        sums = torch.tanh(query.unsqueeze(2) + key.unsqueeze(1))
        return sums @ self.scale if self.use_scale else sums.sum(-1)


@keras_layer("MultiHeadAttention")
class MultiHeadAttention(Layer):
    """Attention of several heads side by side, with projections of all tensors.

    softmax(q @ k.T / sqrt(key_dim)) @ v for each head, where q, k, v are projected;
    the heads' results are projected to the output. The masks of query, value and key
    count since Keras 2.10, together with `attention_mask`.
    Source: Vaswani et al. 2017; keras/src/layers/attention/multi_head_attention.py at
    v3.15.1.
    """

    call_options = ("return_attention_scores", "use_causal_mask")
    argument_names = ("query", "value", "key", "attention_mask")
    group_names = ("query_dense", "key_dense", "value_dense", "output_dense")

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        # keras v2.13.1 keras/layers/attention/multi_head_attention.py#L645
        self.passes_mask = self.uses_masks = settings.version >= (2, 10)
        if settings.version >= (3, 0):  # keras v3.0.5, the same file, #L440
            masks = ("query_mask", "value_mask", "key_mask", "attention_mask")
            self.argument_names = (*self.argument_names[:3], *masks)
        # keras v3.8.0 keras/src/layers/attention/multi_head_attention.py#L535
        self.takes_masks_off = settings.version >= (3, 8)
        self.heads = settings.integer("num_heads")
        self.key_dim = settings.integer("key_dim")
        settings.left["value_dim"] = settings.left.get("value_dim") or self.key_dim
        self.value_dim = settings.integer("value_dim")
        self.key_heads = self.key_heads_of(settings)
        self.rate = settings.rate("dropout", 0.0)
        self.window: int | None = None
        if settings.left.get("sliding_window") is not None:
            self.window = settings.integer("sliding_window")
        self.axes = open_sizes(settings, "attention_axes", None)
        self.output_sizes = open_sizes(settings, "output_shape", None)
        self._make_projections(settings)
        self.activity = None  # each projection has it
        settings.ignore("sliding_window", "query_shape", "key_shape", "value_shape")

    def key_heads_of(self, settings: Settings) -> int:
        """Read how many heads the keys and values have."""
        return self.heads

    def _make_projections(self, settings: Settings) -> None:
        has_bias = settings.flag("use_bias", True)
        kinds = ("initializer", "regularizer", "constraint")
        common = [f"{part}_{kind}" for part in ("kernel", "bias") for kind in kinds]
        options = {key: settings.left.pop(key, None) for key in common}
        activity = "activity_regularizer"
        options[activity] = settings.spec.config.get(activity)

        def dense(
            name: str, taken: str, given: str, *sizes: int, activation: str = "linear"
        ) -> EinsumDense:
            config = {**options, "output_shape": list(sizes), "activation": activation}
            config["equation"] = f"...{taken},{taken}{given}->...{given}"
            config["bias_axes"] = given if has_bias else None
            kind = "EinsumDense"
            spec = LayerSpec(f"{settings.name}/{name}", kind, config, kind)
            inner = Settings(spec, settings.version, settings.problems)
            layer = EinsumDense(inner)
            inner.finish()
            return layer

        heads, gated = self.heads, settings.flag("use_gate", False)
        self.query_dense = dense("query", "x", "yz", heads, self.key_dim)
        self.key_dense = dense("key", "x", "yz", self.key_heads, self.key_dim)
        self.value_dense = dense("value", "x", "yz", self.key_heads, self.value_dim)
        self.gate_dense = None
        if gated:
            sizes = heads, self.value_dim
            self.gate_dense = dense("gate", "x", "yz", *sizes, activation="sigmoid")
            names = self.group_names
            self.group_names = (*names[:2], "gate_dense", *names[2:])
        sizes = self.output_sizes or (1,)  # it is known at the first call
        letters = "abcdefg"[: len(sizes)]
        self.output_dense = dense("attention_output", "yz", letters, *sizes)

    def build(self, *shapes: Shape, names: tuple[str, ...] = ()) -> None:
        """Build the projections for the tensors of these names."""
        given = dict(zip(names or self.argument_names, shapes, strict=False))
        query, value = given["query"], given.get("value", given["query"])
        key = given.get("key", value)
        if key[1:-1] != value[1:-1]:
            raise ValueError(f"its key has the shape {key}, its value {value}")
        # over which it attends: all but the first and last
        self.axes = self.axes or tuple(range(1, len(query) - 1))
        if not self.output_sizes:
            self.output_dense.output_sizes = (query[-1],)
        self.query_dense.build(query)
        self.key_dense.build(key)
        if self.gate_dense is not None:
            self.gate_dense.build(query)
        self.value_dense.build(value)
        self.output_dense.build((*query[:-1], self.heads, self.value_dim))

    def forward(
        self,
        *tensors: Tensor,
        names: tuple[str, ...] = ("query", "value", "key"),
        masks: Masks = (),
        return_attention_scores: bool = False,
        use_causal_mask: bool = False,
    ) -> Any:
        """(batch, queries, size) -> the same, and the heads' weights if asked for."""
        given = dict(zip(names, tensors, strict=False))
        query, value = given["query"], given.get("value", given["query"])
        key = given.get("key", value)
        q = self._split(self.query_dense(query))
        k = self._for_all_heads(self._split(self.key_dense(key)))
        v = self._for_all_heads(self._split(self.value_dense(value)))
        weights = (q / math.sqrt(self.key_dim)) @ k.mT
        if not weights.is_meta:  # see base.apply
            counts = self._counted(given, dict(zip(names, masks, strict=False)))
            if use_causal_mask:
                counts.append(causal(weights))
            if self.window is not None:
                counts.append(_band(weights, self.window))
            weights = self._softmax(weights, counts, returned=return_attention_scores)
        mixed = F.dropout(weights, self.rate, self.training) @ v
        result = self._join(mixed, query)
        if self.gate_dense is not None:
            result = result * self.gate_dense(query)
        result = self.output_dense(result)
        if not return_attention_scores:
            return result
        sizes = [[x.shape[axis] for axis in self.axes] for x in (query, value)]
        return result, weights.unflatten(-1, sizes[1]).unflatten(
            -1 - len(sizes[1]), sizes[0]
        )

    def _softmax(
        self, scores: Tensor, counts: list[Tensor], *, returned: bool
    ) -> Tensor:
        """Return the weights of the keys that count.

        A query for which no key counts weights all equally; since 3.10 none, unless
        Keras calls a fused kernel: keras v3.10.0
        keras/src/layers/activations/softmax.py#L72.
        """
        if not counts:
            return scores.softmax(-1)
        both = reduce(torch.logical_and, counts)
        while both.dim() < scores.dim():
            both = both.unsqueeze(-3)  # for the heads and other axes before them
        weights = (scores + _FAR * ~both).softmax(-1)
        is_fused = scores.dim() == 4 and not self.rate and not returned
        return weights if is_fused or self.keras_version < (3, 10) else weights * both

    def _counted(
        self, given: Mapping[str, Tensor], masks: Mapping[str, Tensor | None]
    ) -> list[Tensor]:
        """Return masks that broadcast to (batch, queries, keys)."""
        found = []
        for name, axis in (("query", -1), ("value", -2), ("key", -2)):
            mask = given.get(f"{name}_mask", masks.get(name))
            if mask is not None and name in given:
                found.append(mask.bool().unsqueeze(axis))
        mask = given.get("attention_mask")
        if mask is not None:
            count = len(self.axes)
            mask = mask.bool().flatten(-count)
            found.append(mask.flatten(-1 - count, -2))
        return found

    def _order(self, rank: int) -> list[int]:
        """Return where (batch, others, heads, attended, size) are in a projection."""
        others = [axis for axis in range(1, rank - 2) if axis not in self.axes]
        return [0, *others, rank - 2, *self.axes, rank - 1]

    def _split(self, x: Tensor) -> Tensor:
        """(batch, ..., heads, size) -> (batch, others, heads, attended, size)."""
        return x.permute(self._order(x.dim())).flatten(-1 - len(self.axes), -2)

    def _for_all_heads(self, x: Tensor) -> Tensor:
        """Repeat each head of keys or values for the heads of queries that share it."""
        count = self.heads // self.key_heads
        return x if count == 1 else x.repeat_interleave(count, -3)

    def _join(self, x: Tensor, query: Tensor) -> Tensor:
        """Undo `_split`, for as many places as the query has."""
        x = x.unflatten(-2, [query.shape[axis] for axis in self.axes])
        order = self._order(x.dim())
        return x.permute([order.index(axis) for axis in range(x.dim())])


@keras_layer("GroupQueryAttention", "GroupedQueryAttention")
class GroupQueryAttention(MultiHeadAttention):
    """Attention whose heads share keys and values in groups.

    Source: Ainslie et al. 2023; keras/src/layers/attention/grouped_query_attention.py
    at v3.15.1.
    """

    def __init__(self, settings: Settings) -> None:
        names = {"num_query_heads": "num_heads", "head_dim": "key_dim"}
        settings.left = {names.get(k, k): v for k, v in settings.left.items()}
        super().__init__(settings)

    def key_heads_of(self, settings: Settings) -> int:
        """Read how many heads the keys and values have."""
        count = settings.integer("num_key_value_heads")
        if self.heads % count:
            settings.problem(
                f"num_query_heads={self.heads}, num_key_value_heads={count}; wanted a "
                "multiple of it"
            )
        return count


def _band(scores: Tensor, width: int) -> Tensor:
    """Return (queries, keys): True where both are at a distance below `width`."""
    ones = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
    return ones.triu(1 - width).tril(width - 1)
