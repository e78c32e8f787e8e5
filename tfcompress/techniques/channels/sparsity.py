"""Training that makes whole channels small before they are removed: penalties on dependency groups.

The gradient of the penalty is added to that of the loss on its way to the optimizer, so the training minimizes
`loss + strength * penalty` in any `train_step`, and nothing is compiled anew when the strength changes.

Invariant: the penalty acts while `fit` runs and never after it; layers and weights of the model stay what they are.
Left out: the removal (`prune_channels.py`), and the penalties themselves (`penalties.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.errors import InvalidArgumentError, ModelError, TrainingError
from tfcompress.graph.channels import ChannelGraph
from tfcompress.techniques.channels.budget import ChannelBudget
from tfcompress.techniques.channels.importance import Evidence, batch_norm_factors, scores_by
from tfcompress.techniques.channels.penalties import GRADIENTS, UnitWeights
from tfcompress.techniques.channels.prune_channels import allowed_groups, prunable_graph
from tfcompress.techniques.channels.selection import ranked, select
from tfcompress.techniques.listening import Apply, OptimizerListener, step_counter, steps_so_far


class ChannelSparsity(keras.callbacks.Callback):
    """Pushes whole channels of a model towards zero during `fit`, so that `prune_channels` removes what matters least.

    A channel is pushed with everything that goes when it goes: what makes, carries and reads it, in all layers of a
    residual stage. Works with `jit_compile`, mixed precision, several replicas, a `Distiller` and custom `train_step`s.

    Args:
        model: The model that is fitted, or the student of a `Distiller`: functional or Sequential.
        kind: The penalty. `"group_lasso"`: L2 norm of each channel's weights, times the root of how many they are.
            `"batch_norm_l1"`: magnitude of BatchNormalization factors (Network Slimming). `"growing_l2"`: half of the
            squares of the weights of just those channels that `prune_channels` would remove now for `macs` or
            `params`, by criterion `"l1"`.
        strength: Weight of the penalty beside the loss, above 0: about 1e-2 for `"group_lasso"` and `"batch_norm_l1"`,
            1 for `"growing_l2"`. Can be assigned while the model trains.
        rise: Share of the training in which the strength grows from 0, a little with each step, in [0, 1]; 0 has it
            all at once, which `"growing_l2"` may not.
        exclude: Patterns of names of layers of which all channels that they make or carry are left alone.
        macs: For `"growing_l2"`, the most multiply-adds that are to be left: a share in (0, 1), or a number.
        params: For `"growing_l2"`, the most values of all weights, likewise.

    Raises:
        InvalidArgumentError: If an argument is out of its range, or a pattern fits no layer.
        ModelError: If the model has no graph or no channel that may go, the budget cannot be met, or `"batch_norm_l1"`
            finds no BatchNormalization with factors.
        TrainingError: When training begins, if its steps are not known; after the first step, if the `train_step` does
            not use the model's optimizer.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, name="hidden"), keras.layers.Dense(2)])
        >>> model.compile("adam", "mse")
        >>> sparsity = ChannelSparsity(model, "group_lasso", strength=1e-3)
        >>> history = model.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0, callbacks=[sparsity])

    Reference:
        Wen et al., "Learning Structured Sparsity in Deep Neural Networks", 2016, https://arxiv.org/abs/1608.03665;
        Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", 2017,
        https://arxiv.org/abs/1708.06519; Wang et al., "Neural Pruning via Growing Regularization", 2021,
        https://arxiv.org/abs/2012.09243
    """

    def __init__(
        self,
        model: keras.Model,
        kind: str = "group_lasso",
        *,
        strength: float,
        rise: float = 0.5,
        exclude: Sequence[str] = (),
        macs: float | int | None = None,
        params: float | int | None = None,
    ):
        super().__init__()
        check_sparsity("ChannelSparsity", kind, strength, rise, macs, params)
        self._gradient = GRADIENTS[kind]
        self._rise = rise
        self._weights = penalized_weights(model, kind, exclude, macs, params)
        strategy = model.distribute_strategy
        # Each replica adds its part, and the optimizer sums what all of them have.
        self._replicas = strategy.num_replicas_in_sync
        with strategy.scope():
            self._strength = tf.Variable(float(strength), trainable=False)
            self._start, self._steps = (tf.Variable(0.0, trainable=False) for _ in range(2))
        self._planned = False
        self._is_used = False
        self._listener = OptimizerListener(self._step)

    @property
    def strength(self) -> float:
        """The strength that is reached after `rise`."""
        return float(self._strength.numpy())

    @strength.setter
    def strength(self, value: float) -> None:
        self._strength.assign(float(value))

    @property
    def settled(self) -> bool:
        """Whether the strength has risen; earlier epochs are no candidates for the best one."""
        return self._planned and bool(self._done() >= self._steps)

    def on_train_begin(self, logs=None):
        self._planned = self._is_used = False
        self._listener.install(self.model.optimizer)
        # A step that was compiled before knows nothing of it.
        self.model.make_train_function(force=True)

    def on_epoch_begin(self, epoch, logs=None):
        if self._planned:
            return
        steps = self.params.get("steps")
        if steps is None and self._rise:
            raise TrainingError(
                "ChannelSparsity must know how many steps are planned to let its strength rise. Received: data of "
                "unknown length. Pass `steps_per_epoch` to `fit`, or `rise=0`."
            )
        # The optimizer counts on in a resumed training, and leaves out steps that overflow under loss scaling.
        self._start.assign(float(max(0, steps_so_far(self.model.optimizer) - epoch * (steps or 0))))
        self._steps.assign(self._rise * self.params["epochs"] * (steps or 0))
        self._planned = True

    def on_train_batch_end(self, batch, logs=None):
        if not self._is_used:
            raise TrainingError(
                "The penalty on channels is not part of this training: the model's `train_step` does not give its "
                "gradients to `model.optimizer`. Call `self.optimizer.apply(gradients, variables)` there."
            )

    def on_train_end(self, logs=None):
        self._listener.remove()
        self.model.make_train_function(force=True)

    def _step(self, apply: Apply, grads: list[Any], variables: list[Any]) -> Any:
        """The optimizer's step on gradients with those of the penalty."""
        self._is_used = True
        penalized = [
            at
            for at, (gradient, variable) in enumerate(zip(grads, variables, strict=True))
            if gradient is not None and variable in self._weights
        ]
        values = {id(variables[at]): tf.cast(tf.convert_to_tensor(variables[at]), tf.float32) for at in penalized}
        added = self._gradient(self._weights, values)
        strength = self._strength_now()
        for at in penalized:
            # That of an embedding comes as the rows that were looked up.
            gradient = tf.convert_to_tensor(grads[at])
            grads[at] = gradient + tf.cast(strength * added[id(variables[at])], gradient.dtype)
        return apply(grads, variables)

    def _strength_now(self) -> tf.Tensor:
        # The first step has the first of the parts that the strength grows by.
        risen = tf.minimum(1.0, tf.math.divide_no_nan(self._done() + 1.0, self._steps))
        return self._strength * tf.where(self._steps > 0, risen, 1.0) / self._replicas

    def _done(self) -> tf.Tensor:
        """Steps since the beginning, as the optimizer counts them."""
        return tf.cast(tf.convert_to_tensor(step_counter(self._listener.optimizer)), tf.float32) - self._start


def check_sparsity(owner: str, kind: str, strength: float, rise: float, macs: Any, params: Any) -> None:
    """Raises an `InvalidArgumentError` for the first argument of `owner` that is out of its range."""
    if kind not in GRADIENTS:
        raise InvalidArgumentError(f"{owner}.kind", f"one of {', '.join(GRADIENTS)}", kind)
    if not strength > 0:
        raise InvalidArgumentError(f"{owner}.strength", "a number above 0", strength)
    if not 0 <= rise <= 1:
        raise InvalidArgumentError(f"{owner}.rise", "a share of the training in [0, 1]", rise)
    if kind == "growing_l2":
        if not rise:
            raise InvalidArgumentError(f"{owner}.rise", "above 0 where the L2 penalty grows", rise)
        if (macs is None) == (params is None):
            raise InvalidArgumentError(f"{owner}.macs and params", "one of both for growing_l2", (macs, params))
        ChannelBudget(macs=macs, params=params)
    elif (macs, params) != (None, None):
        raise InvalidArgumentError(f"{owner}.macs and params", "left out but for growing_l2", (macs, params))


def penalized_weights(
    model: keras.Model, kind: str, exclude: Sequence[str] = (), macs: Any = None, params: Any = None
) -> UnitWeights:
    """The weights of the units that a penalty is for.

    Raises:
        InvalidArgumentError: If a pattern fits no layer.
        ModelError: If there is none, or the budget cannot be met.
    """
    graph = prunable_graph(model, exclude)
    groups = allowed_groups(graph, exclude)
    if kind == "growing_l2":
        return UnitWeights(graph, _removed(model, graph, groups, ChannelBudget(macs=macs, params=params)))
    chosen = np.zeros(graph.num_units, bool)
    chosen[np.concatenate([graph.groups[index] for index in groups])] = True
    weights = UnitWeights(graph, chosen, batch_norm_factors(model) if kind == "batch_norm_l1" else None)
    if not weights.sizes[chosen].any():
        what = "BatchNormalization factors (`scale=True`)" if kind == "batch_norm_l1" else "trainable weights"
        raise ModelError(
            f"Model {model.name!r} has no channel with {what}, so {kind} has nothing to make small. Use another "
            "`kind`, such as group_lasso, or make its layers trainable."
        )
    return weights


def _removed(model: keras.Model, graph: ChannelGraph, groups: Sequence[int], budget: ChannelBudget) -> np.ndarray:
    """A boolean for each unit: whether a budget would remove it."""
    scores = scores_by("l1", Evidence(graph, model), groups)
    cost, limit = budget.cost_and_limit(model, graph)
    return select(graph, ranked(graph, scores, "isomorphic"), cost, limit, groups=groups)
