"""`CollapseWatch`: watching the student's plain loss while a teacher's is learned, and saying so when it gets lost.

Gradients of softened logits are small beside the rounding of a network of 4 bits, and a student that follows its
teacher alone may forget the labels; the sum that is minimized does not show it.

Invariant: it warns once in a training, and changes nothing. Left out: losses that are not finite (`StopOnNaN`).
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import keras

# How much more than its least the plain loss may be: half as much again, and by a tenth of what guessing costs.
_RISE, _LEAST_RISE = 0.5, 0.1
# From this share of what guessing costs, the student does no better than that.
_GUESSING = 0.98


class CollapseWarning(UserWarning):
    """The student's plain loss has risen far, or has not fallen below that of guessing, under its teacher."""


class CollapseWatch(keras.callbacks.Callback):
    """Warns after an epoch in which the plain loss, `hard_loss`, shows that the student forgets or learns nothing.

    Args:
        num_classes: Number of classes where the plain loss is a cross-entropy over them, or None.
    """

    def __init__(self, num_classes: int | None):
        super().__init__()
        self._guess = math.log(num_classes) if num_classes is not None and num_classes > 1 else None
        self._least = math.inf
        self._warned = False

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        loss = (logs or {}).get("hard_loss")
        if loss is None or not math.isfinite(loss) or self._warned:
            return
        least, self._least = self._least, min(self._least, loss)
        rise = _RISE * abs(least) + _LEAST_RISE * (self._guess if self._guess is not None else 0.0)
        if math.isfinite(least) and loss > least + rise:
            what = f"has risen to {loss:.3g} from {least:.3g}"
        elif epoch > 0 and self._guess is not None and loss >= _GUESSING * self._guess:
            what = f"is {loss:.3g} after {epoch + 1} epochs, no better than that of guessing, {self._guess:.3g}"
        else:
            return
        self._warned = True
        warnings.warn(
            f"The student's loss on the labels {what}, while it learns from its teacher. Lower the temperature, the "
            "weight of the teacher, or the learning rate.",
            CollapseWarning,
            stacklevel=2,
        )
