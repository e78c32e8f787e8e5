"""Tracing: every kind of graph gives the same function when it is replayed, and is left as it was."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import tiny_cnn, tiny_mlp
from keras import layers

from tfcompress.errors import ModelError
from tfcompress.graph.outputs import are_probabilities, ends_in_softmax, gives_probabilities
from tfcompress.graph.trace import replay, require_functional, trace


def nested_shared_and_split():
    inner_input = keras.Input((8, 8, 4))
    shared = layers.Conv2D(4, 1, name="shared")
    inner = keras.Model(inner_input, layers.ReLU(name="inner_relu")(shared(shared(inner_input))), name="inner")
    inputs = keras.Input((8, 8, 3), name="image")
    x = inner(inner(layers.Conv2D(4, 3, padding="same", name="stem")(inputs)))
    left, right = keras.ops.split(x, 2, axis=-1)
    x = layers.Concatenate(name="swap")([right, left]) * 2.0 + 1.0
    return keras.Model(inputs, {"map": x, "flat": layers.Flatten(name="flat")(x)})


def two_inputs():
    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    return keras.Model({"left": left, "right": right}, layers.Subtract()([left, layers.Dense(4)(right)]))


def samples(model):
    rng = np.random.default_rng(0)
    model = require_functional(model)
    tensors = [rng.normal(size=(2, *tensor.shape[1:])).astype("float32") for tensor in model.inputs]
    return keras.tree.pack_sequence_as(model.input, tensors)


@pytest.mark.parametrize("make", [tiny_cnn, tiny_mlp, nested_shared_and_split, two_inputs])
def test_replay_gives_the_same_function(make):
    model = make()
    nodes = [len(layer._inbound_nodes) for layer in model.layers]
    traced = trace(model)
    again = replay(traced, lambda index, call, args, kwargs: call.operation(*args, **kwargs))
    x = samples(model)
    expected, actual = model(x), again(x)
    keras.tree.assert_same_structure(expected, actual)
    for one, two in zip(keras.tree.flatten(expected), keras.tree.flatten(actual), strict=True):
        np.testing.assert_array_equal(two, one)
    assert [layer.name for layer in again.layers if layer.weights] != []
    # Tracing alone adds nothing to the layers; replaying with the same ones does, as calling them would.
    assert [len(layer._inbound_nodes) for layer in make().layers] == nodes


def test_tracing_leaves_layers_alone():
    model = nested_shared_and_split()
    nodes = {layer.name: len(layer._inbound_nodes) for layer in model.layers if isinstance(layer, layers.Conv2D)}
    trace(model)
    assert nodes == {layer.name: len(layer._inbound_nodes) for layer in model.layers if layer.name in nodes}


def test_calls_are_in_order_with_their_consumers():
    traced = trace(nested_shared_and_split())
    names = [call.operation.name for call in traced.calls]
    assert names[:8] == ["image", "stem", "shared", "shared", "inner_relu", "shared", "shared", "inner_relu"]
    assert traced.consumers(0) == (1,)
    assert [ref.position for ref in traced.calls[names.index("swap")].sources] == [1, 0]


def test_subclassed_and_unbuilt_models_are_refused():
    class Subclassed(keras.Model):
        def call(self, inputs):
            return inputs

    with pytest.raises(ModelError, match="must be a functional or Sequential model"):
        trace(Subclassed())
    with pytest.raises(ModelError, match="has no input shape yet"):
        trace(keras.Sequential([layers.Dense(2)]))


def softmax_layer(inputs):
    return layers.Softmax()(layers.Dense(3)(inputs))


def softmax_op(inputs):
    return keras.ops.softmax(layers.Dense(3)(inputs))


def softmax_activation(inputs):
    return layers.Activation("softmax")(layers.Dense(3)(inputs))


def logits(inputs):
    return layers.Dense(3)(inputs)


@pytest.mark.parametrize(
    ("head", "expected"), [(softmax_layer, True), (softmax_op, True), (softmax_activation, True), (logits, False)]
)
@pytest.mark.parametrize("nested", [False, True])
def test_softmax_at_the_end_is_seen(head, expected, nested):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, head(inputs))
    if nested:
        outer = keras.Input((4,))
        model = keras.Model(outer, model(outer))
    assert ends_in_softmax(model) is expected


def test_fake_quantized_softmax_is_seen():
    from tfcompress.techniques.quantize import quantize_aware

    x = np.zeros((4, 8), "float32")
    assert ends_in_softmax(quantize_aware(tiny_mlp(softmax=True), x))
    assert not ends_in_softmax(quantize_aware(tiny_mlp(), x))


@pytest.mark.parametrize(
    ("outputs", "expected"), [([[0.2, 0.8]], True), ([[0.2, 0.9]], False), ([[-0.1, 1.1]], False), ([[0, 1]], True)]
)
def test_probabilities_are_recognised(outputs, expected):
    assert are_probabilities(np.array(outputs)) is expected


@pytest.mark.parametrize("activation", [keras.ops.softmax, tf.nn.softmax, lambda values: keras.ops.softmax(values)])
def test_a_softmax_that_does_not_show_is_found_out(activation):
    inputs = keras.Input((4,))
    assert gives_probabilities(keras.Model(inputs, layers.Dense(3, activation=activation)(inputs)))
    assert not gives_probabilities(keras.Model(inputs, layers.Dense(3, activation="relu")(inputs)))


def test_rounded_probabilities_are_recognised_whatever_they_add_up_to():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(100, 0.1), size=500)
    rounded = np.round(probabilities * 256) / 256
    assert not are_probabilities(rounded) and are_probabilities(rounded, step=1 / 256)


def test_two_layers_of_one_name_are_refused():
    def block(name):
        return keras.Sequential([keras.Input((8,)), layers.Dense(8, name="dense")], name=name)

    inputs = keras.Input((8,))
    model = keras.Model(inputs, block("b")(block("a")(inputs)), name="outer")
    with pytest.raises(ModelError, match="names of their own. Received: two layers 'dense' in model 'outer'"):
        trace(model)


def own_loss(y, outputs):
    return keras.ops.mean(keras.ops.abs(y - outputs), -1)


def test_a_model_that_was_compiled_with_a_loss_of_its_users_own():
    inputs = {"b": keras.Input((2,), name="b"), "a": keras.Input((3,), name="a")}
    outputs = {
        "out": keras.layers.Dense(2, name="out")(keras.layers.Concatenate(name="both")([inputs["a"], inputs["b"]]))
    }
    model = keras.Model(inputs, outputs, name="mine")
    before = trace(model)
    model.compile("sgd", {"out": own_loss})
    after = trace(model)
    assert [call.operation for call in after.calls] == [call.operation for call in before.calls]
    assert (after.name, after.inputs, after.outputs) == (before.name, before.inputs, before.outputs)
    assert model.compiled and model.loss == {"out": own_loss}
