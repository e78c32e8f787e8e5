"""Dependencies of channels: what belongs together, and that a model without units computes what silencing gives."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from tfcompress.errors import InvalidArgumentError, ModelError
from tfcompress.graph.channels import channel_graph
from tfcompress.graph.macs import count_macs
from tfcompress.graph.shrink import shrink, silence
from tfcompress.training.copying import copy_model


def classified(inputs, x, name):
    return keras.Model(inputs, layers.Dense(3, name="classes")(layers.GlobalAveragePooling2D()(x)), name=name)


def plain():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, activation="relu", name="a")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    return classified(inputs, layers.Conv2D(5, 3, name="b")(x), "plain")


def fused():
    """As a replica is that trains."""
    return copy_model(plain(), fused=True)


def residual():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, padding="same", name="first")(inputs)
    for block in range(2):
        y = layers.Conv2D(4, 1, activation="relu", name=f"inner_{block}")(x)
        x = layers.Add()([x, layers.Conv2D(6, 3, padding="same", name=f"outer_{block}")(y)])
    return classified(inputs, x, "residual")


def squeeze_and_excite():
    inputs = keras.Input((8, 8, 3))
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(layers.Conv2D(8, 1, name="expand")(inputs))
    gate = layers.Reshape((1, 1, 8))(layers.GlobalAveragePooling2D()(x))
    gate = layers.Conv2D(4, 1, activation="swish", name="squeeze")(gate)
    gate = layers.Conv2D(8, 1, activation="sigmoid", name="excite")(gate)
    return classified(inputs, layers.Multiply()([x, gate]), "squeeze_and_excite")


def unet():
    inputs = keras.Input((8, 8, 3))
    a = layers.Conv2D(6, 3, padding="same", name="down")(inputs)
    b = layers.Conv2D(8, 3, padding="same", name="bottom")(layers.MaxPooling2D()(a))
    b = layers.PReLU(shared_axes=(1, 2), name="slopes")(layers.BatchNormalization()(b))
    up = layers.Conv2DTranspose(6, 2, strides=2, name="up")(b)
    x = layers.SeparableConv2D(5, 3, padding="same", depth_multiplier=2, name="separable")(
        layers.Concatenate()([a, up])
    )
    return keras.Model(inputs, layers.Conv2D(2, 1, name="classes")(x), name="unet")


def grouped():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(24, 3, padding="same", name="wide")(inputs)
    x = layers.Conv2D(24, 3, groups=3, padding="same", name="few_groups")(x)
    x = layers.Permute((1, 2, 4, 3))(layers.Reshape((8, 8, 3, 8))(x))
    x = layers.Conv2D(32, 1, groups=8, name="many_groups")(layers.Reshape((8, 8, 24))(x))
    return classified(inputs, layers.DepthwiseConv2D(3, depth_multiplier=2, name="doubled")(x), "grouped")


def flattened():
    inputs = keras.Input((4, 4, 3))
    x = layers.Conv2D(5, 3, padding="same", name="conv")(inputs)
    return keras.Model(inputs, layers.Dense(3, name="classes")(layers.Flatten()(x)), name="flattened")


def operations():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(12, 3, padding="same", name="conv")(inputs)
    first, second, _ = ops.split(x, 3, axis=-1)
    x = ops.concatenate([ops.relu(x[..., 2:8]) * 2, first, second], axis=-1)
    pooled = ops.reshape(ops.sigmoid(ops.mean(x, axis=(1, 2))), (-1, 1, 1, 14))
    x = layers.Conv2D(14, 1, name="scaled")(x) * pooled
    x = ops.expand_dims(ops.transpose(ops.max(x, axis=1), (0, 1, 2)), 1)
    return classified(inputs, layers.Conv2D(4, 1, name="last")(x), "operations")


def recurrent():
    inputs = keras.Input((6, 5))
    x = layers.LSTM(8, return_sequences=True, name="lstm")(inputs)
    x = layers.Bidirectional(layers.GRU(6, return_sequences=True), name="both")(x)
    x = layers.TimeDistributed(layers.Dense(7, activation="relu"), name="each")(x)
    return keras.Model(inputs, layers.Dense(3, name="classes")(layers.SimpleRNN(5, name="simple")(x)), name="recurrent")


def transformer():
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(10, 8, name="embedding")(inputs)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(4, 6, value_dim=5, name="attention")(x, x))
    y = layers.Dense(16, activation="gelu", name="wide")(x)
    x = layers.LayerNormalization()(layers.Add()([x, layers.Dense(8, name="narrow")(y)]))
    return keras.Model(inputs, layers.Dense(3, name="classes")(layers.GlobalAveragePooling1D()(x)), name="transformer")


def masked_attention():
    inputs = {"tokens": keras.Input((6,), dtype="int32", name="tokens"), "mask": keras.Input((6, 6), name="mask")}
    x = layers.Dense(8, activation="relu", name="embedded")(layers.Embedding(10, 6, name="embedding")(inputs["tokens"]))
    x = layers.MultiHeadAttention(3, 4, name="attention")(x, x, attention_mask=inputs["mask"] > 0)
    return keras.Model(
        inputs, layers.Dense(3, name="classes")(layers.GlobalAveragePooling1D()(x)), name="masked_attention"
    )


def own_function():
    inputs = keras.Input((8,))
    x = layers.Lambda(lambda x: x * 2, name="doubled")(layers.Dense(6, name="fixed")(inputs))
    return keras.Model(inputs, layers.Dense(3, name="classes")(layers.Dense(8, name="free")(x)), name="own_function")


def shared():
    inputs = keras.Input((8,))
    twice = layers.Dense(8, activation="tanh", name="twice")
    x = twice(twice(layers.Dense(8, name="first")(inputs)))
    return keras.Model(inputs, layers.Dense(2, name="classes")(x), name="shared")


def nested():
    inner = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Conv2D(6, 3, name="a"), layers.Conv2D(4, 3, name="b")], name="inner"
    )
    inputs = keras.Input((8, 8, 3))
    return classified(inputs, inner(inputs), "nested")


def two_outputs():
    inputs = keras.Input((8,))
    x = layers.Dense(6, activation="relu", name="trunk")(inputs)
    return keras.Model(
        inputs, {"one": layers.Dense(2, name="one")(x), "two": layers.Dense(3, name="two")(x)}, name="two_outputs"
    )


def attention_with_scores():
    inputs = keras.Input((6, 5))
    x = layers.Dense(8, name="embedded")(inputs)
    x, scores = layers.MultiHeadAttention(4, 3, name="attention")(x, x, return_attention_scores=True)
    return keras.Model(inputs, [layers.Dense(3, name="classes")(x), ops.mean(scores, axis=1)], name="with_scores")


def reshaped_steps():
    inputs = keras.Input((2, 4, 4, 3))
    x = layers.TimeDistributed(layers.Conv2D(6, 3, padding="same"), name="conv")(inputs)
    x = layers.TimeDistributed(layers.Reshape((16, 6)))(x)
    return keras.Model(inputs, layers.Dense(3, name="classes")(x), name="reshaped_steps")


def channels_before_positions():
    inputs = keras.Input((4, 5, 3))
    x = ops.transpose(layers.Conv2D(6, 3, padding="same", name="conv")(inputs), (0, -1, 1, 2))
    x = layers.PReLU(shared_axes=(2, 3), name="by_channel")(x)
    x = layers.PReLU(shared_axes=(1,), name="by_position")(x)
    return classified(inputs, ops.transpose(x, (0, -2, -1, 1)), "channels_before_positions")


def given_table():
    inputs = keras.Input((5,), dtype="int32")
    table = keras.initializers.Constant(np.ones((10, 8)))
    x = layers.Embedding(10, 8, embeddings_initializer=table, name="embedding")(inputs)
    kernel = keras.initializers.Constant(np.ones((8, 4)).tolist())
    x = layers.TimeDistributed(layers.Dense(4, kernel_initializer=kernel), name="each")(x)
    return keras.Model(inputs, layers.Dense(3, name="classes")(layers.GlobalAveragePooling1D()(x)), name="given_table")


MODELS = [
    plain, fused, residual, squeeze_and_excite, unet, grouped, flattened, operations, recurrent, transformer, shared,
    nested,
    two_outputs, masked_attention, own_function, attention_with_scores, reshaped_steps, channels_before_positions,
    given_table,
]  # fmt: skip


def with_random_weights(build):
    """The model with weights that all matter, statistics and biases too."""
    keras.utils.set_random_seed(0)
    model, rng = build(), np.random.default_rng(0)
    for weight in model.weights:
        low = 0.5 if "variance" in weight.path else -1.0
        weight.assign(rng.uniform(low, 1.5, size=weight.shape))
    return model


def inputs_of(model, rng):
    def draw(tensor):
        shape = (3, *tensor.shape[1:])
        return rng.integers(0, 10, size=shape) if tensor.dtype == "int32" else rng.normal(size=shape).astype("float32")

    return keras.tree.map_structure(draw, model.input)


@pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__)
def test_shrunk_model_is_the_silenced_one(build, tmp_path):
    model, rng = with_random_weights(build), np.random.default_rng(1)
    graph = channel_graph(model)
    assert graph.groups
    removed = np.concatenate([rng.permutation(units)[: max(1, len(units) // 3)] for units in graph.groups])
    removed = removed[[len(graph.groups[index]) > 1 for index in group_of(graph)[removed]]]
    x, macs = inputs_of(model, rng), count_macs(model)
    before = keras.tree.flatten(model(x, training=False))
    small = shrink(graph, removed)
    unchanged = keras.tree.flatten(model(x, training=False))
    silence(graph, removed)
    silenced = keras.tree.flatten(model(x, training=False))
    assert count_macs(small) < macs
    small.save(tmp_path / "small.keras")
    for one in (small, keras.saving.load_model(tmp_path / "small.keras", safe_mode=build is not own_function)):
        for expected, actual in zip(silenced, keras.tree.flatten(one(x, training=False)), strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * float(np.abs(expected).max()))
    for expected, actual in zip(before, unchanged, strict=True):
        np.testing.assert_array_equal(actual, expected)
    # What was silenced mattered.
    assert any(not np.allclose(one, other, rtol=1e-3) for one, other in zip(before, silenced, strict=True))


def group_of(graph):
    groups = np.zeros(graph.num_units, int)
    for index, units in enumerate(graph.groups):
        groups[units] = index
    return groups


@pytest.mark.parametrize(
    "build, expected",
    [
        (plain, [(6, ("a",)), (5, ("b",))]),
        (fused, [(6, ("a",)), (5, ("b",))]),
        (residual, [(6, ("first", "outer_0", "outer_1")), (4, ("inner_0",)), (4, ("inner_1",))]),
        (squeeze_and_excite, [(8, ("expand", "excite")), (4, ("squeeze",))]),
        (unet, [(6, ("down",)), (8, ("bottom",)), (6, ("up",)), (5, ("separable",))]),
        # Three groups of eight: the same index of each. Eight groups of three inputs: whole groups.
        (grouped, [(8, ("wide",)), (8, ("few_groups", "many_groups"))]),
        (flattened, [(5, ("conv",))]),
        (transformer, [(4, ("attention",)), (6, ("attention",)), (5, ("attention",)), (16, ("wide",))]),
        (two_outputs, [(6, ("trunk",))]),
        # The scores that it gives have an axis of heads.
        (attention_with_scores, [(8, ("embedded",)), (8, ("attention",)), *[(3, ("attention",))] * 2]),
        (reshaped_steps, [(6, ("conv",))]),
        (channels_before_positions, [(6, ("conv",))]),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_groups(build, expected):
    graph = channel_graph(build())
    found = [(len(units), graph.layers_of(index)) for index, units in enumerate(graph.groups)]
    assert sorted(found) == sorted(expected)


def softmax_inside(x):
    return layers.Softmax()(x)


def gated_by_input(x):
    return layers.Multiply()([x, layers.Dense(1, name="gate")(x)])


def own_layer(x):
    class Doubled(layers.Layer):
        def call(self, inputs):
            return 2 * inputs[:, ::-1]

    return Doubled()(x)


def pooled_along_channels(x):
    x = layers.MaxPooling1D(3, strides=1, padding="same")(layers.Reshape((6, 1))(x))
    return layers.Flatten()(x)


def in_steps(layer):
    """A layer that takes two steps of four positions, with the channels last."""

    def called(x):
        x = layers.Reshape((2, 4, 6))(layers.RepeatVector(8)(x))
        return layers.Flatten()(layers.TimeDistributed(layer)(x))

    return called


def channels_as_steps(x):
    x = layers.Reshape((6, 4, 1))(layers.Permute((2, 1))(layers.RepeatVector(4)(x)))
    return layers.Flatten()(layers.TimeDistributed(layers.Flatten())(x))


def attention_of_two_axes(x):
    x = layers.RepeatVector(3)(x)
    return layers.Flatten()(layers.MultiHeadAttention(2, 4, output_shape=(4, 4), name="attention")(x, x))


def read_by(change):
    """A dense layer that is changed once it is built."""

    def read(x):
        dense = layers.Dense(5, name="reader")
        x = dense(x)
        change(dense)
        return x

    return read


@pytest.mark.parametrize(
    "between, is_fixed",
    [
        (softmax_inside, True),
        (layers.LayerNormalization(), True),
        (layers.UnitNormalization(), True),
        (layers.Activation("softmax"), True),
        (own_layer, True),
        (lambda x: x[:, ::2], True),
        (lambda x: ops.cumsum(x, axis=-1), True),
        (lambda x: x * np.arange(6.0, dtype="float32"), True),
        (pooled_along_channels, True),
        (in_steps(layers.GlobalAveragePooling1D(data_format="channels_first")), True),
        (in_steps(layers.Flatten(data_format="channels_first")), True),
        (channels_as_steps, True),
        (attention_of_two_axes, True),
        (lambda x: ops.clip(x, np.linspace(-1.0, 0.0, 6, dtype="float32"), 1.0), True),
        (lambda x: ops.leaky_relu(x, np.linspace(0.0, 1.0, 6, dtype="float32")), True),
        (read_by(lambda dense: dense.enable_lora(1)), True),
        (read_by(lambda dense: dense.quantize("int8")), True),
        (lambda x: ops.clip(x, 0.0, 6.0), False),
        (in_steps(layers.GlobalAveragePooling1D()), False),
        (layers.Dropout(0.5), False),
        (layers.Activation("gelu"), False),
        (gated_by_input, False),
    ],
)
def test_what_mixes_channels_fixes_them(between, is_fixed):
    inputs = keras.Input((4,))
    x = between(layers.Dense(6, name="made")(inputs))
    graph = channel_graph(keras.Model(inputs, layers.Dense(2)(x)))
    makers = {name for index in range(len(graph.groups)) for name in graph.layers_of(index)}
    assert ("made" in makers) is not is_fixed
    assert not makers & {"attention", "reader"}


def test_outputs_are_fixed_and_description_names_weights():
    graph = channel_graph(plain())
    text = graph.describe()
    assert "classes" not in {name for index in range(2) for name in graph.layers_of(index)}
    assert "plain: 11 units in 2 groups" in text and "norm/moving_variance[0]" in text


def test_subclasses_may_compute_anything():
    class Reversed(layers.Dense):
        def call(self, inputs):
            return super().call(inputs)[:, ::-1]

    inputs = keras.Input((4,))
    assert channel_graph(keras.Model(inputs, layers.Dense(2)(Reversed(6)(inputs)))).num_units == 0


def test_a_layer_keeps_a_channel():
    graph = channel_graph(plain())
    with pytest.raises(ModelError, match="no channel left"):
        shrink(graph, graph.groups[0])


@pytest.mark.parametrize("removed", [[-1], [99], [0.5], [True]])
def test_units_must_exist(removed):
    with pytest.raises(InvalidArgumentError, match="ids of units"):
        shrink(channel_graph(plain()), np.array(removed))
