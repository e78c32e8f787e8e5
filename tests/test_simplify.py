"""Simplification: what is folded, removed, dropped and merged, what must not be, and that outputs stay as they were."""

import itertools

import keras
import numpy as np
import pytest
from helpers import shared_path, tiny_cnn
from keras import layers

import tfcompress as tfc
from tfcompress.cli import run_command
from tfcompress.errors import DataError, InvalidArgumentError, ModelError
from tfcompress.graph import simplify as package
from tfcompress.graph.outputs import gives_probabilities
from tfcompress.graph.simplify import simplify, simplify_with_certificate

CLOSE = 2e-5


def randomized(model, seed=0):
    """Random weights everywhere, statistics of normalization too."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        value = rng.normal(scale=0.5, size=variable.shape)
        if "seed" not in variable.path:
            variable.assign(rng.uniform(0.5, 2.0, variable.shape) if "variance" in variable.path else value)
    return model


def inputs_of(model, samples=5, seed=1):
    rng = np.random.default_rng(seed)
    arrays = [rng.normal(size=(samples, *tensor.shape[1:])).astype("float32") for tensor in model.inputs]
    structure = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    return keras.tree.pack_sequence_as(structure, arrays)


def outputs_of(model, inputs):
    return [keras.ops.convert_to_numpy(y) for y in keras.tree.flatten(model(inputs, training=False))]


def checked(model, close=CLOSE):
    """The simplified model, after a comparison of its outputs that is no part of it; the model stays as it was."""
    inputs, before, config = inputs_of(model), [w.copy() for w in model.get_weights()], model.get_config()
    expected = outputs_of(model, inputs)
    simplified, certificate = simplify_with_certificate(model)
    for one, other in zip(expected, outputs_of(simplified, inputs), strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(other, one, rtol=0, atol=close * np.abs(one).max())
        assert np.ptp(one) > 1e-3  # A constant would show nothing.
    assert model.get_config() == config
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert certificate.num_params == (model.count_params(), simplified.count_params())
    assert all(type(layer).__module__.startswith("keras.") for layer in simplified.layers)
    return simplified


def names(model):
    return [layer.name for layer in model.layers if not isinstance(layer, layers.InputLayer)]


def chain(shape, *following, seed=0):
    inputs = keras.Input(shape, name="input")
    x = inputs
    for layer in following:
        x = layer(x)
    return randomized(keras.Model(inputs, x), seed)


def zero(layer, channels, bias=0.0, axis=-1):
    """Makes some filters of a layer zero, with a bias."""
    kernel = np.array(layer.kernel)
    kernel[(..., channels) if axis == -1 else (..., channels, slice(None))] = 0
    layer.kernel.assign(kernel)
    if layer.use_bias and axis == -1:
        values = np.array(layer.bias)
        values[channels] = bias
        layer.bias.assign(values)


AFFINE = {
    "conv1d": ((9, 3), lambda **k: layers.Conv1D(4, 3, padding="causal", **k)),
    "conv2d": ((7, 7, 3), lambda **k: layers.Conv2D(4, 3, padding="same", strides=2, **k)),
    "grouped": ((6, 6, 4), lambda **k: layers.Conv2D(8, 3, groups=2, padding="same", **k)),
    "conv3d": ((4, 4, 4, 2), lambda **k: layers.Conv3D(3, 2, **k)),
    "depthwise1d": ((9, 3), lambda **k: layers.DepthwiseConv1D(3, depth_multiplier=2, **k)),
    "depthwise2d": ((6, 6, 3), lambda **k: layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same", **k)),
    "separable1d": ((9, 3), lambda **k: layers.SeparableConv1D(4, 3, depth_multiplier=2, **k)),
    "separable2d": ((6, 6, 3), lambda **k: layers.SeparableConv2D(4, 3, padding="same", **k)),
    "transposed1d": ((5, 3), lambda **k: layers.Conv1DTranspose(4, 3, strides=2, padding="same", **k)),
    "transposed2d": ((5, 5, 3), lambda **k: layers.Conv2DTranspose(4, 3, strides=2, padding="same", **k)),
    "transposed3d": ((3, 3, 3, 2), lambda **k: layers.Conv3DTranspose(3, 2, **k)),
    "dense": ((6,), lambda **k: layers.Dense(4, **k)),
    "dense_on_steps": ((5, 6), lambda **k: layers.Dense(4, **k)),
}


# Whether the layer has a bias, and the normalization a scale and an offset; the kinds take turns.
OPTIONS = [(False, True, True), (True, False, True), (True, True, False)]


@pytest.mark.parametrize(("kind", "options"), zip(AFFINE, itertools.cycle(OPTIONS)))
def test_normalization_folds_into_the_layer_before(kind, options):
    shape, make = AFFINE[kind]
    use_bias, scale, center = options
    norm = layers.BatchNormalization(scale=scale, center=center, epsilon=0.01, name="norm")
    model = chain(shape, make(use_bias=use_bias, name="affine"), norm, layers.ReLU(name="relu"))
    assert names(checked(model)) == ["affine", "relu"]


@pytest.mark.parametrize("kind", AFFINE)
@pytest.mark.parametrize("center", [True, False])
def test_normalization_folds_into_the_layer_behind_unless_zeros_are_padded(kind, center):
    shape, make = AFFINE[kind]
    norm = layers.BatchNormalization(center=center, name="norm")
    model = chain(shape, layers.ReLU(name="relu"), norm, make(name="affine", activation="tanh"))
    is_padded = kind in ("conv1d", "conv2d", "grouped", "depthwise2d", "separable2d") or "transposed" in kind
    kept = ["relu", "norm", "affine"] if is_padded else ["relu", "affine"]
    assert names(checked(model)) == kept
    # What adds nothing may be behind the padding as well as before it.
    norm.moving_mean.assign(np.zeros(shape[-1]))
    if center:
        norm.beta.assign(np.zeros(shape[-1]))
    assert names(checked(model)) == ["relu", "affine"]


def test_folded_weights_are_those_of_the_formula():
    conv, norm = layers.Conv2D(4, 3, name="conv"), layers.BatchNormalization(epsilon=0.1)
    simplified = checked(chain((6, 6, 2), conv, norm, layers.ReLU()))
    factor = np.array(norm.gamma, "float64") / np.sqrt(np.array(norm.moving_variance, "float64") + 0.1)
    bias = (np.array(conv.bias) - np.array(norm.moving_mean)) * factor + np.array(norm.beta)
    np.testing.assert_allclose(simplified.get_layer("conv").kernel, np.array(conv.kernel) * factor, rtol=1e-6)
    np.testing.assert_allclose(simplified.get_layer("conv").bias, bias, rtol=1e-6)


def test_what_must_not_be_folded():
    inputs = keras.Input((6, 6, 3))
    conv, norm = layers.Conv2D(4, 3, padding="same"), layers.BatchNormalization(name="norm")
    cases = {
        "activation": lambda x: norm(layers.Conv2D(4, 3, padding="same", activation="relu")(x)),
        "two readers": lambda x: (lambda y: layers.Concatenate()([norm(y), y]))(conv(x)),
        "training": lambda x: norm(conv(x), training=True),
        "another axis": lambda x: layers.BatchNormalization(axis=1, name="norm")(conv(x)),
    }
    for case, build in cases.items():
        model = keras.Model(inputs, layers.ReLU(name="relu")(build(inputs)))
        # Its statistics would move, so nothing is compared by us.
        simplified = simplify(model) if case == "training" else checked(randomized(model))
        assert "norm" in names(simplified), case


def test_shared_layers_fold_only_where_all_their_calls_do():
    inputs = keras.Input((6, 6, 3))
    conv, norm = layers.Conv2D(3, 3, padding="same", name="conv"), layers.BatchNormalization(name="norm")
    both = keras.Model(inputs, layers.ReLU(name="second")(norm(conv(layers.ReLU(name="first")(norm(conv(inputs)))))))
    simplified = checked(randomized(both))
    assert sorted(names(simplified)) == ["conv", "first", "second"]
    conv, one, other = layers.Conv2D(3, 3, padding="same"), layers.BatchNormalization(), layers.BatchNormalization()
    apart = keras.Model(inputs, other(conv(layers.ReLU()(one(conv(inputs))))))
    assert len(names(checked(randomized(apart)))) == 4


def test_scalings_of_other_kinds():
    from keras.src.applications.convnext import LayerScale

    model = chain(
        (6, 6, 3),
        layers.Rescaling(1 / 127.5, offset=-1, name="rescaling"),
        layers.Conv2D(4, 3, name="conv"),
        LayerScale(0.1, 4, name="layer_scale"),
        layers.ReLU(name="relu"),
    )
    assert names(checked(model)) == ["conv", "relu"]
    # Over whole numbers the layer behind could not compute.
    pixels = keras.Input((4,), dtype="uint8")
    model = keras.Model(pixels, layers.Dense(2)(layers.Rescaling(0.5, name="rescaling")(pixels)))
    assert "rescaling" in names(simplify(model))


def test_layers_that_do_nothing_are_dropped():
    idle = [
        layers.Dropout(0.5), layers.SpatialDropout2D(0.5), layers.GaussianNoise(1.0), layers.GaussianDropout(0.5),
        layers.AlphaDropout(0.5), layers.Identity(), layers.Activation("linear"), layers.ActivityRegularization(0.1),
        layers.ZeroPadding2D(0), layers.Cropping2D(0), layers.UpSampling2D(1), layers.Reshape((6, 6, 3)),
        layers.Permute((1, 2, 3)), layers.MaxPooling2D(1), layers.AveragePooling2D(1, padding="same"),
        layers.RandomFlip(), layers.RandomRotation(0.1), layers.RandomZoom(0.1), layers.RandomTranslation(0.1, 0.1),
        layers.RandomContrast(0.1), layers.RandomBrightness(0.1), layers.Rescaling(1.0),
    ]  # fmt: skip
    model = chain((6, 6, 3), *idle, layers.Conv2D(2, 3, name="conv"), layers.ReLU(name="relu"))
    assert names(checked(model)) == ["conv", "relu"]
    busy = [
        layers.ZeroPadding2D((1, 0)), layers.Cropping2D((0, 1)), layers.Reshape((4, 8, 4)), layers.Permute((2, 1, 3)),
        layers.MaxPooling2D(1, strides=2), layers.UpSampling2D((1, 2)), layers.Activation("relu"),
        layers.Rescaling(2.0),
    ]  # fmt: skip
    model = chain((6, 6, 4), *busy, layers.ReLU())
    assert len(names(checked(model))) == len(busy) + 1


def test_dropout_that_is_random_in_inference_stays_and_so_does_the_layer_of_an_output():
    inputs = keras.Input((6,))
    always = layers.Dropout(0.0, name="always")(layers.Dense(4, activation="relu")(inputs), training=True)
    model = keras.Model(inputs, layers.Activation("linear", name="scores")(layers.Dense(2)(always)))
    simplified = simplify(model)
    assert {"always", "scores"} <= set(names(simplified))
    assert simplified.output_names == model.output_names


@pytest.mark.parametrize("training", [True, False])
def test_a_constant_that_goes_through_chance_is_none(training):
    inputs = keras.Input((4,))
    x = layers.Dropout(0.5)(layers.Dense(3, activation="relu", name="hidden")(inputs), training=training)
    model = keras.Model(inputs, layers.Dense(2)(x))
    kernel, bias = model.get_layer("hidden").get_weights()
    kernel[:, 0], bias[0] = 0.0, 1.0
    model.get_layer("hidden").set_weights([kernel, bias])
    assert tfc.simplify(model).get_layer("hidden").units == (3 if training else 2)


def test_masks_go_no_further_than_before():
    inputs = keras.Input((5, 3))
    x = layers.Masking()(inputs)
    # Reshaping forgets the mask, so that the sum is over all steps.
    model = keras.Model(inputs, layers.GlobalAveragePooling1D()(layers.Reshape((5, 3), name="reshape")(x)))
    assert "reshape" in names(simplify(model))
    model = keras.Model(inputs, layers.GlobalAveragePooling1D()(layers.Dropout(0.5, name="dropout")(x)))
    assert "dropout" not in names(simplify(model))


def test_branches_that_no_output_needs_are_dropped():
    inner_input = keras.Input((6,))
    hidden = layers.Dense(5, activation="relu", name="hidden")(inner_input)
    inner = keras.Model(inner_input, [hidden, layers.Dense(3, name="unused")(hidden)])
    inputs = keras.Input((6,), name="input")
    model = randomized(keras.Model(inputs, layers.Dense(2, name="scores")(inner(inputs)[0])))
    assert names(checked(model)) == ["hidden", "scores"]


def test_dense_layers_merge_where_they_get_no_larger():
    model = chain((8,), layers.Dense(6, name="one"), layers.Dense(4, activation="relu", name="two"))
    simplified = checked(model)
    assert names(simplified) == ["two"]
    assert simplified.get_layer("two").activation is keras.activations.relu
    # 8*8 weights instead of 8*2 + 2*8.
    model = chain((8,), layers.Dense(2, name="one"), layers.Dense(8, name="two"))
    assert names(checked(model)) == ["one", "two"]
    assert names(checked(chain((8,), layers.Dense(6, activation="relu"), layers.Dense(4)))) != ["two"]


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_pointwise_convolutions_merge(padding):
    wide, narrow = layers.Conv2D(6, 3, strides=2, padding=padding, name="wide"), layers.Conv2D(4, 1, name="narrow")
    assert names(checked(chain((9, 9, 3), wide, narrow, layers.ReLU(name="relu")))) == ["narrow", "relu"]
    # Nor does a stride of the second one go with this.
    wide, narrow = layers.Conv2D(6, 3, padding=padding, name="wide"), layers.Conv2D(4, 1, strides=2, name="narrow")
    assert names(checked(chain((9, 9, 3), wide, narrow, layers.ReLU(name="relu")))) == ["wide", "narrow", "relu"]


@pytest.mark.parametrize(("padding", "use_bias", "merges"), [("valid", True, 1), ("same", False, 1), ("same", True, 0)])
def test_a_pointwise_convolution_merges_into_the_next_unless_its_bias_meets_padding(padding, use_bias, merges):
    first = layers.Conv2D(6, 1, use_bias=use_bias, name="first")
    model = chain((6, 6, 3), first, layers.Conv2D(4, 3, padding=padding, name="second"), layers.ReLU(name="relu"))
    assert names(checked(model)) == (["second", "relu"] if merges else ["first", "second", "relu"])


def test_pruned_layers_are_not_merged_into_one_that_is_not():
    one, two = layers.Dense(16, name="one"), layers.Dense(16, name="two")
    model = chain((16,), one, two)
    assert names(checked(model)) == ["two"]
    rng = np.random.default_rng(0)
    for layer in (one, two):
        layer.kernel.assign(np.array(layer.kernel) * (rng.random((16, 16)) < 0.4))
    assert names(checked(model)) == ["one", "two"]


def test_a_merge_that_would_compute_more_is_left_out():
    # As many weights, but at 64 positions instead of 16.
    first = layers.Conv2D(4, 1, name="first")
    second = layers.Conv2D(4, 2, strides=2, name="second")
    assert names(checked(chain((8, 8, 16), first, second, layers.ReLU(name="relu")))) == ["first", "second", "relu"]


def test_dead_filters_go_with_their_constants():
    conv = layers.Conv2D(8, 3, padding="same", activation="relu", name="conv")
    after = layers.Conv2D(5, 3, padding="valid", name="after")
    model = chain((8, 8, 2), conv, layers.MaxPooling2D(2), after, layers.GlobalAveragePooling2D(), layers.Dense(3))
    zero(conv, [1, 4], bias=0.7)  # A constant other than zero, read without padding.
    zero(conv, [6], bias=-2.0)  # Zero behind its ReLU.
    simplified = checked(model)
    assert simplified.get_layer("conv").filters == 5
    kernel, bias = np.array(after.kernel, "float64"), np.array(after.bias, "float64")
    np.testing.assert_allclose(
        simplified.get_layer("after").bias, bias + 0.7 * kernel[:, :, [1, 4]].sum((0, 1, 2)), rtol=1e-5
    )


@pytest.mark.parametrize("kind", ["conv", "depthwise", "separable", "transposed", "padding"])
def test_a_constant_is_not_moved_across_padding_unless_it_is_zero(kind):
    readers = {
        "conv": [layers.Conv2D(5, 3, padding="same", name="reader")],
        "depthwise": [layers.DepthwiseConv2D(3, padding="same", name="reader"), layers.ReLU(), layers.Conv2D(4, 1)],
        "separable": [layers.SeparableConv2D(5, 3, padding="same", name="reader")],
        "transposed": [layers.Conv2DTranspose(5, 3, strides=2, padding="same", name="reader")],
        "padding": [layers.ZeroPadding2D(1), layers.Conv2D(5, 3, name="reader")],
    }
    conv = layers.Conv2D(8, 3, activation="relu", name="conv")
    model = chain((8, 8, 2), conv, *readers[kind], layers.ReLU(), layers.GlobalMaxPooling2D())
    zero(conv, [1, 4], bias=0.7)
    assert checked(model).get_layer("conv").filters == 8
    zero(conv, [1, 4], bias=-0.7)
    assert checked(model).get_layer("conv").filters == 6


def test_a_scale_of_zero_in_normalization_is_a_dead_channel():
    norm = layers.BatchNormalization(name="norm")
    conv = layers.Conv2D(6, 3, use_bias=False, name="conv")
    model = chain((8, 8, 2), conv, norm, layers.ReLU(), layers.DepthwiseConv2D(3), layers.Conv2D(4, 1), layers.ReLU())
    gamma = np.array(norm.gamma)
    gamma[[0, 3, 5]] = 0
    norm.gamma.assign(gamma)
    simplified = checked(model)
    assert simplified.get_layer("conv").filters == 3
    assert simplified.layers[3].kernel.shape == (3, 3, 3, 1)


def test_channels_that_nobody_reads_go_with_those_that_only_they_read():
    one, two = layers.Dense(8, activation="tanh", name="one"), layers.Dense(6, activation="tanh", name="two")
    last = layers.Dense(3, name="last")
    model = chain((4,), one, two, last)
    zero(last, [0, 5], axis=-2)  # Units 0 and 5 of `two`.
    kernel = np.array(two.kernel)
    kernel[2, [1, 2, 3, 4]] = 0  # Unit 2 of `one` is read by those two only.
    two.kernel.assign(kernel)
    simplified = checked(model)
    assert (simplified.get_layer("one").units, simplified.get_layer("two").units) == (7, 4)


def test_the_first_channel_of_a_layer_goes_like_any_other():
    made = [layers.Conv2D(6, 3, activation="relu", name=name) for name in ("one", "two", "three")]
    model = chain((9, 9, 2), *made, layers.GlobalAveragePooling2D(), layers.Dense(3))
    for conv in made:
        zero(conv, [0, 3], bias=-1)
    simplified = checked(model)
    assert [simplified.get_layer(conv.name).filters for conv in made] == [4, 4, 4]


def test_channels_of_a_residual_stage_go_where_all_of_them_are_dead():
    inputs = keras.Input((8, 8, 3))
    one, two = (layers.Conv2D(6, 3, padding="same", name=name) for name in ("one", "two"))
    stem = layers.ReLU()(one(inputs))
    x = layers.Add(name="sum")([stem, layers.ReLU()(two(stem))])
    model = randomized(keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x))))
    zero(one, [0, 2], bias=-1)
    assert checked(model).get_layer("one").filters == 6
    zero(two, [2, 3], bias=-1)
    assert checked(model).get_layer("two").filters == 5


def test_a_branch_of_zeros_is_dropped_from_the_sum():
    inputs = keras.Input((8, 8, 3))
    stem = layers.Conv2D(4, 3, padding="same", name="stem")(inputs)
    branch = layers.Conv2D(4, 3, padding="same", name="branch")(layers.ReLU(name="relu")(stem))
    x = layers.Add(name="sum")([stem, branch])
    model = randomized(keras.Model(inputs, layers.Flatten(name="flat")(x)))
    zero(model.get_layer("branch"), slice(None))
    assert names(checked(model)) == ["stem", "flat"]
    zero(model.get_layer("branch"), slice(None), bias=1.0)
    assert "sum" in names(checked(model))


def test_squeeze_and_excite_concatenation_and_flattening():
    inputs = keras.Input((6, 6, 3))
    one = layers.Conv2D(6, 3, activation="relu", name="one")
    x = one(inputs)
    gate = layers.Dense(6, activation="sigmoid")(layers.Dense(2, activation="relu")(layers.GlobalAveragePooling2D()(x)))
    x = layers.Multiply()([x, layers.Reshape((1, 1, 6))(gate)])
    other = layers.Conv2D(4, 3, activation="relu", name="other")
    x = layers.Flatten()(layers.Concatenate()([x, other(inputs)]))
    model = randomized(keras.Model(inputs, layers.Dense(3)(x)))
    zero(one, [1, 2], bias=-1)
    zero(other, [3], bias=0.5)
    simplified = checked(model)
    assert (simplified.get_layer("one").filters, simplified.get_layer("other").filters) == (4, 3)


@pytest.mark.parametrize(
    "between",
    [
        [layers.AveragePooling2D(3, strides=2, padding="same")],
        [layers.UpSampling2D(2, interpolation="bilinear"), layers.LeakyReLU()],
        [layers.PReLU(shared_axes=[1, 2]), layers.MaxPooling2D(2, padding="same")],
        [layers.BatchNormalization(), layers.Activation("sigmoid"), layers.Cropping2D(1)],
        [layers.Activation("tanh"), layers.GlobalAveragePooling2D()],
        [layers.ELU(), layers.Flatten()],
        [layers.Reshape((3, 12, 8))],
        [layers.GlobalMaxPooling2D(keepdims=True)],
    ],
    ids=lambda between: type(between[-1]).__name__,
)
def test_constants_pass_what_treats_channels_alike(between):
    conv = layers.Conv2D(8, 3, name="conv")
    last = layers.Dense(3, name="last")
    model = chain((8, 8, 2), conv, *between, last)
    zero(conv, [1, 4], bias=0.7)
    assert checked(model).get_layer("conv").filters == 6


def test_constants_pass_arithmetic():
    inputs = keras.Input((8, 8, 2))
    conv, gate = layers.Conv2D(6, 3, name="conv"), layers.Conv2D(6, 3, name="gate")
    x = keras.ops.relu6(conv(inputs) + 3.0) / 6.0  # A hard sigmoid, as MobileNetV3 writes it.
    x = keras.ops.multiply(x, gate(inputs)) - 1.0
    model = randomized(keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x))))
    zero(conv, [0, 1], bias=-4.0)  # Zero, and so a zero whatever the other factor is.
    zero(conv, [2, 3], bias=1.0)  # Not zero, so that the product is that of the gate.
    assert checked(model).get_layer("conv").filters == 4
    zero(gate, [0, 3], bias=0.5)
    assert checked(model).get_layer("gate").filters == 3


def test_a_layer_keeps_a_channel_and_outputs_keep_all():
    dead, last = layers.Dense(4, activation="relu", name="dead"), layers.Dense(3, name="last")
    inputs = keras.Input((5,))
    x = layers.Concatenate()([dead(inputs), layers.Dense(4, activation="relu")(inputs)])
    model = randomized(keras.Model(inputs, last(x)))
    zero(dead, slice(None), bias=1.0)
    zero(last, [1], bias=2.0)
    simplified = checked(model)
    assert (simplified.get_layer("dead").units, simplified.get_layer("last").units) == (1, 3)


def test_recurrent_layers_and_attention_keep_what_they_read():
    inputs = keras.Input((6, 4))
    dense = layers.Dense(6, activation="relu", name="dense")
    x = layers.LSTM(5, return_sequences=True)(dense(inputs))
    x = layers.MultiHeadAttention(2, 3)(x, x)
    model = randomized(keras.Model(inputs, layers.GlobalAveragePooling1D()(x)))
    zero(dense, [1], bias=-1)
    assert checked(model).get_layer("dense").units == 6


@pytest.mark.parametrize("seed", range(2))
def test_random_networks(seed):
    """Random chains with branches, random dead filters."""
    rng = np.random.default_rng(seed)
    inputs = keras.Input((10, 10, 3))
    x, made = inputs, []
    for _ in range(5):
        padding = rng.choice(["same", "valid"])
        kind = rng.integers(4)
        if kind == 0:
            conv = layers.Conv2D(int(rng.integers(3, 8)), int(rng.choice([1, 3])), padding=padding)
        elif kind == 1:
            conv = layers.DepthwiseConv2D(3, padding="same")
        elif kind == 2:
            conv = layers.SeparableConv2D(int(rng.integers(3, 8)), 3, padding="same")
        else:
            conv = layers.Conv2DTranspose(int(rng.integers(3, 8)), 2)
        x = conv(x)
        made.append(conv)
        if rng.random() < 0.5:
            x = layers.BatchNormalization(scale=bool(rng.integers(2)))(x)
        if rng.random() < 0.6:
            x = layers.Activation(str(rng.choice(["relu", "relu6", "tanh", "sigmoid"])))(x)
        if rng.random() < 0.4:
            again = layers.Conv2D(x.shape[-1], 3, padding="same")
            x = layers.Add()([x, layers.ReLU()(again(x))])
            made.append(again)
    model = randomized(keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x))), seed)
    for conv in made:
        if isinstance(conv, layers.Conv2D) and not isinstance(conv, layers.Conv2DTranspose):
            zero(conv, rng.choice(conv.filters, conv.filters // 2, replace=False), bias=float(rng.choice([-1, 0, 0.5])))
    simplified = checked(model)
    assert simplified.count_params() < model.count_params()


def test_several_inputs_and_outputs_and_nested_models():
    inner_input = keras.Input((8, 8, 4))
    inner = keras.Sequential(
        [inner_input, layers.Conv2D(4, 3, padding="same", name="conv"), layers.BatchNormalization()]
    )
    one, two = keras.Input((8, 8, 3), name="one"), keras.Input((8, 8, 3), name="two")
    shared = layers.Conv2D(4, 3, padding="same", name="shared")
    x = layers.Add()([inner(shared(one)), inner(shared(two))])
    outputs = {"map": layers.Conv2D(2, 1, name="map")(x), "scores": layers.Dense(3, name="scores")(
        layers.GlobalAveragePooling2D()(layers.Dropout(0.2)(x)))}  # fmt: skip
    model = randomized(keras.Model({"one": one, "two": two}, outputs))
    simplified = checked(model)
    assert simplified.output_names == model.output_names
    assert [tensor.name for tensor in simplified.inputs] == ["one", "two"]
    assert not any(isinstance(layer, layers.BatchNormalization | layers.Dropout) for layer in simplified.layers)


def test_it_saves_reloads_and_trains(tmp_path):
    simplified = checked(randomized(tiny_cnn()))
    simplified.save(tmp_path / "model.keras")
    reloaded = keras.saving.load_model(tmp_path / "model.keras")
    inputs = inputs_of(simplified)
    np.testing.assert_allclose(outputs_of(reloaded, inputs)[0], outputs_of(simplified, inputs)[0], rtol=1e-6, atol=1e-6)
    simplified.compile("sgd", "mse")
    simplified.fit(inputs, np.zeros((5, 4)), verbose=0)


def test_a_model_with_nothing_to_do_is_a_copy():
    model = chain((6,), layers.Dense(4, activation="relu", name="one"), layers.Dense(2, name="two"))
    simplified, certificate = simplify_with_certificate(model)
    assert simplified is not model and names(simplified) == ["one", "two"]
    assert certificate.steps == () and "nothing to simplify" in str(certificate)


def test_the_certificate_says_what_was_done_and_how_close_it_is():
    model = randomized(tiny_cnn())
    x = inputs_of(model)
    certificate = simplify_with_certificate(model, data=x)[1]
    assert certificate.steps[0] == package.Step("stem_bn", "BatchNormalization", "folded into 'stem' before it")
    assert 0 < certificate.data_difference < 1e-5 and 0 < certificate.random_difference < 1e-5
    assert certificate.macs[0] == tfc.count_macs(model)
    assert "stem_bn" in str(certificate) and "on the data" in str(certificate)
    assert certificate.to_dict()["steps"][0]["layer"] == "stem_bn"


@pytest.mark.parametrize("form", [lambda x: x, lambda x: [x, x], lambda x: [(x, np.zeros(5))], lambda x: {"image": x}])
def test_data_of_any_form(form):
    model = tiny_cnn()
    assert simplify_with_certificate(model, data=form(inputs_of(model)))[1].data_difference < 1e-5


def test_data_that_does_not_fit():
    model = tiny_cnn()
    with pytest.raises(DataError, match=r"must have the shape \(batch, 8, 8, 1\). Received: \(5, 8, 8, 3\)"):
        simplify(model, data=np.zeros((5, 8, 8, 3)))
    with pytest.raises(DataError, match="holds no sample"):
        simplify(model, data=[])
    with pytest.raises(InvalidArgumentError, match="`data` must be a Dataset, batches"):
        simplify(model, data=3)


@pytest.mark.parametrize("value", [np.ones((6, 8)), np.ones((6, 8)).tolist()], ids=["array", "list"])
def test_initial_values_that_are_arrays_hinder_nothing(value):
    table = keras.initializers.Constant(value)
    merged = chain((6,), layers.Dense(8, kernel_initializer=table, name="one"), layers.Dense(2, name="two"))
    assert names(checked(merged)) == ["two"]
    tokens = keras.Input((5,), dtype="int32")
    x = layers.Embedding(6, 8, embeddings_initializer=table, name="table")(tokens)
    model = randomized(keras.Model(tokens, layers.Dense(4, name="reader")(layers.GlobalAveragePooling1D()(x))))
    kernel = model.get_layer("reader").kernel
    kernel.assign(np.array(kernel) * (np.arange(8) != 3)[:, None])
    simplified, words = simplify(model), np.arange(30).reshape(6, 5) % 6
    assert simplified.get_layer("table").output_dim == 7
    np.testing.assert_allclose(simplified(words), model(words), atol=1e-5)


def stateful():
    inputs = keras.Input(batch_shape=(3, 5, 4))
    x = layers.BatchNormalization(name="norm")(layers.Dense(6, name="dense")(inputs))
    x = layers.Bidirectional(layers.GRU(4, stateful=True, return_sequences=True), name="both")(x)
    return randomized(keras.Model(inputs, layers.Dense(2, name="last")(layers.LSTM(4, stateful=True, name="lstm")(x))))


def test_states_are_no_difference_and_stay():
    model, x = stateful(), np.random.default_rng(0).normal(size=(7, 5, 4)).astype("float32")
    model(x[:3])
    states = [state for name in ("lstm", "both") for layer in model.get_layer(name)._flatten_layers()
              for state in getattr(layer, "states", None) or []]  # fmt: skip
    before = [np.array(state) for state in states]
    assert len(states) >= 4 and all(np.abs(state).max() > 0 for state in before)
    simplified, certificate = simplify_with_certificate(model, data=x)
    assert certificate.data_difference < 1e-5 and certificate.random_difference < 1e-5
    assert not gives_probabilities(model)
    for state, value in zip(states, before, strict=True):
        np.testing.assert_array_equal(state, value)
    for state in states:
        state.assign(np.zeros(state.shape))
    assert names(simplified) == ["dense", "both", "lstm", "last"]
    for batch in (x[:3], x[3:6]):  # Both carry the same on.
        np.testing.assert_allclose(simplified(batch), model(batch), atol=1e-5)
    with pytest.raises(DataError, match="not one batch of the size"):
        simplify(model, data=x[:2])


def test_weights_of_half_precision_are_refused_by_name():
    steps = [layers.Dense(4, dtype="float16", name="half"), layers.BatchNormalization(dtype="float16")]
    with pytest.raises(ModelError, match="'half' has float16 variables.*Rebuild the model with the dtype policy"):
        simplify(chain((6,), *steps))


def test_a_pass_that_changes_the_function_is_refused_by_name(monkeypatch):
    honest = package.PASSES["folding into the layer before"]

    def wrong(traced):
        traced, steps = honest(traced)
        for call in traced.calls:
            if steps and call.operation.name == "stem":
                call.operation.bias.assign(call.operation.bias + 0.01)
        return traced, steps

    monkeypatch.setitem(package.PASSES, "folding into the layer before", wrong)
    with pytest.raises(ModelError, match="after folding into the layer before its outputs.*Changed were stem_bn"):
        simplify(randomized(tiny_cnn()))


def test_models_that_are_refused_or_left_as_they_are():
    class Subclassed(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ModelError, match="must be a functional or Sequential model"):
        simplify(Subclassed())

    class NoConfig(layers.Layer):
        def __init__(self, size):
            super().__init__()

        def call(self, x):
            return x * 2

    inputs = keras.Input((4,))
    with pytest.raises(ModelError, match="one of its layers cannot be copied. Give it a `get_config`"):
        simplify(keras.Model(inputs, layers.Dense(2)(NoConfig(3)(inputs))))
    aware = tfc.quantize_aware(tiny_cnn(), calibration=inputs_of(tiny_cnn()))
    same, certificate = simplify_with_certificate(aware)
    assert names(same) == names(aware) and certificate.steps == ()
    assert "fake quantization and is left as it is" in str(certificate)


def test_mixed_precision_is_compared_in_float32():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = randomized(tiny_cnn())
        simplified, certificate = simplify_with_certificate(model)
    finally:
        keras.config.set_dtype_policy("float32")
    assert certificate.random_difference < 1e-5
    assert "stem_bn" not in names(simplified)
    assert simplified.get_layer("stem").compute_dtype == "float16"


def test_the_command(tmp_path, capsys):
    tiny_cnn().save(tmp_path / "model.keras")
    assert run_command(["simplify", str(tmp_path / "model.keras"), str(tmp_path / "smaller.keras")]) == 0
    assert "folded into 'stem' before it" in capsys.readouterr().out
    assert "stem_bn" not in names(keras.saving.load_model(tmp_path / "smaller.keras"))
    assert run_command(["simplify", str(tmp_path / "model.keras"), str(tmp_path / "smaller.h5")]) == 2


@pytest.mark.slow
def test_a_trained_network():
    model = tfc.load(shared_path("models/resnet8_cifar10.h5"))
    simplified, certificate = simplify_with_certificate(model)
    assert not any(isinstance(layer, layers.BatchNormalization) for layer in simplified.layers)
    assert certificate.random_difference < 1e-5


def test_an_export_leaves_dead_channels_out_and_says_so(tmp_path):
    model = randomized(tiny_cnn())
    zero(model.get_layer("hidden"), slice(0, 12), bias=-1.0)
    plain = tfc.export_tflite(model, tmp_path / "plain.tflite", mode="float32", parity_samples=8, simplify=False)
    result = tfc.export_tflite(model, tmp_path / "model.tflite", mode="float32", parity_samples=8)
    # 12 of 16 units of (8 + 1) weights, and what the last layer reads of them.
    assert plain.file_bytes - result.file_bytes >= 12 * (8 + 1 + 4) * 4
    assert plain.notes == ()
    assert result.notes == ("3 layers were simplified first: 980 parameters became 800",)
    assert result.parity.samples == 8


def test_an_export_of_what_cannot_be_simplified_says_why(tmp_path):
    class NoConfig(layers.Layer):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def call(self, x):
            return x * self.factor

    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2)(NoConfig(2.0)(inputs)))
    result = tfc.export_tflite(model, tmp_path / "model.tflite", mode="float32", parity_samples=4)
    assert "was converted without simplification" in result.notes[0]
