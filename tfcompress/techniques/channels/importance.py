"""How much each channel matters: one number for each unit of a model, the least first to go.

A criterion is a plain callable, `(evidence) -> scores` of shape `(num_units,)`; those here are in `CRITERIA` by name. A
unit is often stored in several layers (all of a residual stage, say); its score adds up what it has in each of them.

Invariant: no criterion changes the model. A score of infinity keeps a unit. Left out: how scores of different groups
are compared, and how many units go (`selection.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.errors import DataError, InvalidArgumentError, ModelError
from tfcompress.graph.channels import ChannelGraph, Member
from tfcompress.techniques.channels.forward import run_calls


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What a criterion may look at.

    Args:
        graph: The units of the model.
        model: The model itself.
        batches: `(inputs, labels)` of real data; empty if none was given.
        loss: `(labels, outputs) -> numbers`, for criteria that use gradients.
        seed: Seed of what is random.
    """

    graph: ChannelGraph
    model: keras.Model
    batches: Sequence[tuple[Any, Any]] = ()
    loss: Callable[[Any, Any], Any] | None = None
    seed: int = 0

    def data(self, criterion: str) -> Sequence[tuple[Any, Any]]:
        """The batches, or a `DataError` that says which criterion needs them."""
        if not self.batches:
            raise DataError(f"Criterion {criterion!r} is measured on data. Pass `data`. Received: no data.")
        return self.batches


Criterion = Callable[[Evidence], np.ndarray]


def l1(evidence: Evidence) -> np.ndarray:
    """Sum of magnitudes of the kernels that make, carry and read a channel.

    Reference:
        Li et al., "Pruning Filters for Efficient ConvNets", 2017, https://arxiv.org/abs/1608.08710
    """
    return _summed(evidence.graph, {id(one.variable): np.abs(_value(one)) for one in _kernels(evidence.graph)})


def l2(evidence: Evidence) -> np.ndarray:
    """Root of the sum of squares of the kernels that make, carry and read a channel."""
    return np.sqrt(
        _summed(evidence.graph, {id(one.variable): np.square(_value(one)) for one in _kernels(evidence.graph)})
    )


def batch_norm_scale(evidence: Evidence) -> np.ndarray:
    """Magnitude of the factors of BatchNormalization. Groups without one are kept whole.

    Reference:
        Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", 2017,
        https://arxiv.org/abs/1708.06519
    """
    gammas = batch_norm_factors(evidence.model)
    members = [member for member in evidence.graph.members if id(member.variable) in gammas]
    scores = _summed(evidence.graph, {id(member.variable): np.abs(_value(member)) for member in members})
    seen = np.zeros(evidence.graph.num_units, bool)
    for member in members:
        seen[member.units[member.units >= 0]] = True
    return np.where(seen, scores, np.inf)


def geometric_median(evidence: Evidence) -> np.ndarray:
    """Sum of the distances of a filter to the others of its layer: one close to all of them can be spared.

    Reference:
        He et al., "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration", 2019,
        https://arxiv.org/abs/1811.00250
    """
    scores = np.zeros(evidence.graph.num_units)
    for member in evidence.graph.members:
        if member.makes and len(member.variable.shape) > 1:
            filters = np.moveaxis(_value(member), member.axis, 0).reshape(len(member.units), -1)
            squares = np.square(filters).sum(1)
            # Rounding can make the square of a distance negative.
            squared = np.maximum(squares[:, None] + squares[None] - 2 * filters @ filters.T, 0)
            _add(scores, member, np.sqrt(squared).sum(1))
    return scores


def taylor(evidence: Evidence) -> np.ndarray:
    """What the loss would change, to first order, were the weights that make a channel zero; squared, over the data.

    Reference:
        Molchanov et al., "Importance Estimation for Neural Network Pruning", 2019, https://arxiv.org/abs/1906.10771
    """
    total = np.zeros(evidence.graph.num_units)
    for gradients in _gradients(evidence, "taylor"):
        products = {key: gradient * value for key, (gradient, value) in gradients.items()}
        total += np.square(_summed(evidence.graph, products, makes=True))
    return total


def hessian(evidence: Evidence) -> np.ndarray:
    """What the loss would change to second order, with the squared gradient for the diagonal of the Hessian.

    Reference:
        LeCun et al., "Optimal Brain Damage", 1990; Theis et al., "Faster gaze prediction with dense networks and Fisher
        pruning", 2018, https://arxiv.org/abs/1801.05787
    """
    total = np.zeros(evidence.graph.num_units)
    for gradients in _gradients(evidence, "hessian"):
        squares = {key: np.square(gradient * value) / 2 for key, (gradient, value) in gradients.items()}
        total += _summed(evidence.graph, squares, makes=True)
    return total


def activation_mean(evidence: Evidence) -> np.ndarray:
    """Mean magnitude of a channel's numbers where a layer reads them."""
    return _activations(evidence, "activation_mean", np.abs)


def activation_nonzero(evidence: Evidence) -> np.ndarray:
    """Share of a channel's numbers that are not zero where a layer reads them: one minus APoZ.

    Reference:
        Hu et al., "Network Trimming", 2016, https://arxiv.org/abs/1607.03250
    """
    return _activations(evidence, "activation_nonzero", lambda numbers: numbers != 0)


def random(evidence: Evidence) -> np.ndarray:
    """A number that says nothing, as a control."""
    return np.random.default_rng(evidence.seed).uniform(size=evidence.graph.num_units)


CRITERIA: Mapping[str, Criterion] = {
    one.__name__: one
    for one in (
        activation_mean,
        activation_nonzero,
        batch_norm_scale,
        geometric_median,
        hessian,
        l1,
        l2,
        random,
        taylor,
    )
}


def scores_by(criterion: str | Criterion, evidence: Evidence, groups: Sequence[int]) -> np.ndarray:
    """The scores of a criterion, checked.

    Args:
        criterion: A name of `CRITERIA`, or one of its kind.
        evidence: What it looks at.
        groups: Indices of the groups of units that may lose some.

    Raises:
        InvalidArgumentError: If a criterion of the user's gives no number for each unit.
        ModelError: If the weights of a layer are NaN, or every unit that may go is to be kept.
        DataError: If there are NaN in what the model makes of the data.
    """
    graph = evidence.graph
    score = CRITERIA[criterion] if isinstance(criterion, str) else criterion
    scores = np.asarray(score(evidence), float)
    if scores.shape != (graph.num_units,) or np.isnan(scores).any() or np.isneginf(scores).any():
        _refuse_nan_weights(evidence.model)
        if isinstance(criterion, str):
            raise DataError(
                f"Criterion {criterion!r} is NaN on `data`. Received: NaN in the data, the outputs or the loss."
            )
        what = f"a function that gives {graph.num_units} numbers, none of them NaN or -inf"
        wrong = f"{np.isnan(scores).sum()} NaN, {np.isneginf(scores).sum()} -inf"
        raise InvalidArgumentError("criterion", what, f"shape {scores.shape}, {wrong}")
    if np.isinf(scores[np.concatenate([graph.groups[index] for index in groups])]).all():
        why = "every score is infinite, which keeps a channel"
        if score is batch_norm_scale:
            why = "no group of channels that may go has BatchNormalization factors (`scale=True`)"
        raise ModelError(
            f"Criterion {getattr(score, '__name__', score)!r} removes nothing of model "
            f"{evidence.model.name!r}: {why}. Use another `criterion`, such as l2."
        )
    return scores


def _refuse_nan_weights(model: keras.Model) -> None:
    for layer in model._flatten_layers(include_self=False):
        for weight in layer._trainable_variables + layer._non_trainable_variables:
            if np.isnan(keras.ops.convert_to_numpy(weight).astype("float64")).any():
                raise ModelError(
                    f"Weight {weight.path!r} of layer {layer.name!r} has NaN values, so no channel can be compared "
                    "with another. Train the model again, or load weights that are finite."
                )


def batch_norm_factors(model: keras.Model) -> set[int]:
    """Identities of the variables that are factors of BatchNormalization."""
    return {
        id(layer.gamma)
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization) and layer.scale
    }


def _kernels(graph: ChannelGraph) -> list[Member]:
    return [member for member in graph.members if len(member.variable.shape) > 1]


def _value(member: Member) -> np.ndarray:
    return keras.ops.convert_to_numpy(member.variable).astype("float64")


def _summed(graph: ChannelGraph, values: Mapping[int, np.ndarray], *, makes: bool = False) -> np.ndarray:
    """For each unit the sum of what it has in these arrays, by the identity of their weights."""
    scores = np.zeros(graph.num_units)
    for member in graph.members:
        value = values.get(id(member.variable))
        if value is not None and (member.makes or not makes):
            _add(scores, member, np.moveaxis(value, member.axis, 0).reshape(len(member.units), -1).sum(1))
    return scores


def _add(scores: np.ndarray, member: Member, numbers: np.ndarray) -> None:
    has_unit = member.units >= 0
    scores += np.bincount(member.units[has_unit], weights=numbers[has_unit], minlength=len(scores))


def _gradients(evidence: Evidence, criterion: str) -> Any:
    """For each batch, the gradients and values of the kernels that make channels, by the identity of the weight."""
    batches = evidence.data(criterion)
    if evidence.loss is None:
        labels = [f"{np.asarray(one).dtype} {tuple(one.shape)}" for one in keras.tree.flatten(batches[0][1])]
        raise DataError(
            f"Criterion {criterion!r} needs the gradient of a loss, which is known only for one output of at least 2 "
            "classes and labels that are integers below their number. Pass `loss`, `(y, outputs) -> numbers`. "
            f"Received: outputs {keras.tree.map_shape_structure(tuple, evidence.model.output_shape)}, labels "
            f"{', '.join(labels)}."
        )
    made = [member for member in _kernels(evidence.graph) if member.makes and member.variable.trainable]
    variables = list({id(member.variable): member.variable for member in made}.values())
    values = [keras.ops.convert_to_numpy(variable).astype("float64") for variable in variables]

    @tf.function(reduce_retracing=True)
    def of_batch(inputs: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(evidence.loss(labels, evidence.model(inputs, training=False)))  # type: ignore[misc]
        return tape.gradient(loss, [variable.value for variable in variables], unconnected_gradients="zero")

    for inputs, labels in batches:
        gradients = of_batch(inputs, labels)
        yield {
            id(variable): (_dense(gradient), value)
            for variable, gradient, value in zip(variables, gradients, values, strict=True)
        }


def _dense(gradient: Any) -> np.ndarray:
    """A gradient as an array; that of an embedding comes as the rows that were looked up."""
    return tf.convert_to_tensor(gradient).numpy().astype("float64")


def _activations(evidence: Evidence, criterion: str, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    graph = evidence.graph
    read = {
        ref
        for call in graph.traced.calls
        if any(len(weight.shape) > 1 for weight in getattr(call.operation, "weights", ()))
        for ref in call.sources
        if ref in graph.results
    }
    total, count = np.zeros(graph.num_units), np.zeros(graph.num_units)
    for inputs, _ in evidence.data(criterion):
        for ref, tensor in run_calls(graph.traced, inputs, read).items():
            labels = graph.results[ref]
            numbers = np.moveaxis(function(np.asarray(tensor)), labels.axis, 0).reshape(len(labels.vector), -1).mean(1)
            has_unit = labels.vector >= 0
            total += np.bincount(labels.vector[has_unit], weights=numbers[has_unit], minlength=len(total))
            count += np.bincount(labels.vector[has_unit], minlength=len(total))
    # What no layer reads cannot be judged.
    return np.where(count > 0, total / np.maximum(count, 1), np.inf)
