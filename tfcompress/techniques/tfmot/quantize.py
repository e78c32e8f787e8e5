"""`tfmot_quantize`: TFMOT's quantization-aware training on a Keras 3 model, with its sparsity- and cluster-preserving
schemes.

Invariant: what comes back is a plain Keras 3 model of our fake-quant layers with the weights and ranges that TFMOT
trained (`ranges.py` says where the two differ). Left out: a `QuantizeConfig` of one's own for a layer, and layers whose
rounded kernel has no twin among ours: transposed and separable convolutions.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np
import tf_keras

from tfcompress.bridge.weights import copy_weights_back
from tfcompress.errors import ModelError, TrainingError
from tfcompress.techniques.schedules import load_tfmot
from tfcompress.techniques.tfmot.arguments import check_scheme
from tfcompress.techniques.tfmot.callbacks import KERNELS, weight_name
from tfcompress.techniques.tfmot.quantizable import choose_quantizable
from tfcompress.techniques.tfmot.ranges import (
    calibrate,
    copy_trained,
    follow_weights,
    read_ranges,
    unrounded,
    with_ranges,
)
from tfcompress.techniques.tfmot.selection import Fit, carry_over


def tfmot_quantize(
    model: keras.Model,
    fit: Fit,
    *,
    calibration: Iterable[Any] | None,
    scheme: str = "default",
    exclude: Iterable[str] = (),
    allow_float: bool = False,
    layers: Mapping[type, Callable] | None = None,
) -> keras.Model:
    """Trains a Keras 3 model with TFMOT's rounding: `quantize_annotate_layer`, `quantize_apply`, then your training.

    Args:
        model: A functional or Sequential Keras 3 model. It is not changed.
        fit: `fit(legacy, callbacks)` compiles and fits the tf_keras model `legacy` with `callbacks`.
        calibration: Batches of inputs, or of `(inputs, ...)`, from which the ranges of activations start. `None` leaves
            TFMOT's own start, -6 to 6 for everything: these ranges take some 3,000 steps to settle, and that of an
            input never gets narrower.
        scheme: `"default"`; `"prune"` (PQAT) keeps the zeros of kernels, `"cluster"` (CQAT) their few values,
            `"prune_cluster"` (PCQAT) both.
        exclude: Patterns of layer names (`fnmatch`) that stay in float.
        allow_float: Whether layers that TFMOT cannot quantize stay in float, with a warning that names them. Otherwise
            they are an error, since the integer file needs them all.
        layers: For the bridge: Keras 3 layer class of yours to a function that makes its tf_keras twin.

    Returns:
        A new functional Keras 3 model that rounds as TFMOT's does; nested models are opened. `tfc.round_biases` moves
        its biases to the grid of the file, and `tfc.export_tflite` writes the file.

    Raises:
        InvalidArgumentError: If an argument is out of its range.
        ModelError: If the model cannot be carried over, or TFMOT cannot quantize a layer.
        TrainingError: If the scheme lost zeros or values that it is to keep.
        DataError: If the calibration data is empty or not finite.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8, name="hidden"), keras.layers.Dense(2)])
        >>> x = np.ones((4, 8), "float32")
        >>> def fit(legacy, callbacks):
        ...     legacy.compile("sgd", "mse")
        ...     legacy.fit(x, np.ones((4, 2)), verbose=0, callbacks=callbacks)
        >>> aware = tfmot_quantize(model, fit, calibration=[x])
        >>> [type(layer).__name__ for layer in aware.layers][1:4]
        ['FakeQuantize', 'QuantizedDense', 'FakeQuantize']

    Reference:
        https://www.tensorflow.org/model_optimization/guide/quantization/training and
        https://www.tensorflow.org/model_optimization/guide/combine/collaborative_optimization
    """
    legacy, aware, chosen, left = make_aware(model, scheme, exclude, allow_float, layers)
    if left:
        warnings.warn(f"TFMOT leaves these layers in float: {', '.join(left)}.", stacklevel=2)
    if calibration is not None:
        calibrate(aware, calibration)
    fit(aware, [])
    follow_weights(aware)
    before = {layer.name: _kernels(layer) for layer in legacy.layers}
    copy_trained(aware, legacy)
    for layer in legacy.layers:
        for old, new in zip(before[layer.name], _kernels(layer), strict=True):
            _check_kept(layer, scheme, old, new)
    return with_ranges(copy_weights_back(legacy, model), read_ranges(aware), chosen)


def make_aware(
    model: keras.Model,
    scheme: str,
    exclude: Iterable[str],
    allow_float: bool,
    layers: Mapping[type, Callable] | None,
) -> tuple[Any, Any, set[str], list[str]]:
    """Carries a model over and lets TFMOT make it quantization-aware; see `tfmot_quantize`.

    Returns:
        The tf_keras twin, TFMOT's model, the names of the layers in it that are quantized, and `"name: reason"` for
        each that stays in float.
    """
    check_scheme("tfmot_quantize", scheme)
    legacy = carry_over("tfmot_quantize", model, layers)
    chosen, left = choose_quantizable(model, legacy, exclude, allow_float=allow_float)
    aware = _apply(legacy, chosen, scheme)
    loose = [name for name in unrounded(aware) if _kernels(legacy.get_layer(name))]
    if loose and scheme != "default":
        raise ModelError(
            f"TFMOT leaves the kernel before a ReLU layer alone, so its scheme {scheme!r} would not hold there. Put "
            f"the ReLU into the layer (`activation='relu'`). Received: layers {loose}."
        )
    return legacy, aware, chosen, left


def _apply(legacy: Any, chosen: set[str], scheme: str) -> Any:
    """TFMOT's quantization-aware model, of layers of its own."""
    tfmot = load_tfmot()
    quantization, combine = tfmot.quantization.keras, tfmot.experimental.combine
    schemes: dict[str, Callable[[], Any]] = {
        "default": quantization.default_8bit.Default8BitQuantizeScheme,
        "prune": combine.Default8BitPrunePreserveQuantizeScheme,
        "cluster": lambda: combine.Default8BitClusterPreserveQuantizeScheme(preserve_sparsity=False),
        "prune_cluster": lambda: combine.Default8BitClusterPreserveQuantizeScheme(preserve_sparsity=True),
    }

    def annotate(layer: Any) -> Any:
        return quantization.quantize_annotate_layer(layer) if layer.name in chosen else layer

    annotated = tf_keras.models.clone_model(legacy, clone_function=annotate)
    try:
        with quantization.quantize_scope():
            return quantization.quantize_apply(annotated, scheme=schemes[scheme]())
    except (ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"TFMOT's quantize_apply refuses model {legacy.name!r}: {error}") from error


def _kernels(layer: Any) -> list[np.ndarray]:
    return [weight.numpy() for weight in layer.weights if weight_name(weight) in KERNELS]


def _check_kept(layer: Any, scheme: str, old: np.ndarray, new: np.ndarray) -> None:
    if isinstance(layer, tf_keras.layers.DepthwiseConv2D):
        return  # TFMOT's schemes leave out depthwise kernels, which its pruning and clustering left out.
    if "prune" in scheme and np.any(new[old == 0]):
        raise TrainingError(f"Layer {layer.name!r} lost zeros under the scheme {scheme!r}.")
    values = len(np.unique(old))
    # Above this many TFMOT takes a kernel for one that was never clustered.
    if "cluster" in scheme and values <= 1024 and len(np.unique(new)) > values:
        raise TrainingError(f"Layer {layer.name!r} has more than its {values} values under the scheme {scheme!r}.")
