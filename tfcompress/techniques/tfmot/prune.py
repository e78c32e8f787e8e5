"""`tfmot_prune`: TFMOT's `prune_low_magnitude` on a Keras 3 model.

Invariant: the kernels of the model that comes back have the zeros that were asked for, exactly: they are counted. Left
out: TFMOT's pruning policies, which choose layers as `include` and `exclude` do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tf_keras

from tfcompress.bridge.weights import copy_weights_back
from tfcompress.errors import InvalidArgumentError, ModelError, TrainingError
from tfcompress.techniques.schedules import Schedule, load_tfmot, target_sparsity
from tfcompress.techniques.tfmot.arguments import check_log_dir, check_pattern
from tfcompress.techniques.tfmot.callbacks import CheckSchedule
from tfcompress.techniques.tfmot.selection import Fit, carry_over, choose_layers


def tfmot_prune(
    model: keras.Model,
    fit: Fit,
    *,
    schedule: Schedule | None = None,
    sparsity_m_by_n: tuple[int, int] | None = None,
    block_size: tuple[int, int] = (1, 1),
    block_pooling: str = "AVG",
    include: Iterable[str] | None = None,
    exclude: Iterable[str] = (),
    log_dir: str | None = None,
    layers: Mapping[type, Callable] | None = None,
) -> keras.Model:
    """Prunes a Keras 3 model with TFMOT: `prune_low_magnitude`, `UpdatePruningStep`, your training, `strip_pruning`.

    By default every layer is pruned that TFMOT prunes; depthwise convolutions and normalizations it leaves dense.

    Args:
        model: A functional or Sequential Keras 3 model. It is not changed.
        fit: `fit(legacy, callbacks)` compiles and fits the tf_keras model `legacy` with `callbacks`.
        schedule: A schedule of TFMOT's, such as `tfmot.sparsity.keras.PolynomialDecay`. Step 1 is the first batch.
        sparsity_m_by_n: `(2, 4)` makes 2 of every 4 neighbouring input channels zero, in the first step; it takes the
            place of a schedule.
        block_size: Height and width of the blocks of a dense kernel that are zero together.
        block_pooling: `"AVG"` or `"MAX"`: what a block is ranked by.
        include: Patterns of layer names (`fnmatch`, such as `"conv*"`) to prune; `None` is all that TFMOT can.
        exclude: Patterns of layer names not to prune.
        log_dir: Folder for TFMOT's `PruningSummaries`, read by TensorBoard.
        layers: For the bridge: Keras 3 layer class of yours to a function that makes its tf_keras twin.

    Returns:
        A new Keras 3 model of the same structure, with zeros in its kernels.

    Raises:
        InvalidArgumentError: If an argument is out of its range.
        ModelError: If the model cannot be carried over, TFMOT refuses a layer, or there is nothing to prune.
        TrainingError: If the schedule cannot reach its sparsity in the planned steps, or training did not reach it.

    Example:
        >>> from tfcompress.techniques.schedules import tfmot_schedules
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8, name="hidden"), keras.layers.Dense(2)])
        >>> def fit(legacy, callbacks):
        ...     legacy.compile("sgd", "mse")
        ...     legacy.fit(np.ones((4, 8)), np.ones((4, 2)), verbose=0, callbacks=callbacks)
        >>> schedule = tfmot_schedules().ConstantSparsity(0.5, begin_step=0, frequency=1)
        >>> pruned = tfmot_prune(model, fit, schedule=schedule)
        >>> float(np.mean(pruned.get_layer("hidden").kernel.numpy() == 0))
        0.5

    Reference:
        https://www.tensorflow.org/model_optimization/guide/pruning
    """
    if (schedule is None) == (sparsity_m_by_n is None):
        given = {"schedule": schedule, "sparsity_m_by_n": sparsity_m_by_n}
        raise InvalidArgumentError("tfmot_prune", "given either a `schedule` or `sparsity_m_by_n`", given)
    check_pattern("tfmot_prune", sparsity_m_by_n, block_size, block_pooling)
    check_log_dir("tfmot_prune", log_dir)
    legacy = carry_over("tfmot_prune", model, layers)
    chosen = choose_prunable(legacy, include, exclude, sparsity_m_by_n=sparsity_m_by_n, block_size=block_size)

    sparsity = load_tfmot().sparsity.keras
    # A pattern ignores the schedule, which TFMOT demands all the same.
    options = {"pruning_schedule": schedule or sparsity.ConstantSparsity(0.5, 0)}
    options |= {"block_size": block_size, "block_pooling_type": block_pooling, "sparsity_m_by_n": sparsity_m_by_n}

    def wrap(layer: Any) -> Any:
        return sparsity.prune_low_magnitude(layer, **options) if layer.name in chosen else layer

    wrapped = tf_keras.models.clone_model(legacy, clone_function=wrap)
    wrappers = [layer for layer in wrapped.layers if hasattr(layer, "pruning_vars")]
    check = CheckSchedule(schedule, lambda: wrappers[0].pruning_step)
    callbacks = [sparsity.UpdatePruningStep(), check]
    if log_dir is not None:
        callbacks.append(sparsity.PruningSummaries(log_dir=str(log_dir)))
    fit(wrapped, callbacks)
    if not check.has_run:
        raise TrainingError("`fit` must pass its `callbacks` to `legacy.fit`; TFMOT prunes only with them.")
    # The last step of the optimizer came after the last use of the mask.
    for wrapper in wrappers:
        for weight, mask, _ in wrapper.pruning_vars:
            weight.assign(weight * mask)
    stripped = sparsity.strip_pruning(wrapped)
    target = None if schedule is None else target_sparsity(schedule)
    _check_zeros(chosen, target, sparsity_m_by_n, block_size)
    return copy_weights_back(stripped, model)


def choose_prunable(
    legacy: Any,
    include: Iterable[str] | None,
    exclude: Iterable[str],
    *,
    sparsity_m_by_n: tuple[int, int] | None,
    block_size: tuple[int, int],
) -> dict[str, list[Any]]:
    """The weights that TFMOT is to prune, by the name of their layer.

    Raises:
        InvalidArgumentError: If a pattern fits no layer.
        ModelError: If TFMOT refuses a layer, or there is nothing to prune.
    """
    prune_low_magnitude = load_tfmot().sparsity.keras.prune_low_magnitude

    def weights_of(layer: Any) -> list[Any]:
        return prune_low_magnitude(layer).layer.get_prunable_weights()

    chosen = choose_layers(legacy, "prune", weights_of, include, exclude)
    ranks = {2} if tuple(block_size) != (1, 1) else {2, 4} if sparsity_m_by_n is not None else None
    if ranks is not None:
        odd = [name for name, weights in chosen.items() if any(len(weight.shape) not in ranks for weight in weights)]
        if odd:
            pattern = f"blocks of {block_size}" if sparsity_m_by_n is None else f"a pattern of {sparsity_m_by_n}"
            kinds = "dense layers" if sparsity_m_by_n is None else "dense layers and 2-D convolutions"
            raise ModelError(f"TFMOT prunes to {pattern} only in {kinds}. Name these layers in `exclude`: {odd}.")
    return chosen


def _check_zeros(
    chosen: Mapping[str, Sequence[Any]],
    target: float | None,
    sparsity_m_by_n: tuple[int, int] | None,
    block_size: tuple[int, int],
) -> None:
    for name, weights in chosen.items():
        for weight in weights:
            kernel = weight.numpy()
            if sparsity_m_by_n is not None:
                if not has_pattern(kernel, *sparsity_m_by_n):
                    raise TrainingError(f"Layer {name!r} did not get its zeros of {sparsity_m_by_n}.")
                continue
            assert target is not None
            total, kept = count_blocks(kernel, block_size)
            # TFMOT keeps at least one, rounds in float32, and keeps all that equal the last one: among 10,000 and more
            # random floats some do.
            allowed = max(int(np.round(np.float32(total) * np.float32(1 - np.float32(target)))), 1) + total // 10_000
            if kept > allowed:
                raise TrainingError(
                    f"Layer {name!r} has {kept} of {total} weights or blocks left, and only {allowed} may be at a "
                    f"sparsity of {target:g}. Training ended before the schedule did, or many weights are equal."
                )


def count_blocks(kernel: np.ndarray, block_size: tuple[int, int]) -> tuple[int, int]:
    """How many blocks a kernel has, and in how many of them not all is zero.

    Example:
        >>> count_blocks(np.array([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]), (2, 2))
        (2, 1)
    """
    if tuple(block_size) == (1, 1):
        return kernel.size, int(np.count_nonzero(kernel))
    height, width = block_size
    rows, columns = -(-kernel.shape[0] // height), -(-kernel.shape[1] // width)
    padded = np.zeros((rows * height, columns * width), bool)
    padded[: kernel.shape[0], : kernel.shape[1]] = kernel != 0
    blocks = padded.reshape(rows, height, columns, width).any((1, 3))
    return blocks.size, int(blocks.sum())


def has_pattern(kernel: np.ndarray, zeros: int, of: int) -> bool:
    """Whether among every `of` neighbouring input channels at least `zeros` are zero.

    Args:
        kernel: Shape `(..., input channels, output channels)`; the last group may be shorter.

    Example:
        >>> has_pattern(np.array([[1.0], [0.0], [0.0], [2.0], [3.0]]), 2, 4)
        True
    """
    channels = kernel.shape[-2]
    return all(
        (np.count_nonzero(kernel[..., start : start + of, :], axis=-2) <= of - zeros).all()
        for start in range(0, channels, of)
    )
