"""Residual blocks that are left out: against models built without them, ranked against NumPy, and within budgets."""

import keras
import numpy as np
import pytest
from helpers import tiny_mlp
from keras import layers

from tfcompress.errors import InvalidArgumentError, ModelError
from tfcompress.graph.macs import count_macs
from tfcompress.graph.residual_blocks import residual_blocks
from tfcompress.graph.trace import trace
from tfcompress.measure.size import num_params
from tfcompress.techniques.channels import remove_blocks
from tfcompress.techniques.channels.remove_blocks import output_changes, removable_blocks

EXACT = {"rtol": 1e-5, "atol": 1e-6}
# What the last kernel of each block is multiplied by, so that they matter differently.
SCALES = {"one": 1.0, "two": 0.05, "three": 0.4}


def block(x, name, scale=1.0):
    """A bottleneck with squeeze-and-excite, without its sum."""
    y = layers.Conv2D(4, 1, use_bias=False, name=f"{name}_in")(x)
    y = layers.ReLU(name=f"{name}_relu")(layers.BatchNormalization(name=f"{name}_norm")(y))
    gate = layers.Dense(4, activation="sigmoid", name=f"{name}_gate")(
        layers.GlobalAveragePooling2D(name=f"{name}_pool")(y)
    )
    y = layers.Multiply(name=f"{name}_scale")([y, layers.Reshape((1, 1, 4), name=f"{name}_spread")(gate)])
    initializer = keras.initializers.VarianceScaling(scale**2, seed=1)
    return layers.Conv2D(8, 3, padding="same", kernel_initializer=initializer, name=f"{name}_out")(y)


def network(without=(), *, symbol=False):
    """A stem, three blocks with identity shortcuts, one with a projection, and a head."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", name="stem")(inputs)
    for name, scale in SCALES.items():
        if name not in without:
            y = block(x, name, scale)
            x = x + y if symbol else layers.Add(name=f"{name}_sum")([y, x])
    side = layers.Conv2D(5, 1, name="projection")(x)
    x = layers.Add(name="projected_sum")([layers.Conv2D(5, 3, padding="same", name="four")(x), side])
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(4, name="head")(x), name="network")


def samples(count=16):
    return np.random.default_rng(1).normal(size=(count, 6, 6, 3)).astype("float32")


def take_weights(model, source):
    for layer in model.layers:
        if layer.weights:
            layer.set_weights(source.get_layer(layer.name).get_weights())
    return model


def stirred(model):
    """With statistics that are not those of a new layer."""
    rng = np.random.default_rng(2)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, size=weight.shape) for weight in layer.weights])
    return model


@pytest.mark.parametrize("symbol", [False, True], ids=["layer", "operation"])
def test_blocks_are_found(symbol):
    blocks = residual_blocks(trace(network(symbol=symbol)))
    assert [one.layers[0] for one in blocks] == ["one_in", "two_in", "three_in"]
    assert all(len(one.layers) == 9 for one in blocks)


@pytest.mark.parametrize("symbol", [False, True], ids=["layer", "operation"])
@pytest.mark.parametrize(("count", "gone"), [(1, ["two"]), (2, ["two", "three"]), (3, list(SCALES))])
def test_it_is_the_model_without_the_blocks(count, gone, symbol):
    model = stirred(network(symbol=symbol))
    before, config = [weight.copy() for weight in model.get_weights()], model.to_json()
    small = remove_blocks(model, count=count)
    by_hand = take_weights(network(gone), model)
    np.testing.assert_allclose(small(samples()), by_hand(samples()), **EXACT)
    named = [layer.name for layer in small.layers if layer.weights]
    assert named == [layer.name for layer in by_hand.layers if layer.weights] and small.name == model.name
    assert model.to_json() == config
    for expected, actual in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(actual, expected)
    # Other weights than the ones that were given.
    small.layers[1].kernel.assign(small.layers[1].kernel * 0)
    np.testing.assert_array_equal(model.get_weights()[0], before[0])


def test_it_saves_and_trains(tmp_path):
    small = remove_blocks(network(), count=1)
    small.save(tmp_path / "small.keras")
    again = keras.saving.load_model(tmp_path / "small.keras")
    np.testing.assert_allclose(again(samples()), small(samples()), **EXACT)
    again.compile("adam", "mse")
    assert np.isfinite(again.fit(samples(), np.ones((16, 4)), verbose=0).history["loss"]).all()


def test_ranking_against_numpy():
    model = stirred(network())
    traced, blocks = removable_blocks(model)
    x = samples(24)
    whole = model(x).numpy()
    expected = []
    for name in SCALES:
        without = take_weights(network([name]), model)(x).numpy()
        expected.append(np.linalg.norm(whole - without) / np.linalg.norm(whole))
    actual = output_changes(traced, blocks, [x[:10], x[10:]])
    np.testing.assert_allclose(actual, expected, rtol=1e-4)
    assert len(set(np.argsort(expected))) == 3


def test_data_ranks_otherwise_than_random_inputs():
    """A block that acts on what data never has is spared by random inputs, and goes on data."""
    inputs = keras.Input((2,))
    x = layers.Dense(2, use_bias=False, name="stem")(inputs)
    for name in ("first", "second"):
        x = layers.Add(name=f"{name}_sum")([x, layers.Dense(2, use_bias=False, name=name)(x)])
    model = keras.Model(inputs, x)
    model.get_layer("stem").kernel.assign(np.eye(2))
    model.get_layer("first").kernel.assign([[0, 0], [0, 5.0]])
    model.get_layer("second").kernel.assign([[1.0, 0], [0, 0]])
    data = np.array([[1.0, 0.0], [2.0, 0.0]], "float32"), np.zeros(2)
    assert "first" in [layer.name for layer in remove_blocks(model, count=1).layers]
    assert "second" in [layer.name for layer in remove_blocks(model, count=1, data=data).layers]


def test_statistics_are_taken_again():
    model, x = stirred(network()), samples(64)
    small = remove_blocks(model, count=1, data=(x, np.zeros(64)))
    by_hand = take_weights(network(["two"]), model)
    seen = keras.Model(by_hand.input, by_hand.get_layer("one_in").output)(x).numpy()
    np.testing.assert_allclose(small.get_layer("one_norm").moving_mean, seen.mean((0, 1, 2)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("key", "measure"), [("macs", count_macs), ("params", num_params)])
def test_budgets(key, measure):
    model = network()
    whole = measure(model)
    sizes = [measure(network(gone)) for gone in ([], ["two"], ["two", "three"], list(SCALES))]
    for fewest, size in enumerate(sizes[1:], 1):
        for limit in (size, size / whole + 1e-9, sizes[fewest - 1] - 1):
            small = remove_blocks(model, **{key: limit})
            assert measure(small) == size <= (limit * whole if limit < 1 else limit)
    with pytest.raises(ModelError, match="when all 3 go"):
        remove_blocks(model, **{key: sizes[-1] - 1})


def test_excluded_blocks_stay():
    small = remove_blocks(network(), count=2, exclude=["two_*"])
    assert {"two_in"} == {layer.name for layer in small.layers if layer.name.endswith("_in")}
    with pytest.raises(InvalidArgumentError, match="at most 2"):
        remove_blocks(network(), count=3, exclude=["two_*"])
    with pytest.raises(ModelError, match="no residual block"):
        remove_blocks(network(), count=1, exclude=["*_sum"])


def test_nested_models_are_opened():
    inner_input = keras.Input((8,), name="inner_input")
    x = layers.Dense(8, name="inner_dense")(inner_input)
    inner = keras.Model(inner_input, layers.Add(name="inner_sum")([inner_input, x]), name="inner")
    inputs = keras.Input((4,), name="features")
    x = layers.Dense(8, name="stem")(inputs)
    model = keras.Model(inputs, layers.Dense(2, name="head")(inner(x)))
    small = remove_blocks(model, count=1)
    assert [layer.name for layer in small.layers] == ["features", "stem", "head"]
    data = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    expected = model.get_layer("head")(model.get_layer("stem")(data))
    np.testing.assert_allclose(small(data), expected, **EXACT)


def test_a_block_within_a_block():
    inputs = keras.Input((8,), name="features")
    y = layers.Dense(8, name="a")(inputs)
    y = layers.Add(name="inner_sum")([y, layers.Dense(8, name="b")(y)])
    model = keras.Model(inputs, layers.Add(name="outer_sum")([y, inputs]))
    assert [one.layers for one in residual_blocks(trace(model))] == [
        ("b", "inner_sum"),
        ("a", "b", "inner_sum", "outer_sum"),
    ]
    small = remove_blocks(model, count=1, exclude=["a"])
    assert [layer.name for layer in small.layers if layer.weights] == ["a"]
    assert (
        remove_blocks(keras.Model(model.input, layers.Dense(2, name="head")(model.output)), count=2).layers[-1].name
        == "head"
    )


def residual(build):
    """A model of one sum of two: what `build` gives, and the tensor it takes."""
    inputs = keras.Input((8,), name="features")
    x = layers.Dense(8, name="stem")(inputs)
    return keras.Model(inputs, layers.Dense(2, name="head")(build(x, inputs)))


def shared_layer(x, inputs):
    dense = layers.Dense(8, name="shared")
    return dense(layers.Add()([x, dense(x)]))


def read_elsewhere(x, inputs):
    y = layers.Dense(8, name="y")(x)
    return layers.Concatenate()([layers.Add()([x, layers.ReLU()(y)]), y])


def two_entries(x, inputs):
    y = layers.Concatenate()([layers.Dense(8, name="y")(x), inputs])
    return layers.Add()([x, layers.Dense(8, name="z")(y)])


def projected(x, inputs):
    return layers.Add()([layers.Dense(8, name="y")(x), layers.Dense(8, name="z")(x)])


def broadcast(x, inputs):
    return layers.Add()([x, layers.Dense(1, name="y")(x)])


def twice(x, inputs):
    return layers.Add()([x, x])


@pytest.mark.parametrize("build", [shared_layer, read_elsewhere, two_entries, projected, twice])
def test_what_is_no_block(build):
    with pytest.raises(ModelError, match="no residual block that may go"):
        remove_blocks(residual(build), count=1)


def test_a_broadcast_block_can_go():
    small = remove_blocks(residual(broadcast), count=1)
    assert [layer.name for layer in small.layers if layer.weights] == ["stem", "head"]


@pytest.mark.parametrize("first", [True, False])
def test_the_sum_of_inception_resnet(first):
    from keras.src.applications.inception_resnet_v2 import CustomScaleLayer

    def scaled(x, inputs):
        y = layers.Dense(8, name="y")(x)
        return CustomScaleLayer(0.2)([x, y] if first else [y, x])

    # Scaled itself, the shortcut is not what is left of the sum.
    assert len(residual_blocks(trace(residual(scaled)))) == first


def test_a_layer_that_is_only_called_add_is_no_sum():
    class Add(layers.Layer):
        def call(self, one, other):
            return one * other

    assert residual_blocks(trace(residual(lambda x, inputs: Add()(x, layers.Dense(8, name="y")(x))))) == ()
    assert len(residual_blocks(trace(residual(lambda x, inputs: x + layers.Dense(8, name="y")(x))))) == 1


def test_a_sum_that_is_the_models_output_and_shared_layers_within_the_block():
    inputs = keras.Input((8,), name="features")
    x = layers.Dense(8, name="stem")(inputs)
    dense = layers.Dense(8, name="shared")
    model = keras.Model(inputs, layers.Add(name="sum")([dense(dense(x)), x]))
    small = remove_blocks(model, count=1)
    assert [layer.name for layer in small.layers] == ["features", "stem"]
    assert num_params(small) == 72


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "one of `count`, `macs` and `params`"),
        ({"count": 1, "macs": 0.5}, "one of `count`, `macs` and `params`"),
        ({"count": 0}, "count"),
        ({"count": True}, "count"),
        ({"count": 4}, "at most 3"),
        ({"macs": 1.5}, "macs"),
        ({"count": 1, "samples": 0}, "samples"),
        ({"count": 1, "exclude": ["nothing"]}, "exclude"),
    ],
    ids=str,
)
def test_wrong_arguments(options, match):
    with pytest.raises(InvalidArgumentError, match=match):
        remove_blocks(network(), **options)


def test_models_without_blocks_and_quantized_ones():
    from tfcompress.techniques.quantize import quantize_aware

    with pytest.raises(ModelError, match="no residual block that may go"):
        remove_blocks(tiny_mlp(), count=1)
    aware = quantize_aware(residual(broadcast), calibration=np.ones((4, 8), "float32"))
    with pytest.raises(ModelError, match="quantize afterwards"):
        remove_blocks(aware, count=1)
