"""Penalties on whole units of a model, as gradients: what a training adds to those of its loss.

A unit is all weights that go when a channel goes, of all layers that make, carry and read it; a weight between two
channels belongs to both. Penalties are sums over units, so that such a weight has two terms.

Invariant: a gradient is that of the penalty that its docstring states, divided by the strength; nothing is written to.
Left out: how strong a penalty is, and when (`sparsity.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np
import tensorflow as tf

from tfcompress.graph.channels import ChannelGraph, Member

# Values of weights, or their gradients, by the identity of the Keras variable.
Tensors = Mapping[int, tf.Tensor]


class UnitWeights:
    """The trainable weights of the units of a model, and which units a penalty is for.

    Args:
        graph: The units of a model.
        chosen: A boolean for each unit: whether the penalty is for it.
        only: Identities of the variables that count; by default all that are trainable.
    """

    def __init__(self, graph: ChannelGraph, chosen: np.ndarray, only: Collection[int] | None = None):
        self._members: dict[int, list[Member]] = {}
        sizes = np.zeros(graph.num_units)
        for member in graph.members:
            key = id(member.variable)
            if member.variable.trainable and (only is None or key in only):
                self._members.setdefault(key, []).append(member)
                of_index = np.prod(member.variable.shape) / len(member.units)
                np.add.at(sizes, member.units[member.units >= 0], of_index)
        self.num_units = graph.num_units
        self.chosen = np.asarray(chosen, "float32")
        self.sizes = sizes.astype("float32")

    def __contains__(self, variable: object) -> bool:
        return id(variable) in self._members

    def squares(self, values: Tensors) -> tf.Tensor:
        """For each unit the sum of the squares of its weights, `(units,)`."""
        total = tf.zeros(self.num_units)
        for key, value in values.items():
            for member in self._members[key]:
                others = [axis for axis in range(len(value.shape)) if axis != member.axis]
                of_index = tf.reduce_sum(tf.square(value), others)
                # What is in no unit has a negative one, which the sum leaves out.
                total += tf.math.unsorted_segment_sum(of_index, member.units.astype("int32"), self.num_units)
        return total

    def spread(self, factors: tf.Tensor, values: Tensors) -> Tensors:
        """For each weight the sum of the factors, `(units,)`, of the chosen units that it belongs to."""
        # The last is that of what is in no unit: -1.
        factors = tf.concat([factors * self.chosen, tf.zeros(1)], 0)
        result = {}
        for key, value in values.items():
            terms = []
            for member in self._members[key]:
                shape = [-1 if axis == member.axis else 1 for axis in range(len(value.shape))]
                index = np.where(member.units >= 0, member.units, self.num_units).astype("int32")
                terms.append(tf.reshape(tf.gather(factors, index), shape))
            result[key] = tf.broadcast_to(sum(terms), value.shape)
        return result


Gradient = Callable[[UnitWeights, Tensors], Tensors]


def group_lasso(weights: UnitWeights, values: Tensors) -> Tensors:
    """Gradient of the sum over units of `sqrt(size) * norm`, the L2 norm of a unit's weights and how many they are.

    Reference:
        Wen et al., "Learning Structured Sparsity in Deep Neural Networks", 2016, https://arxiv.org/abs/1608.03665
    """
    factors = tf.math.divide_no_nan(tf.sqrt(weights.sizes), tf.sqrt(weights.squares(values)))
    return {key: values[key] * factor for key, factor in weights.spread(factors, values).items()}


def batch_norm_l1(weights: UnitWeights, values: Tensors) -> Tensors:
    """Gradient of the sum over units of the magnitudes of their BatchNormalization factors.

    Reference:
        Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", 2017,
        https://arxiv.org/abs/1708.06519
    """
    factors = weights.spread(tf.ones(weights.num_units), values)
    return {key: tf.sign(values[key]) * factor for key, factor in factors.items()}


def growing_l2(weights: UnitWeights, values: Tensors) -> Tensors:
    """Gradient of half of the sum over units of the squares of their weights.

    Reference:
        Wang et al., "Neural Pruning via Growing Regularization", 2021, https://arxiv.org/abs/2012.09243
    """
    factors = weights.spread(tf.ones(weights.num_units), values)
    return {key: values[key] * factor for key, factor in factors.items()}


GRADIENTS: Mapping[str, Gradient] = {one.__name__: one for one in (batch_norm_l1, group_lasso, growing_l2)}
