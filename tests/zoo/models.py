"""The models of the zoo: one table from a name to how the model is built and what its inputs may be.

Invariant: this module imports neither TensorFlow nor Keras; a builder's module is imported by the worker that needs it.
Left out: weights, which are random everywhere (`case.py`).
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping
from typing import Any

# The groups that run by default, and those behind an option of the same name.
DEFAULT_GROUPS = ("applications", "ours", "tf_keras")
OPTIONAL_GROUPS = ("large", "hub")

Range = tuple[float, float]
PIXELS: Range = (0.0, 255.0)
SIGNED: Range = (-1.0, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One model of the zoo.

    Args:
        builder: `module:function` that returns a Keras model.
        arguments: What the function is called with.
        group: One of the groups above.
        ranges: The (low, high) that input values are drawn from, for all inputs or by input name; integer inputs get
            whole numbers in [low, high).
        shapes: Shape of each input without its batch, for a model that doesn't say it itself.
        requires: Package that must be installed, as pip and as Python call it; None where the product needs it anyway.
    """

    builder: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    group: str = "ours"
    ranges: Range | Mapping[str, Range] = (0.0, 1.0)
    shapes: Mapping[str, tuple[int, ...]] | None = None
    requires: tuple[str, str] | None = None

    def missing(self) -> str | None:
        """Why the model cannot be built here, or None."""
        if self.requires is None or importlib.util.find_spec(self.requires[1]) is not None:
            return None
        return f"{self.requires[0]} is not installed: pip install {self.requires[0]}"


def _application(name: str, ranges: Range = SIGNED, *, size: int = 32, group: str = "applications") -> Entry:
    return Entry(builder="zoo.families:application", arguments={"name": name, "size": size}, group=group, ranges=ranges)


def _large(*names: str, ranges: Range = SIGNED, size: int = 32) -> dict[str, Entry]:
    return {name: _application(name, ranges, size=size, group="large") for name in names}


def _ours(function: str, ranges: Range | Mapping[str, Range] = (0.0, 1.0), **options: Any) -> Entry:
    return Entry(builder=f"zoo.small:{function}", ranges=ranges, **options)


def _hub(function: str, ranges: Range | Mapping[str, Range]) -> Entry:
    return Entry(builder=f"zoo.hub:{function}", ranges=ranges, group="hub", requires=("keras-hub", "keras_hub"))


# One member of each family of `keras.applications`, the smallest, at the smallest size that it takes.
APPLICATIONS: dict[str, Entry] = {
    "MobileNet": _application("MobileNet"),
    "MobileNetV2": _application("MobileNetV2"),
    "MobileNetV3Small": _application("MobileNetV3Small", PIXELS),
    "EfficientNetB0": _application("EfficientNetB0", PIXELS),
    "EfficientNetV2B0": _application("EfficientNetV2B0", PIXELS),
    "ResNet50": _application("ResNet50"),
    "ResNet50V2": _application("ResNet50V2"),
    "DenseNet121": _application("DenseNet121"),
    "VGG16": _application("VGG16"),
    "InceptionV3": _application("InceptionV3", size=75),
    "Xception": _application("Xception", size=71),
    "NASNetMobile": _application("NASNetMobile"),
    "ConvNeXtTiny": _application("ConvNeXtTiny", PIXELS),
    "InceptionResNetV2": _application("InceptionResNetV2", size=75),
}

# All other members.
LARGE: dict[str, Entry] = {
    **_large("MobileNetV3Large", ranges=PIXELS),
    **_large(*(f"EfficientNetB{number}" for number in range(1, 8)), ranges=PIXELS),
    **_large(*(f"EfficientNetV2{name}" for name in ("B1", "B2", "B3", "S", "M", "L")), ranges=PIXELS),
    **_large("ResNet101", "ResNet152", "ResNet101V2", "ResNet152V2"),
    **_large("DenseNet169", "DenseNet201", "VGG19", "NASNetLarge"),
    **_large(*(f"ConvNeXt{name}" for name in ("Small", "Base", "Large", "XLarge")), ranges=PIXELS),
}

# Kinds of models that the applications don't have.
OURS: dict[str, Entry] = {
    "lstm": _ours("lstm", SIGNED),
    "gru": _ours("gru", SIGNED),
    "bidirectional": _ours("bidirectional", SIGNED),
    "transformer": _ours("transformer", (0, 50)),
    "conv1d": _ours("conv1d", SIGNED),
    "unet": _ours("unet"),
    "multi-input": _ours("multi_input", {"image": (0.0, 1.0), "features": SIGNED}),
    "multi-output": _ours("multi_output"),
    "recommender": _ours("recommender", {"user": (0, 40), "item": (0, 60)}),
    "detector": _ours("detector"),
    "nested": _ours("nested"),
    "shared-layers": _ours("shared_layers", SIGNED),
    "op-layers": _ours("op_layers"),
    "preprocessing": _ours("preprocessing", PIXELS),
    "subclassed": _ours("subclassed", shapes={"images": (16, 16, 3)}),
}

# Families that only tf_keras has; they come over the bridge.
TF_KERAS: dict[str, Entry] = {
    name: Entry(builder="zoo.families:legacy_application", arguments={"name": name}, group="tf_keras", ranges=PIXELS)
    for name in ("RegNetX002", "ResNetRS50")
}

HUB: dict[str, Entry] = {
    "hub-bert": _hub("bert", {"token_ids": (0, 100), "padding_mask": (1, 2), "segment_ids": (0, 2)}),
    "hub-vit": _hub("vit", SIGNED),
    "hub-resnet": _hub("resnet", SIGNED),
}

MODELS: dict[str, Entry] = {**APPLICATIONS, **OURS, **TF_KERAS, **LARGE, **HUB}
