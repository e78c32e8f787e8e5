"""`StudentOutputs`: what a student's outputs are, and the logits in them.

Invariant: probabilities are turned into logits once, each output by itself; a graph tells what they are, and where
there is none, the first batch. Left out: the teacher's (`teacher.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfcompress.errors import InvalidArgumentError, ModelError
from tfcompress.graph.outputs import are_probabilities, gives_probabilities
from tfcompress.graph.trace import has_graph, require_functional
from tfcompress.techniques.distill.several_outputs import named_outputs
from tfcompress.techniques.distill.teacher import probabilities_to_logits

_LOSSES_OF_PROBABILITIES = (keras.losses.sparse_categorical_crossentropy, keras.losses.categorical_crossentropy)
_OF_LABELS = (keras.losses.BinaryCrossentropy, keras.losses.BinaryFocalCrossentropy)


class StudentOutputs:
    """The outputs of a student that are compared with its teacher's.

    Args:
        student: The student.
        names: Names of the outputs, where there are several; None of a student with one.

    Raises:
        InvalidArgumentError: If it has no such outputs.
        ModelError: If it has several without names being given.
    """

    def __init__(self, student: keras.Model, names: Sequence[str] | None):
        self._student, self._names = student, names
        self._are_probabilities: dict[str | None, bool] = {}
        if not has_graph(student):
            return
        if names is None:
            if not isinstance(student.output_shape, tuple):
                raise ModelError(
                    f"A student must give one tensor where losses are one list. Received: {student.name!r} with "
                    f"outputs of shapes {student.output_shape}. Give losses=dict(name_of_output=[...]), or distill "
                    "a model with the one output that its teacher has."
                )
            self._are_probabilities[None] = gives_probabilities(student)
            return
        model = require_functional(student)
        found = named_outputs(model, model.output)
        unknown = [name for name in names if name not in found]
        if unknown:
            raise InvalidArgumentError("Distiller.losses", f"a dict with names of outputs, of {list(found)}", unknown)
        for name in names:
            self._are_probabilities[name] = gives_probabilities(keras.Model(model.input, found[name]))

    def find_out(self, inputs: Any) -> None:
        """Looks at the outputs for some inputs, where no graph tells what they are."""
        if not self._are_probabilities:
            outputs = self._by_name(self._student(inputs, training=False))
            self._are_probabilities = {
                name: are_probabilities(keras.ops.convert_to_numpy(values)) for name, values in outputs.items()
            }

    def logits(self, outputs: Any) -> Any:
        """Float32 logits, of several outputs by their names."""
        found = {
            name: probabilities_to_logits(values) if self._are_probabilities.get(name) else tf.cast(values, tf.float32)
            for name, values in self._by_name(outputs).items()
        }
        return found[None] if self._names is None else found

    def labels(self, labels: Any) -> Any:
        """The labels, of several outputs by their names."""
        return labels if self._names is None or labels is None else named_outputs(self._student, labels)

    def classes_of(self, loss: Any) -> int | None:
        """Number of classes if a loss that was compiled is a cross-entropy over them, and that is known.

        Raises:
            InvalidArgumentError: If the loss takes logits and the student gives probabilities, or the other way round.
        """
        loss = keras.losses.get(loss) if isinstance(loss, str) else loss
        # A loss by its name, or as a function, has the default of `from_logits`, which is to take probabilities.
        known = isinstance(loss, keras.losses.Loss) or callable(loss)
        of_probabilities = known and loss in _LOSSES_OF_PROBABILITIES
        from_logits = getattr(loss, "from_logits", False if of_probabilities else None)
        if from_logits is None or self._names is not None or not has_graph(self._student):
            return None
        if from_logits == self._are_probabilities[None]:
            gives = "probabilities" if from_logits else "logits"
            raise InvalidArgumentError(
                "loss", f"a loss with from_logits={not from_logits}, since the student gives {gives}", loss
            )
        return None if isinstance(loss, _OF_LABELS) else self._student.output_shape[-1]

    def check_classes(self, expected: int | None) -> None:
        """Raises an `InvalidArgumentError` if the one output has another number of classes than is expected."""
        received = self._student.output_shape[-1] if self._names is None and has_graph(self._student) else None
        if None not in (expected, received) and expected != received:
            raise InvalidArgumentError("student", f"a model of {expected} classes, as its teacher is", received)

    def _by_name(self, outputs: Any) -> dict[str | None, Any]:
        if self._names is None:
            return {None: outputs}
        named = named_outputs(self._student, outputs)
        return {name: named[name] for name in self._names}
