"""`prune_weights`: a new model with zeros, at once and without training.

Invariant: the model that comes in is not changed. Left out: training after it, under `HoldMasks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.errors import DataError, InvalidArgumentError, ModelError
from tfcompress.techniques.kernels import Kernel, check_finite
from tfcompress.techniques.labelled import labelled_batches
from tfcompress.techniques.prune.budgets import as_budget
from tfcompress.techniques.prune.callback import check_options
from tfcompress.techniques.prune.criteria import Criterion, as_criterion, check_scores
from tfcompress.techniques.prune.kernels import prunable_kernels
from tfcompress.techniques.prune.patterns import Pattern, RowLayout, check_pattern
from tfcompress.techniques.prune.ranking import choose_masks, ranked
from tfcompress.training.copying import copy_model


def prune_weights(
    model: keras.Model,
    sparsity: float | None = None,
    *,
    threshold: float | None = None,
    criterion: Any = "l1",
    pattern: str | None = None,
    budget: Any = "uniform",
    data: Any = None,
    loss: Callable[[Any, Any], Any] | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    seed: int = 0,
) -> keras.Model:
    """Sets weights to zero, at once.

    Args:
        model: A built Keras model. It is not changed.
        sparsity: Share of zeros in the pruned kernels, in (0, 1). Left out for a pattern N:M, which has its own.
        threshold: In the place of `sparsity`: weights smaller than this in magnitude become zero, above 0.
        criterion: What a weight is worth; see `WeightPruning`. All but `"movement"`, which training alone tells.
        pattern: What gets zeros together; see `WeightPruning`.
        budget: How the sparsity is shared out; see `WeightPruning`.
        data: For a criterion that needs gradients: a `Dataset` (its train split), a `tf.data.Dataset` of batches `(x,
            y)`, a tuple of arrays `(x, y)`, or a list or another iterable of batches `(x, y)`.
        loss: A Keras loss `(targets, outputs)` for such a criterion.
        include: Patterns of layer names to prune; see `prunable_kernels` for what is pruned by default.
        exclude: Patterns of layer names not to prune.
        seed: Seed of `"random"`.

    Returns:
        A new model. `tfcompress.inspect(model)` shows the zeros of each layer.

    Raises:
        InvalidArgumentError: If an argument is out of its range or missing.
        DataError: If `data` holds no batch.
        ModelError: If the model has nothing to prune, cannot be copied, the pattern does not fit a kernel, or a kernel
            holds NaN or infinity, or has no gradient where one is needed.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="hidden"), keras.layers.Dense(2)])
        >>> pruned = prune_weights(model, 0.75, include=["hidden"])
        >>> float(np.mean(pruned.get_layer("hidden").kernel.numpy() == 0))
        0.75
    """
    chosen, parsed = as_criterion("prune_weights", criterion), Pattern.parse(pattern)
    check_options("prune_weights", pattern=pattern, budget=budget, rewind=None, regrow=0.0)
    sparsity = _sparsity(sparsity, threshold, criterion, pattern, parsed)
    pruned = copy_model(model)
    kernels = prunable_kernels(pruned, include, exclude)
    check_pattern(parsed, kernels)
    check_finite(kernels)
    values = [keras.ops.convert_to_numpy(kernel.variable) for kernel in kernels]
    if threshold is not None:
        masks = [np.abs(value) >= threshold for value in values]
    else:
        observed = _observe(pruned, kernels, chosen, data, loss)
        rng = np.random.default_rng(seed)
        scores = [
            check_scores(kernel.name, chosen.score(value, seen, rng), value.shape)
            for kernel, value, seen in zip(kernels, values, observed, strict=True)
        ]
        masks = choose_masks(
            ranked(scores, [value != 0 for value in values]),
            sparsity,
            budget=as_budget("prune_weights", budget),
            pattern=parsed,
            layouts=[RowLayout.of(kernel) for kernel in kernels],
        )
    for kernel, value, keep in zip(kernels, values, masks, strict=True):
        kernel.variable.assign(value * keep)
    return pruned


def _sparsity(
    sparsity: float | None, threshold: float | None, criterion: Any, pattern: str | None, parsed: Pattern
) -> float:
    """The sparsity that is asked for; 0 with a threshold, which does not read it."""
    n_of_m = parsed.zeros_per_unit < parsed.width
    if n_of_m and sparsity is None and threshold is None:
        return parsed.most_sparsity
    if (sparsity is None) == (threshold is None):
        raise InvalidArgumentError("prune_weights", "given either `sparsity` or `threshold`", (sparsity, threshold))
    if threshold is not None:
        if threshold <= 0 or criterion != "l1" or pattern is not None:
            raise InvalidArgumentError(
                "prune_weights.threshold",
                "above 0, and by magnitude without a pattern",
                {"threshold": threshold, "criterion": criterion, "pattern": pattern},
            )
        return 0.0
    assert sparsity is not None
    if not 0 < sparsity < 1:
        raise InvalidArgumentError("prune_weights.sparsity", "a share in (0, 1)", sparsity)
    if n_of_m and sparsity != parsed.most_sparsity:
        raise InvalidArgumentError("prune_weights.sparsity", f"{parsed.most_sparsity:g} with {pattern}", sparsity)
    return sparsity


def _observe(
    model: keras.Model, kernels: Sequence[Kernel], criterion: Criterion, data: Any, loss: Any
) -> Sequence[np.ndarray | None]:
    """What the criterion sees in the gradients of each batch, summed; nothing where it needs none."""
    observe = criterion.observe
    if observe is None:
        return [None] * len(kernels)
    if criterion.since_beginning:
        raise InvalidArgumentError(
            "prune_weights.criterion", "one that needs no training; give movement to `WeightPruning`", "movement"
        )
    if data is None or loss is None:
        raise InvalidArgumentError("prune_weights.data and loss", "given for a criterion of gradients", (data, loss))
    variables = [kernel.variable.value for kernel in kernels]
    sums = [np.zeros(variable.shape) for variable in variables]
    batches = 0
    # A list or a generator of batches is taken as it is.
    is_iterable = isinstance(data, Iterable) and not isinstance(data, tuple | tf.data.Dataset)
    for inputs, targets, *_ in data if is_iterable else labelled_batches(model, data):
        with tf.GradientTape() as tape:
            value = tf.reduce_mean(loss(targets, model(inputs, training=False)))
        gradients = tape.gradient(value, variables)
        for kernel, total, variable, gradient in zip(kernels, sums, variables, gradients, strict=True):
            if gradient is None:
                raise ModelError(
                    f"Kernel {kernel.name!r} has no gradient, since the loss does not depend on it. Name its layer in "
                    "`exclude`, or take a criterion that needs no gradients, such as l1."
                )
            total += observe(tf.convert_to_tensor(variable), tf.convert_to_tensor(gradient)).numpy()
        batches += 1
    if not batches:
        raise DataError("`data` of prune_weights holds no batch. Give batches `(inputs, targets)`.")
    return sums
