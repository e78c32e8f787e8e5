"""The columns of the zoo: one table from a name to what is tried on every model.

A technique or an export mode that comes later joins by one line here; tests/test_zoo.py fails until it has one. For a
function `tfc.name(model, ...)` that is `Column(check="zoo.checks:technique", arguments={"function": "name", ...})`.
Invariant: this module imports neither TensorFlow nor Keras. Left out: the checks themselves (`checks.py`, `tfmot.py`).
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """One column.

    Args:
        check: `module:function`, called with a `Case` and `arguments`. It returns its figure as a short text, or
            raises:
            a `TFCompressError` is the product's own statement that it cannot, anything else is a failure.
        arguments: Keyword arguments of the check.
        technique: The key of `tfcompress.recipe.TECHNIQUES` that the column covers.
        export_mode: The mode of `tfc.export_tflite` that the column covers.
    """

    check: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    technique: str | None = None
    export_mode: str | None = None

    def load(self) -> Callable[[Any], str]:
        """The check, with its arguments; imports its module."""
        module, _, name = self.check.partition(":")
        function = getattr(importlib.import_module(module), name)
        return lambda case: function(case, **self.arguments)


COLUMNS: dict[str, Column] = {
    "load": Column(check="zoo.checks:load"),
    "bridge_out": Column(check="zoo.checks:bridge_out"),
    "bridge_back": Column(check="zoo.checks:bridge_back"),
    "cluster": Column(check="zoo.checks:cluster", technique="cluster"),
    "distill": Column(check="zoo.checks:distill", technique="distill"),
    "factorize": Column(check="zoo.checks:factorize", technique="factorize"),
    "learn_channel_sparsity": Column(check="zoo.checks:learn_channel_sparsity", technique="learn_channel_sparsity"),
    "prune": Column(check="zoo.checks:prune", technique="prune"),
    "prune_weights": Column(check="zoo.checks:prune_weights"),
    "prune_channels": Column(check="zoo.checks:prune_channels", technique="prune_channels"),
    "remove_blocks": Column(check="zoo.checks:remove_blocks", technique="remove_blocks"),
    "quantize": Column(check="zoo.checks:quantize", technique="quantize"),
    "quantize_post_training": Column(check="zoo.checks:quantize_post_training", technique="quantize_post_training"),
    "simplify": Column(check="zoo.checks:simplify"),
    "tfmot_prune": Column(check="zoo.tfmot:prune", technique="tfmot_prune"),
    "tfmot_cluster": Column(check="zoo.tfmot:cluster", technique="tfmot_cluster"),
    "tfmot_quantize": Column(check="zoo.tfmot:quantize", technique="tfmot_quantize"),
    "export_float32": Column(check="zoo.checks:export", arguments={"mode": "float32"}, export_mode="float32"),
    "export_float16": Column(check="zoo.checks:export", arguments={"mode": "float16"}, export_mode="float16"),
    "export_dynamic": Column(check="zoo.checks:export", arguments={"mode": "dynamic"}, export_mode="dynamic"),
    "export_int8_float_io": Column(
        check="zoo.checks:export", arguments={"mode": "int8_float_io"}, export_mode="int8_float_io"
    ),
    "export_int16x8": Column(check="zoo.checks:export", arguments={"mode": "int16x8"}, export_mode="int16x8"),
    "export_int4": Column(check="zoo.checks:export", arguments={"mode": "int4"}, export_mode="int4"),
    "export_int8": Column(check="zoo.checks:export", arguments={"mode": "int8"}, export_mode="int8"),
    "export_quantized": Column(check="zoo.checks:export_quantized", export_mode="int8"),
}
