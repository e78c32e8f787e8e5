"""The bridge: what crosses computes and trains the same, and what cannot cross is named."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from helpers import tiny_cnn, tiny_mlp
from keras import layers

from tfcompress.bridge.from_tf_keras import from_tf_keras
from tfcompress.bridge.legacy_trace import trace_tf_keras
from tfcompress.bridge.to_tf_keras import to_tf_keras
from tfcompress.bridge.weights import copy_weights_back
from tfcompress.errors import InvalidArgumentError, ModelError
from tfcompress.graph.flatten import flatten
from tfcompress.graph.random_inputs import random_inputs
from tfcompress.graph.trace import require_functional, trace

SAME = 1e-5


def chain(shape, *steps, dtype="float32"):
    tensor = inputs = keras.Input(shape, dtype=dtype)
    for step in steps:
        tensor = step(tensor)
    return keras.Model(inputs, tensor)


def images():
    return chain(
        (16, 16, 4),
        layers.Conv2D(8, 3, groups=2, dilation_rate=2, kernel_regularizer="l2", kernel_constraint="max_norm"),
        layers.SeparableConv2D(8, 3, padding="same", depthwise_regularizer=keras.regularizers.L1(0.1)),
        layers.BatchNormalization(momentum=0.7),
        layers.Conv2DTranspose(4, 3, strides=2),
        layers.PReLU(shared_axes=[1, 2]),
        layers.LeakyReLU(0.1),
        layers.GroupNormalization(2),
        layers.UpSampling2D(),
        layers.ZeroPadding2D(),
        layers.Cropping2D(),
        layers.AveragePooling2D(2),
        layers.SpatialDropout2D(0.2),
        layers.Flatten(),
        layers.Dense(3, activation=layers.LeakyReLU(0.2)),
    )


def signals():
    return chain(
        (16, 4),
        layers.Conv1D(8, 3, padding="causal", dilation_rate=2, activation="hard_silu"),
        layers.SeparableConv1D(4, 3, activation="hard_sigmoid"),
        layers.Conv1DTranspose(3, 3, activation="relu6"),
        layers.BatchNormalization(),
        layers.GlobalMaxPooling1D(),
        layers.RepeatVector(2),
    )


def attention():
    inputs = keras.Input((6, 8))
    x = layers.MultiHeadAttention(2, 4, dropout=0.1)(inputs, inputs)
    x = layers.LayerNormalization()(x + inputs)
    x = layers.EinsumDense("abc,cd->abd", output_shape=(None, 4), bias_axes="d", activation="gelu")(x)
    return keras.Model(inputs, layers.GlobalAveragePooling1D()(layers.Attention(use_scale=True)([x, x])))


def recurrent():
    """A mask from the embedding, a wrapper, states that are passed on, cells."""
    words = keras.Input((6,), dtype="int32")
    x = layers.Embedding(10, 8, mask_zero=True)(words)
    x = layers.Bidirectional(layers.LSTM(4, return_sequences=True, recurrent_activation="hard_sigmoid"))(x)
    x, *states = layers.LSTM(4, return_sequences=True, return_state=True)(keras.ops.tanh(x))
    x = layers.LSTM(4, return_sequences=True)(x, initial_state=states)
    x = layers.RNN([layers.GRUCell(3, reset_after=False), layers.SimpleRNNCell(2)], return_sequences=True)(x)
    return keras.Model(words, [layers.TimeDistributed(layers.Dense(2))(x), states[0]])


def operations():
    inputs = keras.Input((4, 6))
    doubled = inputs[:, 1:, ::-1] * 2.0 - 3.0
    parts = [keras.ops.mean(doubled, axis=1, keepdims=True), keras.ops.expand_dims(inputs[:, 0], 1)]
    x = keras.ops.concatenate([*parts, keras.ops.max(keras.ops.relu(inputs) ** 2, axis=1, keepdims=True)], axis=1)
    padded = keras.ops.pad(keras.ops.einsum("abc->acb", x), ((0, 0), (0, 0), (0, 3)))
    return keras.Model(inputs, {"all": padded / 2.0, "first": x[:, 0]})


def preprocessing():
    normalization = layers.Normalization()
    normalization.adapt(np.random.default_rng(0).normal(3.0, 2.0, size=(20, 3)).astype("float32"))
    steps = [layers.Rescaling(1 / 255.0, offset=-1), layers.RandomFlip(), layers.RandomRotation(0.1)]
    return chain((8, 8, 3), *steps, layers.CenterCrop(6, 6), layers.Resizing(8, 8), normalization)


def words():
    vocabulary = layers.TextVectorization(output_sequence_length=4)
    vocabulary.adapt(["one two", "two four"])
    return chain((1,), vocabulary, layers.Embedding(6, 3), dtype="string")


def two_inputs_of_nested_models():
    """One inner model used twice, with layers of the same names as those outside."""
    inner_input = keras.Input((4,), name="inner_input")
    inner = keras.Model(inner_input, layers.Dense(4, activation="tanh", name="dense")(inner_input), name="inner")
    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    x = layers.Multiply(name="product")([inner(left), inner(layers.Dense(4, name="dense")(right))])
    return keras.Model({"left": left, "right": right}, layers.Dense(2, name="dense_1")(x), name="pair")


MODELS = {
    make.__name__: make
    for make in (
        tiny_cnn,
        tiny_mlp,
        images,
        signals,
        attention,
        recurrent,
        operations,
        preprocessing,
        words,
        two_inputs_of_nested_models,
    )
}


def sample(model):
    arrays = [tf.convert_to_tensor(array) for array in random_inputs(trace(model, allow_equal_names=True), 3)]
    return keras.tree.pack_sequence_as(require_functional(model).input, arrays)


def predict(model, inputs):
    return [np.asarray(output) for output in keras.tree.flatten(model(inputs, training=False))]


def assert_same(first, second):
    for one, other in zip(first, second, strict=True):
        if one.size:
            assert np.abs(one - other).max() <= SAME * np.abs(one).max()


@pytest.fixture(params=MODELS, scope="module")
def crossed(request):
    keras.utils.set_random_seed(3)
    model = MODELS[request.param]()
    before = [np.array(value) for value in model.get_weights()]
    legacy = to_tf_keras(model)
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)
    return model, legacy, from_tf_keras(legacy)


def test_both_ways_compute_the_same(crossed):
    model, legacy, back = crossed
    inputs = sample(model)
    expected = predict(model, inputs)
    assert_same(expected, predict(legacy, inputs))
    assert_same(expected, predict(back, inputs))
    assert isinstance(back, keras.Model) and isinstance(legacy, tf_keras.Model)


def test_structure_survives(crossed):
    model, legacy, back = crossed
    assert back.count_params() == legacy.count_params() == model.count_params()
    graph = require_functional(model)
    keras.tree.assert_same_structure(graph.input, back.input)
    keras.tree.assert_same_structure(graph.output, back.output)
    flat = flatten(model)
    for layer in flat.layers:
        twin = back.get_layer(layer.name)
        assert type(twin) is type(layer)
        assert twin.trainable == layer.trainable


def test_a_training_step_is_the_same():
    """Plain gradient descent by each Keras's own `fit`, an independent check of what the bridge promises."""
    model = tiny_cnn()
    legacy = to_tf_keras(model)
    x, y = np.random.default_rng(1).uniform(size=(16, 8, 8, 1)).astype("float32"), np.arange(16) % 4
    for one, kit in ((model, keras), (legacy, tf_keras)):
        loss = kit.losses.SparseCategoricalCrossentropy(from_logits=True)
        one.compile(kit.optimizers.SGD(0.1), loss=loss)
        one.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    for layer in model.layers:
        for one, other in zip(layer.weights, legacy.get_layer(layer.name).weights, strict=True):
            np.testing.assert_allclose(other.numpy(), one.numpy(), rtol=1e-4, atol=1e-6)
    moved = model.get_layer("stem_bn").moving_variance.numpy()
    assert np.abs(moved - 1).max() > 0.1


def test_trained_weights_come_back_into_the_same_structure():
    model = two_inputs_of_nested_models()
    legacy = to_tf_keras(model)
    for layer in legacy.layers:
        layer.set_weights([weight + 1 for weight in layer.get_weights()])
    back = copy_weights_back(legacy, model)
    assert [type(layer) for layer in back.layers] == [type(layer) for layer in model.layers]
    for one, other in zip(model.get_weights(), back.get_weights(), strict=True):
        np.testing.assert_array_equal(other, one + 1)
    assert_same(predict(legacy, sample(model)), predict(back, sample(model)))


def test_weights_of_another_model_do_not_come_back():
    other = tf_keras.Sequential([tf_keras.Input((8,)), tf_keras.layers.Dense(16, name="first")])
    with pytest.raises(ModelError, match="no layer 'second'"):
        copy_weights_back(other, tiny_mlp())


def test_settings_survive():
    model = images()
    model.layers[1].trainable = False
    legacy = to_tf_keras(model)
    conv = legacy.layers[1]
    assert isinstance(conv.kernel_regularizer, tf_keras.regularizers.L2)
    assert isinstance(conv.kernel_constraint, tf_keras.constraints.MaxNorm)
    assert not conv.trainable and legacy.layers[2].trainable
    back = from_tf_keras(legacy).layers[1]
    assert isinstance(back.kernel_regularizer, keras.regularizers.L2) and not back.trainable


def test_a_saved_operation_is_read_back(tmp_path):
    legacy = to_tf_keras(operations())
    legacy.save(tmp_path / "model.keras")
    again = tf_keras.models.load_model(tmp_path / "model.keras")
    inputs = tf.random.uniform((2, 4, 6))
    assert_same(predict(legacy, inputs), predict(again, inputs))


def legacy_functions():
    """What TensorFlow's own functions and operators become in a tf_keras graph."""
    inputs = tf_keras.Input((4, 6), name="scope/in")
    x = tf.nn.relu(1.0 - inputs[:, ::2]) / tf.reduce_sum(tf.abs(inputs), axis=[1, 2], keepdims=True)
    x = tf.concat([x, tf.reshape(tf.transpose(x, [0, 2, 1]), (-1, 2, 6))], axis=1)
    left, right = tf.split(tf.pad(x, [[0, 0], [0, 0], [1, 1]]), [3, 5], axis=-1)
    x = tf.matmul(left, right, transpose_a=True) ** 2 + tf.cast(tf.reduce_max(left) > 0.5, tf.float32)
    x = tf_keras.layers.Dense(4, activation="hard_sigmoid", name="block/dense")(tf.nn.softmax(x))
    return tf_keras.Model(inputs, tf.math.l2_normalize(tf.squeeze(tf.stack([x, x], axis=-1)[..., 0]), axis=-1))


def test_functions_of_tensorflow_become_operations():
    legacy = legacy_functions()
    calls = trace_tf_keras(legacy).calls
    assert all(ref.call < index for index, call in enumerate(calls) for ref in call.sources)
    model = from_tf_keras(legacy)
    inputs = tf.random.uniform((3, 4, 6))
    assert_same(predict(legacy, inputs), predict(model, inputs))
    assert {"scope_in", "block_dense"} <= {layer.name for layer in model.layers}
    assert not any(isinstance(layer, layers.Lambda) for layer in model.layers)


def test_hard_sigmoid_keeps_its_slope(tmp_path):
    legacy = tf_keras.Sequential([tf_keras.Input((1,)), tf_keras.layers.Activation("hard_sigmoid")])
    model = from_tf_keras(legacy)
    # 0.2 x + 0.5 there; Keras 3's own has x / 6 + 0.5.
    np.testing.assert_allclose(np.asarray(model(np.array([[1.0]]))), [[0.7]], rtol=1e-6)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(np.asarray(again(np.array([[1.0]]))), [[0.7]], rtol=1e-6)
    assert to_tf_keras(model).layers[-1].activation is tf_keras.activations.hard_sigmoid


def test_nested_legacy_models_in_inference_mode():
    """The way transfer learning is taught: a frozen base that is called with `training=False`."""
    base = tf_keras.Sequential(
        [tf_keras.Input((8,)), tf_keras.layers.BatchNormalization(), tf_keras.layers.Dropout(0.5)]
    )
    base.trainable = False
    inputs = tf_keras.Input((8,))
    legacy = tf_keras.Model(inputs, tf_keras.layers.Dense(2)(base(inputs, training=False)))
    model = from_tf_keras(legacy)
    x = tf.random.uniform((4, 8))
    np.testing.assert_allclose(model(x, training=True), legacy(x, training=True), rtol=1e-5)
    base.trainable = True
    with pytest.raises(ModelError, match="training=False"):
        from_tf_keras(legacy)


@keras.saving.register_keras_serializable("tests")
class Scale(layers.Layer):
    """A layer of a user's own."""

    def __init__(self, factor=2.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def build(self, shape):
        self.gain = self.add_weight(shape=(shape[-1],), initializer="random_uniform", name="gain")

    def call(self, x):
        return x * self.gain * self.factor

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


class LegacyScale(tf_keras.layers.Layer):
    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def build(self, shape):
        self.gain = self.add_weight(shape=(shape[-1],), name="gain")

    def call(self, x):
        return x * self.gain * self.factor


def test_layers_of_ones_own_cross_by_a_mapping():
    model = chain((4,), layers.Dense(3), Scale(3.0, name="mine"))
    legacy = to_tf_keras(model, layers={Scale: lambda layer: LegacyScale(layer.factor, name=layer.name)})
    back = from_tf_keras(legacy, layers={LegacyScale: lambda layer: Scale(layer.factor, name=layer.name)})
    assert isinstance(back.get_layer("mine"), Scale)
    assert_same(predict(model, sample(model)), predict(back, sample(model)))


def test_a_wrong_twin_is_named():
    model = chain((4,), layers.Dense(3), Scale(3.0, name="mine"), layers.Dense(2))
    with pytest.raises(ModelError, match="Layer 'mine' .Scale. does not compute the same.*outputs of a training step"):
        to_tf_keras(model, layers={Scale: lambda layer: LegacyScale(3.1, name=layer.name)})


def test_a_twin_that_only_trains_otherwise_is_named():
    class StopsGradients(LegacyScale):
        def call(self, x):
            return tf.stop_gradient(super().call(x))

    model = chain((4,), layers.Dense(3), Scale(3.0, name="mine"))
    with pytest.raises(ModelError, match="'mine'.*gradient"):
        to_tf_keras(model, layers={Scale: lambda layer: StopsGradients(3.0, name=layer.name)})


class Subclassed(keras.Model):
    def call(self, x):
        return x


def broken_model(kind):
    inputs = tf_keras.Input((4,))
    if kind == "loss":
        model = tf_keras.Model(inputs, tf_keras.layers.Dense(2)(inputs))
        model.add_loss(tf.reduce_mean(model.output))
        return model
    if kind == "always":
        return tf_keras.Model(inputs, tf_keras.layers.Dropout(0.5, name="drop")(inputs, training=True))
    if kind == "function":
        return tf_keras.Model(inputs, tf.linalg.band_part(tf.expand_dims(inputs, -1), 1, 1))
    if kind == "unbuilt":
        return tf_keras.Sequential([tf_keras.layers.Dense(2)])
    return Subclassed()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("loss", "add_loss"),
        ("always", "'drop' is called with training=True"),
        ("function", "tf.linalg.band_part"),
        ("unbuilt", "has no graph"),
        ("keras", "takes a tf_keras model"),
    ],
)
def test_what_cannot_come_over_is_named(kind, message):
    with pytest.raises(ModelError, match=message):
        from_tf_keras(broken_model(kind))


def masked_with_states():
    """Keras 3 forgets a mask beside initial states, and tf_keras does not."""
    numbers = keras.Input((6,), dtype="int32")
    x = layers.Embedding(5000, 8, mask_zero=True)(numbers)
    x, *states = layers.LSTM(4, return_sequences=True, return_state=True, name="first")(x)
    return keras.Model(numbers, layers.LSTM(4, name="second")(x, initial_state=states))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: chain((4,), layers.RMSNormalization(name="rms")), "'rms'.*tf_keras has no layer RMSNormalization"),
        (lambda: chain((4,), Scale(name="mine")), "'mine' is a Scale of your own.*layers="),
        (lambda: chain((8, 8, 1), layers.Resizing(4, 4, antialias=True)), "no argument 'antialias'"),
        (masked_with_states, "'second'.*outputs in inference"),
        (lambda: Subclassed(), "must be a functional or Sequential"),
        (lambda: tf_keras.Sequential(), "takes a Keras 3 model"),
    ],
)
def test_what_cannot_go_over_is_named(make, message):
    with pytest.raises(ModelError, match=message):
        to_tf_keras(make())


def test_operations_forget_masks_there_too():
    numbers = keras.Input((6,), dtype="int32")
    embedded = [layers.Embedding(5000, 8, mask_zero=True)(numbers) for _ in range(2)]
    model = keras.Model(numbers, layers.LSTM(4)(embedded[0] + embedded[1]))
    padded = np.array([[1, 2, 3, 0, 0, 0], [1, 2, 3, 4, 5, 6]])
    assert_same(predict(model, padded), predict(to_tf_keras(model), padded))


def test_masks_of_layers_cross():
    model = chain((6, 3), layers.Masking(0.5), layers.LSTM(4, return_sequences=True), layers.GRU(2))
    x = np.random.default_rng(0).normal(size=(2, 6, 3)).astype("float32")
    x[0, 3:] = 0.5
    legacy = to_tf_keras(model)
    assert_same(predict(model, x), predict(legacy, x))
    assert_same(predict(model, x), predict(from_tf_keras(legacy), x))
    unmasked = np.where(x == 0.5, 0.4, x).astype("float32")
    assert np.abs(predict(model, x)[0] - predict(model, unmasked)[0]).max() > 1e-3


def test_parts_of_a_layer_that_are_frozen():
    bidirectional = layers.Bidirectional(layers.LSTM(3), name="both")
    model = chain((4, 2), bidirectional)
    bidirectional.forward_layer.trainable = False
    legacy = to_tf_keras(model)
    assert len(legacy.trainable_weights) == len(model.trainable_weights) == 3
    assert_same(predict(model, sample(model)), predict(from_tf_keras(legacy), sample(model)))
    legacy.layers[-1].backward_layer.trainable = False
    legacy.layers[-1].forward_layer.trainable = True
    assert_same(predict(model, sample(model)), predict(copy_weights_back(legacy, model), sample(model)))


def test_a_frozen_part_that_would_thaw_is_named():
    attention = layers.MultiHeadAttention(2, 4, name="attention")
    inputs = keras.Input((5, 4))
    model = keras.Model(inputs, attention(inputs, inputs))
    attention._query_dense.trainable = False
    with pytest.raises(ModelError, match="'attention' trains other weights"):
        to_tf_keras(model)


class TwoKernels(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = layers.Dense(3, use_bias=False), layers.Dense(3, use_bias=False)

    def build(self, shape):
        self.first.build(shape)
        self.second.build(shape)

    def call(self, x):
        return self.first(x) + self.second(x)


class LegacyTwoKernels(tf_keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = (tf_keras.layers.Dense(3, use_bias=False) for _ in range(2))

    def build(self, shape):
        self.first.build(shape)
        self.second.build(shape)

    def call(self, x):
        return tf.matmul(x, tf.stop_gradient(self.first.kernel)) + self.second(x)


def test_one_wrong_gradient_among_several_kernels_is_found():
    twin = {TwoKernels: lambda layer: LegacyTwoKernels(name=layer.name)}
    with pytest.raises(ModelError, match="'two'.*the gradient of 'kernel .0: "):
        to_tf_keras(chain((4,), TwoKernels(name="two")), layers=twin)


class Shifted(layers.Layer):
    """A softmax that its weight cannot change: the gradient of that is zero but for rounding."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")
        self.shift = self.add_weight(shape=(), initializer="ones", name="shift")

    def call(self, x):
        return keras.ops.softmax(x * self.scale + self.shift)


class LegacyShifted(tf_keras.layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), name="scale")
        self.shift = self.add_weight(shape=(), name="shift")

    def call(self, x):
        powers = tf.exp(x * self.scale + self.shift)
        return powers / tf.reduce_sum(powers, axis=-1, keepdims=True)


def test_a_gradient_of_rounding_alone_is_no_difference():
    legacy = to_tf_keras(chain((50,), Shifted()), layers={Shifted: lambda layer: LegacyShifted(name=layer.name)})
    assert [weight.shape.rank for weight in legacy.weights] == [1, 0]


def test_a_twin_that_is_wrong_below_zero_is_found():
    leaky = {layers.LeakyReLU: lambda layer: tf_keras.layers.LeakyReLU(0.01, name=layer.name)}
    with pytest.raises(ModelError, match="'leaky'"):
        to_tf_keras(chain((4,), layers.LeakyReLU(0.3, name="leaky")), layers=leaky)


def adapted_and_nested():
    normalization = layers.Normalization()
    normalization.adapt(np.random.default_rng(0).normal(3.0, 2.0, size=(20, 3)).astype("float32"))
    inner = keras.Sequential([keras.Input((3,)), normalization, layers.Dense(3, name="dense")])
    return chain((3,), inner, layers.Dense(3, name="dense"))


def test_what_layers_learned_from_data_survives():
    model = adapted_and_nested()
    x = np.random.default_rng(1).normal(3.0, 2.0, size=(4, 3)).astype("float32")
    assert_same(predict(model, x), predict(flatten(model), x))
    assert_same(predict(model, x), predict(copy_weights_back(to_tf_keras(model), model), x))
    lookup = layers.StringLookup()
    lookup.adapt(["two", "four", "two"])
    texts = chain((1,), lookup, layers.Embedding(4, 2), dtype="string")
    back = copy_weights_back(to_tf_keras(texts), texts)
    assert_same(predict(texts, tf.constant([["two"], ["six"]])), predict(back, tf.constant([["two"], ["six"]])))


def test_a_nested_model_gets_the_inputs_that_are_named():
    last, first = keras.Input((3,), name="z"), keras.Input((3,), name="a")
    inner = keras.Model([last, first], last - first * 2.0)
    left, right = keras.Input((3,)), keras.Input((3,))
    model = keras.Model([left, right], inner({"z": left, "a": right}))
    x = [np.ones((1, 3), "float32"), np.full((1, 3), 5.0, "float32")]
    np.testing.assert_allclose(np.asarray(model(x)), -9.0)
    for other in (flatten(model), to_tf_keras(model)):
        np.testing.assert_allclose(np.asarray(other(x)), -9.0)


def test_states_stay_as_they_are():
    inputs = keras.Input(batch_shape=(2, 4, 3))
    layer = layers.LSTM(3, stateful=True)
    model = keras.Model(inputs, layer(inputs))
    model(np.ones((2, 4, 3), "float32"))
    before = [np.array(state) for state in layer.states]
    assert np.abs(before[0]).max() > 0
    legacy = to_tf_keras(model)
    for now, then in zip(layer.states, before, strict=True):
        np.testing.assert_array_equal(np.array(now), then)
    layer.reset_state()
    x = np.ones((2, 4, 3), "float32")
    assert_same([np.array(model(x)), np.array(model(x))], [np.array(legacy(x)), np.array(legacy(x))])


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_other_precisions(dtype):
    steps = [layers.Conv2D(4, 3, dtype=dtype), layers.BatchNormalization(dtype=dtype), layers.ReLU(dtype=dtype)]
    inputs = keras.Input((8, 8, 2), dtype="float64" if dtype == "float64" else "float32")
    x = inputs
    for step in steps:
        x = step(x)
    model = keras.Model(inputs, layers.Flatten(dtype=dtype)(x * 2.0 + x))
    legacy = to_tf_keras(model)
    assert legacy.outputs[0].dtype == model.outputs[0].dtype
    assert from_tf_keras(legacy).outputs[0].dtype == model.outputs[0].dtype


def test_a_network_that_halves_an_open_size_often():
    steps = [layers.Conv2D(2, 3, strides=2) for _ in range(5)]
    model = chain((None, None, 3), *steps, layers.GlobalAveragePooling2D())
    assert from_tf_keras(to_tf_keras(model)).input_shape == (None, None, None, 3)


def test_names_with_slashes_stay_apart():
    dense = [tf_keras.layers.Dense(4, name=name) for name in ("a_b", "a/b")]
    model = from_tf_keras(tf_keras.Sequential([tf_keras.Input((4,)), *dense]))
    assert [layer.name for layer in model.layers[1:]] == ["a_b", "a_b_1"]


def more_functions():
    inputs = tf_keras.Input((4, 6))
    outputs = [
        tf.cast(tf.equal(inputs, inputs), tf.float32),
        tf.add(inputs, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        tf.argmax(inputs, axis=-1),
        tf.argmax(inputs, axis=1, output_type=tf.int32),
        tf.nn.l2_normalize(inputs),
        tf.cumsum(inputs, 1),
        tf.math.reduce_std(inputs, -1),
        tf.math.add_n([inputs, inputs]),
        tf.nn.space_to_depth(inputs[..., None], 2),
        tf.slice(inputs, [0, 0, 1], [-1, 2, 3]),
        tf.math.top_k(inputs, 2)[0],
        tf.where(inputs > 0.5, inputs, 0.0),
        tf.image.resize(inputs[..., None], [8, 8]),
    ]
    return tf_keras.Model(inputs, outputs)


def test_more_functions_of_tensorflow():
    legacy = more_functions()
    model = from_tf_keras(legacy)
    x = tf.random.normal((3, 4, 6))
    assert_same(predict(legacy, x), predict(model, x))
    assert [output.dtype for output in model.outputs] == [output.dtype.name for output in legacy.outputs]


def with_variable():
    inputs = tf_keras.Input((4,))
    return tf_keras.Model(inputs, inputs * tf.Variable(2.0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tf_keras.Sequential([tf_keras.Input((4,), ragged=True), tf_keras.layers.ReLU()]), "sparse or ragged"),
        (with_variable, "is no layer's weight"),
    ],
)
def test_what_would_be_lost_on_the_way_here_is_named(make, message):
    with pytest.raises(ModelError, match=message):
        from_tf_keras(make())


def regularized(kind):
    penalized = layers.Dense(3, activity_regularizer="l2")
    if kind == "time":
        return chain((4, 3), layers.TimeDistributed(penalized, name="penalized"))
    inputs = keras.Input((4, 3))
    attention = layers.MultiHeadAttention(2, 3, activity_regularizer="l2", name="penalized")
    return keras.Model(inputs, attention(inputs, inputs))


@pytest.mark.parametrize("kind", ["time", "attention"])
def test_losses_on_activations_that_are_counted_otherwise(kind):
    with pytest.raises(ModelError, match="'penalized'.*activity_regularizer"):
        to_tf_keras(regularized(kind))


def fails(layer):
    raise KeyError("nothing")


@pytest.mark.parametrize(
    ("mapping", "error", "message"),
    [
        ([Scale], InvalidArgumentError, "`layers` must be a dict"),
        ({Scale: 3}, InvalidArgumentError, "`layers` must be a dict"),
        ({Scale: fails}, ModelError, "fails on layer 'mine'"),
        ({Scale: lambda layer: layers.ReLU(name=layer.name)}, ModelError, "must give a layer of tf_keras"),
        ({Scale: lambda layer: LegacyScale(3.0, name="other")}, ModelError, "of the same name"),
    ],
)
def test_mistakes_in_a_mapping(mapping, error, message):
    with pytest.raises(error, match=message):
        to_tf_keras(chain((4,), Scale(3.0, name="mine")), layers=mapping)


def test_a_synchronized_normalization_stays_one():
    legacy = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.BatchNormalization(synchronized=True)])
    assert from_tf_keras(legacy).layers[-1].synchronized
