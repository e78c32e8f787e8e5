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
from tfcompress.graph.outputs import (
    are_probabilities,
    ends_without_activation,
    gives_sigmoids,
    known_probabilities,
    look_like_sigmoids,
)
from tfcompress.graph.trace import has_graph, require_functional
from tfcompress.techniques.distill.several_outputs import named_outputs
from tfcompress.techniques.distill.teacher import probabilities_to_logits

_FUNCTIONS_OF_LABELS = (keras.losses.binary_crossentropy, keras.losses.binary_focal_crossentropy)
_FUNCTIONS_OF_PROBABILITIES = (
    keras.losses.sparse_categorical_crossentropy,
    keras.losses.categorical_crossentropy,
    *_FUNCTIONS_OF_LABELS,
)
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
        self._are_sigmoids: dict[str | None, bool] = {}
        self._look_like_sigmoids: dict[str | None, bool] = {}
        self._own_from_logits: bool | None = None
        if not has_graph(student):
            return
        if names is None:
            if not isinstance(student.output_shape, tuple):
                raise ModelError(
                    f"A student must give one tensor where losses are one list. Received: {student.name!r} with "
                    f"outputs of shapes {student.output_shape}. Give losses=dict(name_of_output=[...]), or distill "
                    "a model with the one output that its teacher has."
                )
            self._note(None, student)
            return
        model = require_functional(student)
        found = named_outputs(model, model.output)
        unknown = [name for name in names if name not in found]
        if unknown:
            raise InvalidArgumentError("Distiller.losses", f"a dict with names of outputs, of {list(found)}", unknown)
        for name in names:
            self._note(name, keras.Model(model.input, found[name]))

    def find_out(self, inputs: Any) -> None:
        """Looks at the outputs for some inputs, where no graph tells what they are."""
        names: Sequence[str | None] = [None] if self._names is None else self._names
        if set(names) <= set(self._are_probabilities):
            return
        for name, outputs in self._by_name(self._student(inputs, training=False)).items():
            if name not in self._are_probabilities:
                values = keras.ops.convert_to_numpy(outputs)
                self._are_probabilities[name] = are_probabilities(values)
                self._look_like_sigmoids[name] = not self._are_probabilities[name] and look_like_sigmoids(values)

    def gives_distributions(self, name: str | None) -> bool | None:
        """Whether an output is probabilities of classes, which become their logarithms; None if not known yet."""
        return self._are_probabilities.get(name)

    def gives_sigmoids(self, name: str | None) -> bool | None:
        """Whether an output is sigmoids; None if that is not known.

        Without a graph, outputs between 0 and 1 may be the logits of an untrained student. They are sigmoids if its own
        loss says so, too.
        """
        known = self._are_sigmoids.get(name)
        if known is None and self._own_from_logits is False:
            known = self._look_like_sigmoids.get(name)
        return known

    def logits(self, outputs: Any) -> Any:
        """Float32 logits, of several outputs by their names.

        Raises:
            ModelError: If it is not known yet what they are.
        """
        named = self._by_name(outputs)
        unknown = [name for name in named if name not in self._are_probabilities]
        if unknown:
            raise ModelError(
                f"Whether {self._student.name!r} gives logits or probabilities shows on a batch only. Call `fit` or "
                "`train_on_batch` of what trains it."
            )
        found = {
            name: probabilities_to_logits(values) if self._are_probabilities[name] else tf.cast(values, tf.float32)
            for name, values in named.items()
        }
        return found[None] if self._names is None else found

    def labels(self, labels: Any) -> Any:
        """The labels, of several outputs by their names."""
        return labels if self._names is None or labels is None else named_outputs(self._student, labels)

    def classes_of(self, loss: Any) -> int | None:
        """Number of classes if a loss that was compiled is a cross-entropy over them, and that is known by now.

        Raises:
            InvalidArgumentError: If the loss takes logits and the student gives probabilities, or the other way round.
        """
        loss = keras.losses.get(loss) if isinstance(loss, str) else loss
        # A loss by its name, or as a function, has the default of `from_logits`, which is to take probabilities.
        known = isinstance(loss, keras.losses.Loss) or callable(loss)
        of_probabilities = known and loss in _FUNCTIONS_OF_PROBABILITIES
        from_logits = getattr(loss, "from_logits", False if of_probabilities else None)
        self._own_from_logits = from_logits
        if from_logits is None or None not in self._are_probabilities or not has_graph(self._student):
            return None
        of_labels = isinstance(loss, _OF_LABELS) or loss in _FUNCTIONS_OF_LABELS
        gives = self._gives_otherwise(from_logits, of_labels)
        if gives is not None:
            raise InvalidArgumentError(
                "loss", f"a loss with from_logits={not from_logits}, since the student gives {gives}", loss
            )
        return None if of_labels else self._student.output_shape[-1]

    def _gives_otherwise(self, from_logits: bool, of_labels: bool) -> str | None:
        """What a student with a graph gives, where that is not what a loss of classes or of labels takes."""
        if from_logits:
            sigmoids = of_labels and self._are_sigmoids.get(None)
            return "sigmoids" if sigmoids else "probabilities" if self._are_probabilities[None] else None
        if not of_labels:
            return None if self._are_probabilities[None] else "logits"
        # Between 0 and 1 are the outputs of other functions, too.
        known = self._are_sigmoids.get(None) is False
        return "logits" if known and ends_without_activation(self._student) else None

    def check_classes(self, expected: int | None) -> None:
        """Raises an `InvalidArgumentError` if the one output has another number of classes than is expected."""
        received = self._student.output_shape[-1] if self._names is None and has_graph(self._student) else None
        if None not in (expected, received) and expected != received:
            raise InvalidArgumentError("student", f"a model of {expected} classes, as its teacher is", received)

    def _note(self, name: str | None, model: keras.Model) -> None:
        known = known_probabilities(model)
        if known is not None:
            self._are_probabilities[name] = known
        sigmoids = gives_sigmoids(model)
        if sigmoids is not None:
            self._are_sigmoids[name] = sigmoids

    def _by_name(self, outputs: Any) -> dict[str | None, Any]:
        if self._names is None:
            return {None: outputs}
        named = named_outputs(self._student, outputs)
        return {name: named[name] for name in self._names}
