"""Which class makes a layer of which kind; all that this package supports."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from course_lib.keras_models.activations import LAYERS as ACTIVATION_LAYERS
from course_lib.keras_models.layers import (
    activation,
    attention,
    conv_lstm,
    convolution,
    core,
    einsum,
    encoding,
    group_normalization,
    images,
    keras_1,
    local,
    merging,
    normalization,
    pooling,
    recurrent,
    scaling,
)
from course_lib.keras_models.layers.base import Layer
from course_lib.keras_models.layers.cells import StackedCells
from course_lib.keras_models.layers.operations import Operation
from course_lib.keras_models.layers.wrappers import (
    Bidirectional,
    Replacement,
    SpectralNormalization,
    TimeDistributed,
)
from course_lib.keras_models.schema.lambda_code import describe
from course_lib.keras_models.settings import Settings
from course_lib.keras_models.spec import (
    CallSpec,
    LayerSpec,
    Problems,
    Version,
    is_operation,
)

Make = Callable[[Settings], Layer]

KINDS: dict[str, Make] = {
    "InputLayer": core.identity,
    "Dense": core.Dense,
    "Embedding": core.Embedding,
    "PReLU": activation.PReLU,
    "SReLU": activation.SReLU,
    "ParametricSoftplus": activation.ParametricSoftplus,
    "MaxoutDense": keras_1.MaxoutDense,
    "Highway": keras_1.Highway,
    "Dropout": core.Dropout,
    "GaussianNoise": core.GaussianNoise,
    "GaussianDropout": core.GaussianDropout,
    "AlphaDropout": core.AlphaDropout,
    "ActivityRegularization": core.activity_regularization,
    "Flatten": core.Flatten,
    "Reshape": core.Reshape,
    "Permute": core.Permute,
    "RepeatVector": core.RepeatVector,
    "Masking": core.Masking,
    "Rescaling": core.Rescaling,
    "BatchNormalization": normalization.batch_normalization,
    "LayerNormalization": normalization.LayerNormalization,
    "Normalization": normalization.Normalization,
    "GroupNormalization": group_normalization.GroupNormalization,
    "UnitNormalization": group_normalization.UnitNormalization,
    "RMSNormalization": group_normalization.RMSNormalization,
    "Attention": attention.DotAttention,
    "AdditiveAttention": attention.AdditiveAttention,
    "GroupedQueryAttention": attention.GroupQueryAttention,
    "GroupQueryAttention": attention.GroupQueryAttention,
    "MultiHeadAttention": attention.MultiHeadAttention,
    "SimpleRNN": recurrent.SimpleRNN,
    "LSTM": recurrent.LSTM,
    "GRU": recurrent.GRU,
    "CuDNNLSTM": recurrent.CuDNNLSTM,
    "CuDNNGRU": recurrent.CuDNNGRU,
    "Concatenate": merging.Concatenate,
    "Dot": merging.Dot,
    "Identity": core.identity,
    "EinsumDense": einsum.EinsumDense,
    "Resizing": images.Resizing,
    "CenterCrop": images.CenterCrop,
    "RandomCrop": images.RandomCrop,
    "CategoryEncoding": encoding.CategoryEncoding,
    "Discretization": encoding.Discretization,
    "IntegerLookup": encoding.IntegerLookup,
    "LayerScale": scaling.LayerScale,
    "StochasticDepth": scaling.StochasticDepth,
    "CustomScaleLayer": scaling.CustomScaleLayer,
}
KINDS |= dict.fromkeys(
    ("Activation", "Softmax", *ACTIVATION_LAYERS), activation.activation_layer
)
KINDS |= dict.fromkeys(images.RANDOM, images.random_change)
KINDS |= dict.fromkeys(merging.Elementwise.functions, merging.Elementwise)
for _n in (1, 2, 3):
    KINDS |= {
        f"Conv{_n}D": convolution.Conv,
        f"Conv{_n}DTranspose": convolution.ConvTranspose,
        f"ConvLSTM{_n}D": conv_lstm.ConvLSTM,
        f"MaxPooling{_n}D": pooling.Pooling,
        f"AveragePooling{_n}D": pooling.Pooling,
        f"GlobalMaxPooling{_n}D": pooling.GlobalPooling,
        f"GlobalAveragePooling{_n}D": pooling.GlobalPooling,
        f"ZeroPadding{_n}D": pooling.ZeroPadding,
        f"Cropping{_n}D": pooling.Cropping,
        f"UpSampling{_n}D": pooling.UpSampling,
        f"SpatialDropout{_n}D": core.spatial_dropout,
    }
    if _n < 3:
        KINDS[f"DepthwiseConv{_n}D"] = convolution.DepthwiseConv
        KINDS[f"SeparableConv{_n}D"] = convolution.SeparableConv
        KINDS[f"LocallyConnected{_n}D"] = local.LocallyConnected


class Maker:
    """Makes modules from layer specs; what can't be made is noted as a problem."""

    def __init__(
        self,
        version: Version,
        problems: Problems,
        replacements: Mapping[str, Any],
        make_model: Callable[..., nn.Module],
    ) -> None:
        self.version = version
        self.problems = problems
        self.replacements = dict(replacements)
        self.unused = set(replacements)
        self.make_model = make_model

    def make(self, spec: LayerSpec, calls: Sequence[CallSpec] = ()) -> Any:
        """Return the module of a layer, not yet built."""
        if spec.name in self.replacements:
            self.unused.discard(spec.name)
            bare = replace(spec, config={})
            settings = Settings(bare, self.version, self.problems)
            return Replacement(settings, self.replacements[spec.name])
        if spec.model is not None:
            return self.make_model(spec.model, self)
        settings = Settings(spec, self.version, self.problems)
        if spec.layer is not None:
            layer = self._wrapper(spec, settings)
        elif is_operation(spec.kind):
            layer = Operation(settings, list(calls))
        elif spec.kind == "RNN":
            layer = self._stack(settings)
        elif spec.kind in KINDS:
            layer = KINDS[spec.kind](settings)
        else:
            self._refuse(settings)
            return None
        settings.finish()
        return layer

    def _wrapper(self, spec: LayerSpec, settings: Settings) -> Layer | None:
        assert spec.layer is not None
        inner = self.make(spec.layer)
        if inner is None:
            settings.left = {}
            return None
        if spec.kind == "TimeDistributed":
            return TimeDistributed(settings, inner)
        if spec.kind == "SpectralNormalization":
            return SpectralNormalization(settings, inner)
        twin_spec = settings.take("twin", None)
        if not isinstance(twin_spec, LayerSpec):
            config = dict(spec.layer.config)
            config["go_backwards"] = not config.get("go_backwards", False)
            twin_spec = replace(spec.layer, config=config)
        return Bidirectional(settings, inner, self.make(twin_spec))

    def _stack(self, settings: Settings) -> Layer:
        cells = [self.make(spec) for spec in settings.take("cells")]
        return StackedCells(settings, cells)

    def _refuse(self, settings: Settings) -> None:
        if settings.spec.kind == "Lambda":
            settings.problem(
                f"it carries Python code, which is never run.{describe(settings.left)} "
                f"{settings.way_out}"
            )
        elif settings.spec.kind in ("InstanceMethod", "InstanceProperty"):
            name = settings.left.get("attr_name")
            settings.problem(
                f"it takes {name!r:.60} of a ragged or sparse tensor, which is not "
                f"supported. {settings.way_out}"
            )
        else:
            package = _package(settings.spec.kind)
            what = f"a layer of {package!r}" if package else "this layer"
            settings.problem(f"{what} is not supported. {settings.way_out}")
        settings.left = {}

    def check_replacements(self) -> None:
        """Note replacements whose layer does not exist."""
        for name in sorted(self.unused):
            self.problems.add(f"replacements has {name!r}; there is no such layer")


_PACKAGES = {"PruneLowMagnitude": "tfmot", "QuantizeWrapperV2": "tfmot"}


def _package(kind: str) -> str | None:
    """Return the package of a class that is not Keras's own, if its name shows it."""
    package, mark, _ = kind.rpartition(">")
    if mark:
        return package
    if kind[:1] == "Q" and kind[1:] in (*KINDS, "Conv2DBatchnorm"):
        return "qkeras"
    return _PACKAGES.get(kind)
