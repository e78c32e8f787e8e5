"""TFMOT on a Keras 3 model: its three techniques, trained in tf_keras, and whether each one's claim holds.

Invariant: a claim is checked on the weights of the Keras 3 model that comes back. Left out: the recipe stages of the
same names, which tests/conformance has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

import tfcompress as tfc
from tfcompress.techniques.schedules import schedule_from_recipe
from zoo.case import Case
from zoo.checks import (
    BATCH,
    CALIBRATION_SAMPLES,
    CLUSTERS,
    EPOCHS,
    SAMPLES,
    SPARSITY,
    STEPS,
    Wrong,
    exported,
    still_works,
    unchanged,
)

# Kernels with fewer weights hold few values anyway.
_LARGE = 8 * CLUSTERS


def prune(case: Case) -> str:
    """`prune_low_magnitude`: half of each kernel that it prunes must be zero."""
    schedule = schedule_from_recipe({"polynomial_decay": {"final_sparsity": SPARSITY}}, STEPS)
    with unchanged(case.model):
        made = tfc.tfmot_prune(case.model, _fit(case), schedule=schedule)
    # TFMOT leaves depthwise kernels dense, where a weight may be zero by chance.
    kernels = {name: kernel for name, kernel in _kernels(made).items() if not name.endswith("depthwise_kernel")}
    shares = {name: float(np.mean(kernel == 0)) for name, kernel in kernels.items() if (kernel == 0).any()}
    if not shares:
        raise Wrong("no kernel has a zero")
    for name, share in shares.items():
        # TFMOT keeps every weight that equals its threshold, and counts in float32.
        if abs(share - SPARSITY) > max(1 / kernels[name].size, 1e-3):
            raise Wrong(f"{share:.2%} of {kernels[name].size} weights of {name} are zero, not {SPARSITY:.0%}")
    return f"{SPARSITY:.0%} of {len(shares)} of {len(kernels)} kernels zero; {still_works(case, made)}"


def cluster(case: Case) -> str:
    """`cluster_weights`: kernels must hold few values."""
    with unchanged(case.model):
        made = tfc.tfmot_cluster(case.model, _fit(case), number_of_clusters=CLUSTERS)
    counts = {name: len(np.unique(kernel)) for name, kernel in _kernels(made).items() if kernel.size > _LARGE}
    few = [name for name, count in counts.items() if count <= CLUSTERS]
    if not few:
        raise Wrong(f"no kernel holds at most {CLUSTERS} values: {counts}")
    return f"{len(few)} of {len(counts)} kernels hold at most {CLUSTERS} values; {still_works(case, made)}"


def quantize(case: Case) -> str:
    """`quantize_apply`: what comes back must export as it is to an integer file."""
    with unchanged(case.model):
        made = tfc.tfmot_quantize(case.model, _fit(case), calibration=case.batches(CALIBRATION_SAMPLES))
    figure = still_works(case, made)
    tfc.round_biases(made)
    # Without data, as in the column `export_quantized`.
    file = tfc.export_tflite(made, case.folder / "model.tflite", mode="int8")
    return f"{figure}; {exported(file)}"


def _fit(case: Case) -> Callable[[Any, Any], None]:
    """Trains a tf_keras model a few steps on random targets."""
    inputs = case.inputs(SAMPLES)
    targets = case.targets(inputs)

    def fit(legacy: Any, callbacks: Any) -> None:
        legacy.compile("sgd", "mse")
        legacy.optimizer.learning_rate = 1e-3
        history = legacy.fit(
            inputs, targets, batch_size=BATCH, epochs=EPOCHS, shuffle=False, verbose=0, callbacks=list(callbacks)
        )
        if not np.isfinite(history.history["loss"]).all():
            raise Wrong(f"the loss is {history.history['loss']}")

    return fit


def _kernels(model: keras.Model) -> dict[str, np.ndarray]:
    """Trained weights of at least two axes by their path."""
    found = {variable.path: keras.ops.convert_to_numpy(variable) for variable in model.trainable_variables}
    return {path: value for path, value in found.items() if value.ndim >= 2}
