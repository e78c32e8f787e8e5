"""`Comparison`: all pairs of layers that a training compares, heard in the forward passes that it makes anyway.

Invariant: no forward pass is made for features alone, except a trace for their shapes before the first step. Left out:
stored outputs and `.tflite` files as teachers, which have no layers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfcompress.errors import InvalidArgumentError, ModelError
from tfcompress.graph.trace import has_graph, require_functional
from tfcompress.techniques.distill.features.pairs import Between, Features
from tfcompress.techniques.distill.features.taps import Heard, Tap, Taps
from tfcompress.techniques.distill.outputs import precise


class Comparison:
    """Compares features of a teacher and a student, pair by pair.

    Args:
        pairs: The pairs; there may be none.
        student: The student.
        teacher: The teacher's network, or what there is in its place.

    Raises:
        InvalidArgumentError: If a layer is not there, or the teacher has none.
    """

    def __init__(self, pairs: Sequence[Features], student: keras.Model, teacher: Any):
        self.pairs = tuple(pairs)
        self._between: list[Between] = []
        if not self.pairs:
            return
        self._models = {"teacher": teacher, "student": student}
        self._taps = {"teacher": tap_teacher(self.pairs, teacher), "student": _tap("student", self.pairs, student)}

    def build(self, teacher_inputs: Any, student_inputs: Any) -> None:
        """Makes projectors and whatever else is trained along, unless they are there.

        Args:
            teacher_inputs: `tf.TensorSpec` of what the teacher's network is called with, in its structure.
            student_inputs: Likewise of the student's.
        """
        if self._between or not self.pairs:
            return
        teacher, student = self._shapes("teacher", teacher_inputs), self._shapes("student", student_inputs)
        self._between = [
            Between(
                pair, [teacher[tap] for tap in pair.taps("teacher")], [student[tap] for tap in pair.taps("student")]
            )
            for pair in self.pairs
        ]

    def build_from_graphs(self) -> bool:
        """The same where both networks know their inputs; returns whether they do."""
        if self.pairs and all(has_graph(model) for model in self._models.values()):
            self.build(*(keras.tree.map_structure(_spec, require_functional(m).input) for m in self._models.values()))
        return bool(self._between) or not self.pairs

    @property
    def layers(self) -> list[keras.layers.Layer]:
        """The layers that are trained along."""
        return [layer for between in self._between for layer in between.layers]

    @contextlib.contextmanager
    def listening(self, side: str) -> Iterator[Heard]:
        """While it lasts, what the layers of a side, `"teacher"` or `"student"`, give comes into the dict."""
        if not self.pairs:
            yield {}
            return
        with self._taps[side].listening() as heard:
            yield heard

    def losses(self, of_teacher: Heard, of_student: Heard) -> list[Any]:
        """The loss of each pair, shape `(batch,)`, from what was heard in both forward passes.

        Raises:
            ModelError: If `build` has not been called yet, or a layer has not run once.
        """
        if not self.pairs:
            return []
        if not self._between:
            raise ModelError(
                "The shapes of features must be known before a step, and networks without a graph show them on a batch "
                "only. Call `fit` or `train_on_batch`."
            )
        teacher = self._taps["teacher"].values(of_teacher)
        student = self._taps["student"].values(of_student)
        return [
            between(
                [tf.stop_gradient(precise(teacher[tap])) for tap in pair.taps("teacher")],
                [student[tap] for tap in pair.taps("student")],
            )
            for pair, between in zip(self.pairs, self._between, strict=True)
        ]

    def _shapes(self, side: str, inputs: Any) -> dict[Tap, tuple]:
        """Shapes of features without the batch, found by a trace of the network."""
        model, taps, heard = self._models[side], self._taps[side], {}

        def forward(inputs: Any) -> Any:
            with taps.listening() as in_trace:
                outputs = model(inputs, training=False)
            heard.update(in_trace)
            return outputs

        tf.function(forward, autograph=False).get_concrete_function(inputs)
        return {tap: tuple(value.shape[1:]) for tap, value in taps.values(heard).items()}


def tap_teacher(pairs: Sequence[Features], teacher: Any) -> Taps:
    """What is heard of a teacher.

    Raises:
        InvalidArgumentError: If a layer is not there, or the teacher has none.
    """
    if not isinstance(teacher, keras.Model):
        raise InvalidArgumentError(
            "teacher", "a Keras model where features are compared, since only that has layers", type(teacher)
        )
    return _tap("teacher", pairs, teacher)


def _tap(side: str, pairs: Sequence[Features], model: keras.Model) -> Taps:
    taps = {tap for pair in pairs for tap in pair.taps(side)}
    return Taps(model, sorted(taps), argument=f"Features.{side}_layer")


def _spec(tensor: Any) -> tf.TensorSpec:
    return tf.TensorSpec(tensor.shape, tensor.dtype)
