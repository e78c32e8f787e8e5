"""Freezing for deployment: the last part of quantization-aware training sees exactly the numbers that will be shipped.

Invariant: from the first step of the frozen part on, activation ranges and BatchNormalization statistics do not change.
Left out: the kernels' ranges, which follow the kernels.
"""

from __future__ import annotations

import math

import keras

from tfcompress.errors import InvalidArgumentError, TrainingError
from tfcompress.layers import FakeQuantize


class FreezeRanges(keras.callbacks.Callback):
    """Holds activation ranges and BatchNormalization statistics fixed for the last part of training.

    Args:
        model: The quantization-aware model (the student, when it trains inside a `Distiller`).
        after: Share of the training steps before the freeze, in [0, 1]; 0 freezes from the start, 1 never.
        batch_norm: Whether BatchNormalization is frozen with the ranges; it then normalizes with its moving statistics,
            as the exported file does.

    Raises:
        InvalidArgumentError: If `after` is out of its range.

    Example:
        >>> inputs = keras.Input((4,))
        >>> model = keras.Model(inputs, FakeQuantize(name="range")(inputs))
        >>> callback = FreezeRanges(model, after=0.8)
    """

    def __init__(self, model: keras.Model, *, after: float = 0.8, batch_norm: bool = True):
        super().__init__()
        if not 0 <= after <= 1:
            raise InvalidArgumentError("FreezeRanges.after", "a number in [0, 1]", after)
        kinds = (FakeQuantize, keras.layers.BatchNormalization) if batch_norm else FakeQuantize
        self._layers = [layer for layer in model.layers if isinstance(layer, kinds) and layer.trainable]
        self._after = after
        self._freeze_at = math.inf
        self._epoch_start = 0
        self._frozen = False

    @property
    def settled(self) -> bool:
        """Whether what is to be frozen is; earlier epochs are no candidates for the best one."""
        return self._frozen or self._after == 1

    def on_train_begin(self, logs=None):
        self._frozen = False
        self._freeze_at = math.inf

    def on_epoch_begin(self, epoch, logs=None):
        # Only here is it known which epoch a resumed training starts with.
        if math.isinf(self._freeze_at):
            if self.params.get("steps") is None:
                raise TrainingError("FreezeRanges must know the steps of an epoch. Pass `steps_per_epoch` to `fit`.")
            self._freeze_at = self._after * self.params["epochs"] * self.params["steps"]
        self._epoch_start = epoch * self.params["steps"]
        self._freeze_when_due(self._epoch_start)

    def on_train_batch_end(self, batch, logs=None):
        self._freeze_when_due(self._epoch_start + batch + 1)

    def on_train_end(self, logs=None):
        if self._frozen:
            self._set_trainable(True)

    def _freeze_when_due(self, step: int) -> None:
        # A freeze after the last step would only cost a compilation.
        if not self._frozen and self._freeze_at <= step < self.params["epochs"] * self.params["steps"]:
            self._frozen = True
            self._set_trainable(False)

    def _set_trainable(self, value: bool) -> None:
        for layer in self._layers:
            layer.trainable = value
        # `trainable` is read when the step is compiled.
        self.model.make_train_function(force=True)
