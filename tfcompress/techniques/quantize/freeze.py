"""Freezing for deployment: the last part of quantization-aware training sees exactly the numbers that will be shipped.

Invariant: from the first step of its frozen part on, an activation range or a BatchNormalization layer does not change.
    Left out: the kernels' ranges, which follow the kernels.
"""

from __future__ import annotations

import keras

from tfcompress.errors import InvalidArgumentError, TrainingError
from tfcompress.techniques.quantize.calibrate import fake_quantize_layers


class FreezeRanges(keras.callbacks.Callback):
    """Holds activation ranges and BatchNormalization, statistics and weights, fixed for the last part of training.

    Args:
        model: The quantization-aware model (the student, when it trains inside a `Distiller`).
        after: Share of the training steps before the ranges are frozen, in [0, 1]; 0 freezes from the start, 1 never.
        batch_norm_after: The same for BatchNormalization, which then normalizes with its moving statistics, as the
            exported file does; `None` is `after`. 0 suits a model that was trained to the end before.

    Raises:
        InvalidArgumentError: If a share is out of its range.
        TrainingError: When training begins, if the number of steps in an epoch is unknown.

    Example:
        >>> inputs = keras.Input((4,))
        >>> from tfcompress.layers import FakeQuantize
        >>> model = keras.Model(inputs, FakeQuantize(name="range")(inputs))
        >>> callback = FreezeRanges(model, after=0.8)
    """

    def __init__(self, model: keras.Model, *, after: float = 0.5, batch_norm_after: float | None = None):
        super().__init__()
        batch_norm_after = after if batch_norm_after is None else batch_norm_after
        for name, value in (("after", after), ("batch_norm_after", batch_norm_after)):
            if not 0 <= value <= 1:
                raise InvalidArgumentError(f"FreezeRanges.{name}", "a number in [0, 1]", value)
        norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
        self._parts = [
            (after, [layer for layer in fake_quantize_layers(model) if layer.trainable]),
            (batch_norm_after, [layer for layer in norms if layer.trainable]),
        ]
        self._frozen: list[keras.layers.Layer] = []
        self._epoch_start = 0

    @property
    def settled(self) -> bool:
        """Whether all is frozen that will ever be; earlier epochs are no candidates for the best one."""
        return all(layer in self._frozen for after, layers in self._parts if self._comes(after) for layer in layers)

    def on_train_begin(self, logs=None):
        # An optimizer that is built while layers are frozen would not know them in a later `fit`.
        if not self.model.optimizer.built:
            self.model.optimizer.build(self.model.trainable_variables)

    def on_epoch_begin(self, epoch, logs=None):
        # Only here is it known which epoch a resumed training starts with.
        if self.params.get("steps") is None:
            raise TrainingError("FreezeRanges must know the steps of an epoch. Pass `steps_per_epoch` to `fit`.")
        self._epoch_start = epoch * self.params["steps"]
        self._freeze_what_is_due(self._epoch_start)

    def on_train_batch_end(self, batch, logs=None):
        self._freeze_what_is_due(self._epoch_start + min(batch + 1, self.params["steps"]))

    def on_train_end(self, logs=None):
        if self._frozen:
            self._set_trainable(self._frozen, True)
            self._frozen = []

    def _freeze_what_is_due(self, step: int) -> None:
        total = self.params["epochs"] * self.params["steps"]
        due = [
            layer
            for after, layers in self._parts
            # A freeze after the last step would only cost a compilation.
            if self._comes(after) and after * total <= step
            for layer in layers
            if layer not in self._frozen
        ]
        if due:
            self._frozen += due
            self._set_trainable(due, False)

    def _comes(self, after: float) -> bool:
        """Whether a step is begun in the frozen part: a freeze needs a batch end before the last execution."""
        total = self.params["epochs"] * self.params["steps"]
        return after * total <= total - self.model.steps_per_execution

    def _set_trainable(self, layers: list[keras.layers.Layer], value: bool) -> None:
        for layer in layers:
            layer.trainable = value
        # `trainable` is read when the step is compiled.
        self.model.make_train_function(force=True)
