"""Subclassed models as functional ones, and what a model without a graph still can."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfcompress as tfc
from tfcompress.errors import InvalidArgumentError, ModelError
from tfcompress.graph.functional import as_functional
from tfcompress.graph.trace import trace


class Part(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = layers.Conv2D(4, 3, padding="same", name="conv")
        self.norm = layers.BatchNormalization(name="norm")

    def call(self, inputs, training=None):
        return keras.ops.relu(self.norm(self.conv(inputs), training=training))


class Network(keras.Model):
    """Nested subclassed models, dropout with an explicit flag, and a dict of outputs."""

    def __init__(self):
        super().__init__()
        self.parts, self.drop, self.out = [Part(), Part()], layers.Dropout(0.5), layers.Dense(3)

    def call(self, inputs, training=False):
        for part in self.parts:
            inputs = part(inputs, training=training)
        features = keras.ops.mean(inputs, axis=(1, 2))
        return {"scores": self.out(self.drop(features, training=training)), "features": [features, inputs[:, ::2]]}


class Base(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(4)


def test_nested_subclassed_models_are_opened():
    model = Network()
    x = np.random.default_rng(0).normal(size=(5, 8, 8, 3)).astype("float32")
    expected = model(x)
    before = model.get_weights()
    functional = as_functional(model)
    found = functional(x)
    assert keras.tree.map_structure(lambda each: tuple(each.shape), found) == {
        "scores": (5, 3),
        "features": [(5, 4), (5, 4, 8, 4)],
    }
    for one, other in zip(keras.tree.flatten(expected), keras.tree.flatten(found), strict=True):
        assert np.allclose(one, other, atol=1e-6)
    kinds = [type(call.operation).__name__ for call in trace(functional, allow_equal_names=True).calls]
    assert kinds.count("Conv2D") == 2 and kinds.count("Relu") == 2 and "Part" not in kinds
    assert {id(weight) for weight in functional.weights} == {id(weight) for weight in model.weights}
    assert all(np.array_equal(one, other) for one, other in zip(before, model.get_weights(), strict=True))


def test_layers_still_know_whether_they_train():
    functional = as_functional(Network(), (8, 8, 3))
    x = np.ones((64, 8, 8, 3), "float32")
    weights = functional.get_weights()
    trained = functional(x, training=True)
    assert any(not np.array_equal(one, other) for one, other in zip(weights, functional.get_weights(), strict=True))
    assert np.std(np.asarray(trained["scores"]), axis=0).max() > 0, "dropout is off"


def test_several_inputs_in_a_dict():
    class Two(Base):
        def __init__(self):
            super().__init__()
            self.embedding, self.lstm = layers.Embedding(10, 4, mask_zero=True), layers.LSTM(3)

        def call(self, inputs, mask=None):
            text = self.lstm(self.embedding(inputs["ids"]))
            return self.dense(keras.ops.concatenate([text, inputs["numbers"]], axis=-1))

    model = Two()
    functional = as_functional(model, {"ids": keras.Input((5,), dtype="int32"), "numbers": (3,)})
    samples = {"ids": np.array([[1, 2, 0, 0, 0]]), "numbers": np.ones((1, 3), "float32")}
    assert np.allclose(model(samples), functional(samples), atol=1e-6)
    assert functional.input["ids"].dtype == "int32"


class ByValue(Base):
    def call(self, inputs):
        return self.dense(inputs) if float(keras.ops.sum(inputs)) > 0 else -self.dense(inputs)


class Foreign(Base):
    def call(self, inputs):
        return tf.nn.relu(self.dense(inputs))


class OwnWeight(Base):
    def build(self, shape):
        self.scale = self.add_weight(shape=(4,), initializer="ones", name="scale")
        self.dense.build(shape)

    def call(self, inputs):
        return self.dense(inputs) * self.scale


class Tied(Base):
    def call(self, inputs):
        return keras.ops.matmul(self.dense(inputs), keras.ops.transpose(self.dense.kernel))


class Counting(Base):
    calls = 0

    def call(self, inputs):
        self.calls += 1
        return self.dense(inputs) * float(self.calls)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (ByValue, "cannot be run with symbolic inputs"),
        (Foreign, "KerasTensor cannot be used as input to a TensorFlow function. Use Keras layers and `keras.ops`"),
        (OwnWeight, "Weight 'own_weight.*' is used outside of a layer"),
        (Tied, "computes something else than its `call`"),
        (Counting, "computes something else than its `call`"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_graph_says_what_works_without(kind, message):
    with pytest.raises(ModelError, match=message) as caught:
        as_functional(kind(), (4,))
    assert "it can still be distilled (`Distiller`), pruned by magnitude" in str(caught.value)


def test_unused_layers_are_no_hindrance():
    class Unused(Base):
        def build(self, shape):
            self.other = layers.Dense(9)
            self.other.build(shape)
            self.dense.build(shape)

        def call(self, inputs):
            return self.dense(inputs)

    assert as_functional(Unused(), (4,)).output_shape == (None, 4)


def test_a_call_that_branches_on_training_is_told():
    class Branching(Base):
        def call(self, inputs, training=False):
            return keras.ops.relu(self.dense(inputs)) if training else self.dense(inputs)

    with pytest.warns(UserWarning, match="does something else when `training` is true"):
        as_functional(Branching(), (4,))


def test_unknown_shapes():
    with pytest.raises(ModelError, match="has no input shape yet. Call it on a batch of data"):
        as_functional(Network())
    with pytest.raises(InvalidArgumentError, match="`input_shape` must be a shape"):
        as_functional(Network(), "8x8")
    with pytest.raises(InvalidArgumentError, match="`model` must be a Keras model"):
        as_functional(layers.Dense(2))


# What the error says of models without a graph.


class Closed(keras.Model):
    """Its `call` uses TensorFlow functions, so it has no graph."""

    def __init__(self, activation=None):
        super().__init__()
        self.first, self.middle = layers.Dense(8), layers.Dense(8)
        self.last = layers.Dense(3, activation=activation)

    def call(self, inputs):
        return self.last(tf.nn.relu(self.middle(tf.nn.relu(self.first(inputs)))))


def digits():
    x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    return x, np.argmax(x[:, :3], axis=1)


def closed(activation=None):
    model = Closed(activation)
    model(digits()[0])
    return model


@pytest.mark.parametrize("activation", [None, "softmax"])
def test_a_model_without_a_graph_is_distilled_and_teaches(activation):
    x, y = digits()
    student, teacher = closed(activation), closed()
    distiller = tfc.Distiller(student, teacher, losses=[tfc.SoftTargets(weight=1.0, temperature=1.0)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=activation is None)
    distiller.compile(keras.optimizers.Adam(0.02), loss=loss)
    history = distiller.fit(x, y, epochs=30, verbose=0).history["distillation_loss"]
    assert history[-1] < history[0] / 3
    given = np.asarray(student(x) if activation else keras.ops.softmax(student(x)))
    assert np.abs(given - np.asarray(keras.ops.softmax(teacher(x)))).mean() < 0.1


def test_a_model_without_a_graph_is_pruned():
    model = closed()
    pruning = tfc.MagnitudePruning(model, lambda step: (step == 1, 0.5))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(*digits(), verbose=0, callbacks=[pruning])
    assert [float(np.mean(layer.kernel.numpy() == 0)) for layer in model.layers] == [0.0, 0.5, 0.0]


@pytest.mark.parametrize("mode", ["float32", "int8"])
def test_a_model_without_a_graph_is_exported(mode, tmp_path):
    inputs = keras.Input((4,))
    result = tfc.export_tflite(
        keras.Model(inputs, closed()(inputs)), tmp_path / "m.tflite", mode=mode, calibration=digits()[0]
    )
    assert result.parity.passed and result.parity.samples == 64
    assert (result.audit.float_ops == ()) == (mode == "int8")
