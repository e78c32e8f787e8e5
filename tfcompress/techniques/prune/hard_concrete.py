"""L0 regularization: a gate on each weight that learns whether to be open, and zeros where it is not.

While a network trains, each prunable kernel holds its weights times gates drawn from the hard concrete distribution,
which are exactly 0 or 1 much of the time and have gradients in between. The loss's gradient in the gated weights comes
by at the optimizer; from it follow those of the weights and of the gates. So it works in any `train_step`.

Invariant: at the end of each epoch, and of the training, the kernels hold what inference uses: weights times the most
likely gates, exactly zero where those are closed. Left out: a sparsity that is reached for sure, which is for
`WeightPruning`; here the strength of the penalty decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfcompress.errors import InvalidArgumentError
from tfcompress.techniques.listening import Apply, OptimizerListener, step_counter
from tfcompress.techniques.prune.kernels import prunable_kernels

# Of the paper: the sharpness of the distribution, and how far it is stretched beyond 0 and 1.
_TEMPERATURE = 2 / 3
_LOW, _HIGH = -0.1, 1.1


class HardConcretePruning(keras.callbacks.Callback):
    """Learns which weights are zero, by a penalty on the expected number of those that are not.

    Works with `jit_compile`, mixed precision, a `Distiller` and custom `train_step`s, on one replica. Afterwards
    `HoldMasks` keeps the zeros. A further `fit` with the same callback goes on with the gates as they are, or with open
    ones in a kernel that was given other weights.

    Callbacks that keep the weights of an epoch, such as `EarlyStopping`, go after this one: before it they see those of
    the gates that the last step has drawn, unless there is validation data.

    Args:
        model: The model to prune: the one that is fitted, or the student of a `Distiller`.
        strength: What each open gate adds to the loss, above 0, such as `1 / num_train_samples`.
        learning_rate: Learning rate of the gates (Adam), above 0.
        initial_keep: Probability at which gates begin open, in (0, 1).
        include: Patterns of layer names to prune; see `prunable_kernels` for what is pruned by default.
        exclude: Patterns of layer names not to prune.
        seed: Seed of the gates that are drawn.

    Raises:
        InvalidArgumentError: If an argument is out of its range, or the model is spread over several replicas.
        ModelError: If the model has nothing to prune.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="y")])
        >>> callback = HardConcretePruning(model, 1e-4, include=["y"])

    Reference:
        Louizos, Welling, Kingma, "Learning Sparse Neural Networks through L0 Regularization", 2018,
        https://arxiv.org/abs/1712.01312
    """

    def __init__(
        self,
        model: keras.Model,
        strength: float,
        *,
        learning_rate: float = 1e-2,
        initial_keep: float = 0.95,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        seed: int = 0,
    ):
        super().__init__()
        for name, value, holds, expected in (
            ("strength", strength, strength > 0, "a number above 0"),
            ("learning_rate", learning_rate, learning_rate > 0, "a number above 0"),
            ("initial_keep", initial_keep, 0 < initial_keep < 1, "a probability in (0, 1)"),
        ):
            if not holds:
                raise InvalidArgumentError(f"HardConcretePruning.{name}", expected, value)
        replicas = model.distribute_strategy.num_replicas_in_sync
        if replicas > 1:
            raise InvalidArgumentError("HardConcretePruning.model", "a model on one replica", f"{replicas} replicas")
        self._strength, self._seed = strength, seed
        start = math.log(initial_keep / (1 - initial_keep))
        self._gated = [
            _GatedKernel(kernel.variable, start, seed + at)
            for at, kernel in enumerate(prunable_kernels(model, include, exclude))
        ]
        self._gate_optimizer = keras.optimizers.Adam(learning_rate)
        self._gate_optimizer.build([gated.log_alpha for gated in self._gated])
        self._listener = OptimizerListener(self._step)

    @property
    def variables(self) -> list[Any]:
        """What a training resumed in the middle needs beside the model and its optimizer."""
        return [*(variable for gated in self._gated for variable in gated.variables), *self._gate_optimizer.variables]

    def on_train_begin(self, logs=None):
        self._listener.install(self.model.optimizer)
        for gated in self._gated:
            gated.begin()
        self.model.make_train_function(force=True)

    def on_epoch_begin(self, epoch, logs=None):
        for gated in self._gated:
            gated.show_drawn()

    # Validation comes before `on_epoch_end`.
    def on_test_begin(self, logs=None):
        self._show_likely()

    def on_epoch_end(self, epoch, logs=None):
        self._show_likely()

    def on_train_end(self, logs=None):
        # An optimizer that averages weights has overwritten what the last epoch showed. What others wrote since, such
        # as the weights of the best epoch, they meant.
        if self._listener.optimizer.use_ema:
            self._show_likely()
        self._listener.remove()
        self.model.make_train_function(force=True)

    def _show_likely(self) -> None:
        for gated in self._gated:
            gated.show_likely()

    def _step(self, apply: Apply, grads: list[Any], variables: list[Any]) -> Any:
        """The optimizer's step on the weights without gates, and one on the gates."""
        places = {id(gated.kernel): gated for gated in self._gated}
        gate_gradients = {}
        new = []
        for gradient, variable in zip(grads, variables, strict=True):
            gated = places.get(id(variable))
            if gated is not None and gradient is not None:
                gradient, of_gate = gated.gradients(tf.convert_to_tensor(gradient), self._strength)
                gate_gradients[id(variable)] = of_gate
                gated.show_plain()
            new.append(gradient)
        result = apply(new, variables)
        learned = [gated for key, gated in places.items() if key in gate_gradients]
        if learned:
            self._gate_optimizer.apply(
                [gate_gradients[id(gated.kernel)] for gated in learned], [gated.log_alpha for gated in learned]
            )
        for gated in learned:
            gated.draw(step_counter(self._listener.optimizer))
        return result


class _GatedKernel:
    """A kernel, its weights without gates, and the gates.

    Args:
        kernel: The Keras variable, which holds weights times gates while the network trains.
        start: Logit of the probability that a gate begins open.
        seed: Seed of its gates.
    """

    def __init__(self, kernel: keras.Variable, start: float, seed: int):
        self.kernel = kernel
        self._start = start
        self._seed = seed
        self._plain = tf.Variable(tf.convert_to_tensor(kernel), trainable=False)
        self._begun = tf.Variable(0.0, trainable=False)
        # The gates that are drawn, before they are stretched; half open is what their logits alone would give.
        self._drawn = tf.Variable(tf.fill(kernel.shape, tf.sigmoid(start)), trainable=False)
        self.log_alpha = keras.Variable(tf.fill(kernel.shape, start), trainable=True, name="log_alpha")

    @property
    def variables(self) -> list[Any]:
        return [self._plain, self._begun, self._drawn, self.log_alpha]

    def begin(self) -> None:
        """Takes the kernel's weights and opens the gates, unless it holds what was shown last: a training goes on."""
        shown = (self._drawn, tf.sigmoid(tf.convert_to_tensor(self.log_alpha)))
        kernel = tf.convert_to_tensor(self.kernel)
        goes_on = any(bool(tf.reduce_all(kernel == self._plain * _stretched(gates))) for gates in shown)
        if not (self._begun.numpy() and goes_on):
            self._plain.assign(kernel)
            self._drawn.assign(tf.fill(self._drawn.shape, tf.sigmoid(self._start)))
            self.log_alpha.assign(tf.fill(self._drawn.shape, self._start))
            self._begun.assign(1.0)

    def show_plain(self) -> None:
        self.kernel.assign(self._plain)

    def show_drawn(self) -> None:
        self.kernel.assign(self._plain * _stretched(self._drawn))

    def show_likely(self) -> None:
        self.kernel.assign(self._plain * _stretched(tf.sigmoid(tf.convert_to_tensor(self.log_alpha))))

    def gradients(self, gradient: tf.Tensor, strength: float) -> tuple[tf.Tensor, tf.Tensor]:
        """The loss's gradients in the weights and in the gates' logits, from that in the weights times the gates."""
        drawn, log_alpha = tf.convert_to_tensor(self._drawn), tf.convert_to_tensor(self.log_alpha)
        gate = _stretched(drawn)
        slope = tf.where((gate > 0) & (gate < 1), (_HIGH - _LOW) * drawn * (1 - drawn) / _TEMPERATURE, 0.0)
        is_open = tf.sigmoid(log_alpha - _TEMPERATURE * math.log(-_LOW / _HIGH))
        of_gate = gradient * self._plain * slope + strength * is_open * (1 - is_open)
        return gradient * gate, of_gate

    def draw(self, step: Any) -> None:
        """Keeps the weights that the optimizer left, and draws new gates for the next step."""
        self._plain.assign(tf.convert_to_tensor(self.kernel))
        step = tf.cast(tf.convert_to_tensor(step), tf.int32)
        uniform = tf.random.stateless_uniform(self.kernel.shape, [self._seed, step], minval=1e-6, maxval=1 - 1e-6)
        noise = tf.math.log(uniform) - tf.math.log(1 - uniform)
        self._drawn.assign(tf.sigmoid((noise + tf.convert_to_tensor(self.log_alpha)) / _TEMPERATURE))
        self.show_drawn()


def _stretched(drawn: Any) -> tf.Tensor:
    return tf.clip_by_value(drawn * (_HIGH - _LOW) + _LOW, 0.0, 1.0)
