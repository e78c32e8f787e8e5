"""Networks with several outputs: what each is called, and a teacher that gives each of them as logits.

Keras names an output by its key in a dict, or by the layer that gives it. Teacher and student have outputs of the same
names, each with losses of its own.

Invariant: the teacher runs once for all outputs, and each is looked at by itself, as a `Teacher`'s one is. Left out:
files and stored outputs as teachers, which have no names to go by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from tfcompress.errors import InvalidArgumentError, ModelError
from tfcompress.graph.outputs import gives_sigmoids
from tfcompress.graph.trace import has_graph, require_functional
from tfcompress.techniques.distill.teacher import Teacher


def named_outputs(model: Any, outputs: Any) -> dict[str, Any]:
    """Outputs by their names.

    Args:
        model: The Keras model that gave them, or a callable that gives a dict.
        outputs: What it gave.

    Raises:
        ModelError: If they have no names.
    """
    if isinstance(outputs, Mapping):
        return dict(outputs)
    names = getattr(model, "output_names", None)
    if names is None or not isinstance(outputs, list | tuple) or len(names) != len(outputs):
        raise ModelError(
            "Several outputs must have names: those of a functional model, or the keys of a dict. Received: "
            f"{type(outputs).__name__} of {getattr(model, 'name', model)!r}."
        )
    return dict(zip(names, outputs, strict=True))


class TeacherOfSeveral:
    """A teacher with several outputs.

    Args:
        source: A Keras model, a callable from a batch to a dict of outputs, or a `Teacher` over one of them, without a
            `class_map`.
        names: The outputs that are learned.

    Raises:
        InvalidArgumentError: If it is none of these, or has no such outputs.

    Example:
        >>> teacher = TeacherOfSeveral(lambda x: {"one": x, "two": 2 * x}, ["two"])
        >>> x = keras.ops.array([[1.0, -1.0]])
        >>> teacher.find_out_outputs(x)
        >>> {name: logits.numpy().tolist() for name, logits in teacher.logits(x).items()}
        {'two': [[2.0, -2.0]]}
    """

    needs_labels = False
    num_classes = None
    output_shape = None

    def __init__(self, source: Any, names: Sequence[str]):
        teacher = source if isinstance(source, Teacher) and not hasattr(source, "follow") else None
        source = source if teacher is None else teacher.source
        if not isinstance(source, keras.Model) and not (callable(source) and not hasattr(source, "logits")):
            raise InvalidArgumentError(
                "teacher", "a Keras model, or a callable that gives a dict, where losses are given by output", source
            )
        self._teacher = Teacher(source) if teacher is None else teacher
        if self._teacher.has_class_map:
            raise InvalidArgumentError("Teacher.class_map", "None where losses are given by output", "a class map")
        self.source = source
        self._names = tuple(names)
        self.outputs = {name: Teacher(_passing(name)) for name in names}
        if isinstance(source, keras.Model) and has_graph(source):
            model = require_functional(source)
            for name, output in self._chosen(named_outputs(model, model.output)).items():
                self.outputs[name].gives_sigmoids = gives_sigmoids(keras.Model(model.input, output))

    @property
    def models(self) -> tuple[keras.Model, ...]:
        """The Keras models that it asks."""
        return (self.source,) if isinstance(self.source, keras.Model) else ()

    @property
    def compiles(self) -> bool:
        """Whether the teacher is made of TensorFlow operations that XLA can compile."""
        return self._teacher.compiles

    def in_scope(self) -> TeacherOfSeveral:
        """The teacher to use under the running distribution strategy."""
        return TeacherOfSeveral(self._teacher.in_scope(), self._names)

    def find_out_outputs(self, inputs: Any) -> None:
        """Looks at each output, as `Teacher.find_out_outputs` does.

        Raises:
            ModelError: As that does.
        """
        for name, outputs in self._of(inputs).items():
            self.outputs[name].find_out_outputs(outputs)

    def logits(self, inputs: Any, labels: Any = None) -> dict[str, Any]:
        """Float32 logits by the name of the output, with no gradient; labels are not looked at."""
        return {name: self.outputs[name].logits(outputs) for name, outputs in self._of(inputs).items()}

    def _of(self, inputs: Any) -> dict[str, Any]:
        return self._chosen(named_outputs(self.source, self._teacher.as_given(inputs)))

    def _chosen(self, outputs: dict[str, Any]) -> dict[str, Any]:
        missing = [name for name in self._names if name not in outputs]
        if missing:
            raise InvalidArgumentError("teacher", f"a model with the outputs {missing} too", list(outputs))
        return {name: outputs[name] for name in self._names}


def _passing(name: str) -> Callable[[Any], Any]:
    """A source that gives what it is given, called by the name of an output."""

    def output(values: Any) -> Any:
        return values

    output.__name__ = output.__qualname__ = f"output {name!r}"
    return output
