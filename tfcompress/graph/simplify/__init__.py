"""Simplify: a smaller model of the same function, without data and without training, and proof of it.

Invariant: outputs in inference are those of the model that came in, up to float32 rounding, on random inputs and on
the user's; otherwise there is no model, but an error that names the pass and its layers. The model that came in is not
changed, layers that stay keep their names, and all of them are Keras layers. Left out: training, where a folded
BatchNormalization no longer normalizes and a dropped dropout no longer drops.
"""

from __future__ import annotations

import warnings
from typing import Any

import keras

from tfcompress.errors import ModelError
from tfcompress.graph.flatten import flatten
from tfcompress.graph.macs import count_macs
from tfcompress.graph.simplify.certificate import TOLERANCE, data_difference, random_difference
from tfcompress.graph.simplify.certificate import Certificate as Certificate
from tfcompress.graph.simplify.dead_channels import fold_constants, remove_dead_channels
from tfcompress.graph.simplify.fold_scaling import fold_before, fold_behind
from tfcompress.graph.simplify.identities import drop_identities
from tfcompress.graph.simplify.merge_affine import merge_affine
from tfcompress.graph.simplify.rewriting import Pass, as_model, rewritten
from tfcompress.graph.simplify.rewriting import Step as Step
from tfcompress.graph.trace import trace

# In this order, again and again until none finds anything. Merging counts channels, so dead ones go before it.
PASSES: dict[str, Pass] = {
    "dropping layers that do nothing": drop_identities,
    "folding into the layer before": fold_behind,
    "folding into the layer behind": fold_before,
    "moving constants into biases": fold_constants,
    "removing dead channels": remove_dead_channels,
    "merging affine layers": merge_affine,
}
# Every round with a step makes the model smaller; more than a few are a mistake of ours.
MOST_ROUNDS = 50


def simplify(model: keras.Model, *, data: Any = None) -> keras.Model:
    """A smaller model that computes the same in inference.

    BatchNormalization and other scaling by channel is folded into the convolution or dense layer beside it; channels
    that are constant or that nobody reads are removed, their constants moved on into biases; layers that do nothing
    in inference, and branches that no output needs, are dropped; affine layers in a row are merged where that makes
    them no larger.

    Args:
        model: A functional or Sequential model; nested models are opened.
        data: Typical inputs to compare both models on, besides random ones: a `Dataset` (its validation split), batches
            `x` or `(x, y)`, or arrays `(samples, ...)`. Up to 256 samples are used.

    Returns:
        A new functional model of plain Keras layers, stateful ones without the states that they carried. One with fake
        quantization comes back as a copy: its normalization is folded by the converter, after rounding.

    Raises:
        ModelError: If the model has no graph, or the outputs differ by more than 1e-4 of the largest.
        DataError: If `data` is not of the model's shapes.

    Example:
        >>> inputs = keras.Input((8, 8, 3))
        >>> x = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3, name="conv")(inputs))
        >>> model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D(name="pool")(x))
        >>> [layer.name for layer in simplify(model).layers[1:]]
        ['conv', 'pool']
    """
    return simplify_with_certificate(model, data=data)[0]


def simplify_with_certificate(model: keras.Model, *, data: Any = None) -> tuple[keras.Model, Certificate]:
    """The model that `simplify` gives, and what was done to it, layer by layer.

    Args:
        model: As `simplify` takes it.
        data: Likewise.

    Returns:
        The new model, and its certificate.

    Raises:
        ModelError: As `simplify`.
        DataError: Likewise.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5, name="drop"), keras.layers.Dense(2)])
        >>> simplify_with_certificate(model)[1].steps[0].what
        'dropped: it does nothing in inference'
    """
    copy = _copied(model)
    simplified, note = copy, ""
    steps: list[Step] = []
    if any(getattr(layer, "is_fake_quantized", False) for layer in model._flatten_layers()):
        note = "The model has fake quantization and is left as it is: the converter folds its normalization."
    else:
        simplified, steps = _after(copy, PASSES)
    differences = _differences(model, simplified, data)
    # Not `> TOLERANCE`, which NaN would pass.
    if not max(one for one in differences if one is not None) <= TOLERANCE:
        raise _refusal(model, copy, data)
    counts = [_macs(each) for each in (model, simplified)]
    certificate = Certificate(
        model.name,
        tuple(steps),
        *differences,
        TOLERANCE,
        (model.count_params(), simplified.count_params()),
        None if None in counts else (counts[0], counts[1]),  # type: ignore[arg-type]
        note,
    )
    return simplified, certificate


def _copied(model: keras.Model) -> keras.Model:
    """A copy with nested models opened."""
    try:
        return flatten(model)
    except ModelError:
        raise
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        raise ModelError(
            f"Model {model.name!r} cannot be simplified, since one of its layers cannot be copied. Give it a "
            f"`get_config` of all that its `__init__` takes. {error}"
        ) from error


def _after(copy: keras.Model, passes: dict[str, Pass]) -> tuple[keras.Model, list[Step]]:
    """A copy of a model after some passes."""
    # Nested models may have had branches that nobody reads.
    traced = trace(copy)
    kept = rewritten(traced)
    names = {call.operation.name for call in kept.calls}
    gone = {call.operation.name: call.operation for call in traced.calls if call.operation.name not in names}
    steps = [Step(name, type(layer).__name__, "dropped: no output needs it") for name, layer in gone.items()]
    traced = kept
    for _ in range(MOST_ROUNDS):
        found: list[Step] = []
        for one in passes.values():
            traced, more = one(traced)
            found += more
        if not found:
            break
        steps += found
    return (as_model(traced), steps) if steps else (copy, [])


def _differences(model: keras.Model, simplified: keras.Model, data: Any) -> tuple[float, float | None]:
    return random_difference(model, simplified), None if data is None else data_difference(model, simplified, data)


def _refusal(model: keras.Model, copy: keras.Model, data: Any) -> ModelError:
    """Names the first pass after which the model computes something else."""
    for count in range(len(PASSES) + 1):
        passes = dict(list(PASSES.items())[:count])
        simplified, steps = _after(copy, passes)
        worst = max(one for one in _differences(model, simplified, data) if one is not None)
        if not worst <= TOLERANCE:
            break
    name = list(passes)[-1] if passes else "copying"
    layers = sorted({step.layer for step in steps})
    return ModelError(
        f"Model {model.name!r} cannot be simplified: after {name} its outputs differ by {worst:.1e} of the largest, "
        f"where {TOLERANCE:.0e} is allowed. Changed were {', '.join(layers[:8])}{' and more' if layers[8:] else ''}. "
        "Use the model as it is; very large or very small weights or statistics of these layers are the likely cause."
    )


def _macs(model: keras.Model) -> int | None:
    try:
        with warnings.catch_warnings():
            # Who counts is told of layers that are not known, here only both counts are compared.
            warnings.simplefilter("ignore")
            return count_macs(model)
    except ModelError:
        return None  # A size is unknown.
