"""Recurrent layers with `unroll=True`: a copy of the layer's cell in the graph for each step.

Invariant: the steps are counted on the same model with ordinary loops, before the unrolled one is built; a file can
ask for a million of them in a few bytes, by the shape of its input or of what comes before the layer. Left out: loops
within a layer of the user's own.
"""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

import keras

from tfcompress.bridge.guard import refuse
from tfcompress.bridge.guard_config import Consent

# Of all unrolled layers of a model; a thousand steps of an LSTM took 103 s to load and cross on two busy cores.
STEPS = 2_000


def is_unrolled(config: Any) -> bool:
    """Whether some layer in a configuration is.

    Example:
        >>> is_unrolled({"layers": [{"class_name": "LSTM", "config": {"unroll": True}}]})
        True
    """
    if isinstance(config, dict):
        return bool(config.get("unroll")) or any(map(is_unrolled, config.values()))
    return isinstance(config, list) and any(map(is_unrolled, config))


def check_steps(config: dict[str, Any], library: Any, consent: Consent, where: str) -> None:
    """Refuses a model whose layers would be unrolled too often.

    Args:
        config: The configuration of a whole model, which `check_config` has passed.
        library: The Keras that reads it.
        consent: What may be in the file.
        where: The file, for errors.

    Raises:
        ModelError: If there are more than `STEPS`.
    """
    inner = config.get("config")
    if not is_unrolled(config) or not isinstance(inner, dict) or "layers" not in inner:
        return
    build = library.Sequential if config.get("class_name") == "Sequential" else library.Model
    with library.saving.custom_object_scope(dict(consent.custom_objects)), safe_mode(library, consent):
        model = build.from_config(_rolled(inner))
    steps = 0
    waiting = list(model.layers)
    while waiting:
        layer = waiting.pop()
        if hasattr(layer, "layers"):
            waiting.extend(layer.layers)
        elif _mentions_unroll(layer.get_config()):
            # Wrappers have other axes before or after that of the steps.
            steps += sum(
                max(size or 0 for size in tensor.shape[1:-1])
                for node in layer._inbound_nodes
                for tensor in keras.tree.flatten(node.input_tensors)
                if len(tensor.shape) > 2
            )
    if steps > STEPS:
        raise refuse(
            where,
            f"its unrolled layers have {steps:,} steps; {STEPS:,} are allowed",
            "Save the model with `unroll=False`, which computes the same.",
        )


@contextlib.contextmanager
def safe_mode(library: Any, consent: Consent) -> Any:
    """Lets no loader of either Keras run Lambda code without consent, also those that never ask, as of `.h5` files."""
    source = "keras.src" if library is keras else "tf_keras.src"
    with importlib.import_module(f"{source}.saving.serialization_lib").SafeModeScope(not consent.allow_lambda):
        yield


def _rolled(config: Any) -> Any:
    if isinstance(config, dict):
        return {key: False if key == "unroll" else _rolled(value) for key, value in config.items()}
    return [_rolled(value) for value in config] if isinstance(config, list) else config


def _mentions_unroll(config: Any) -> bool:
    if isinstance(config, dict):
        return "unroll" in config or any(map(_mentions_unroll, config.values()))
    return isinstance(config, list) and any(map(_mentions_unroll, config))
