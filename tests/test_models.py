import keras
import numpy as np
import pytest
from helpers import shared_path

from tfcompress.errors import InvalidArgumentError
from tfcompress.models import FAMILIES, build

SMALL = {"mobilenet": {"depth": 0.2}, "mobilenet_v2": {"depth": 0.3}}


def sizes(model, kind):
    """Layer name to the height of what it gives, for the layers of a kind."""
    return {layer.name: layer.output.shape[1] for layer in model.layers if isinstance(layer, kind)}


def test_families():
    assert set(FAMILIES) == {"mlp", "lenet", "cnn", "resnet", "mobilenet", "mobilenet_v2", "vgg", "ds_cnn"}


@pytest.mark.parametrize("family", FAMILIES)
def test_gives_logits_of_plain_layers_and_reloads(family, tmp_path):
    side = 16 if family == "lenet" else 8
    model = build(family, input_shape=(side, side, 1), num_classes=3, **SMALL.get(family, {}))
    assert model.output_shape == (None, 3)
    assert model.layers[-1].name == "logits"
    assert model.layers[-1].activation is keras.activations.linear
    assert all(type(layer).__module__.startswith("keras.") for layer in model.layers)
    x = np.random.default_rng(0).uniform(size=(2, side, side, 1)).astype("float32")
    expected = np.asarray(model(x))
    assert np.isfinite(expected).all()
    assert np.std(expected) > 0
    model.save(tmp_path / "model.keras")
    reloaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(reloaded(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "family, input_shape, num_classes, arguments, expected",
    [
        ("mlp", (8, 8, 1), 10, {"widths": (32, 16)}, 64 * 32 + 32 + 32 * 16 + 16 + 16 * 10 + 10),
        ("mlp", (5,), 2, {"width": 4, "depth": 3}, 5 * 4 + 4 + 2 * (16 + 4) + 4 * 2 + 2),
        ("lenet", (28, 28, 1), 10, {}, 431_080),
        ("lenet", (16, 16, 3), 4, {"filters": [2, 3], "units": 5}, 75 * 2 + 2 + 50 * 3 + 3 + 3 * 5 + 5 + 5 * 4 + 4),
        # The student of LeNet-5 in our notes; batch normalization has 4 values a channel.
        ("cnn", (28, 28, 1), 10, {"widths": (8, 12, 16, 16, 16)}, 7_714),
        ("cnn", (8, 8, 1), 10, {"width": 8, "depth": 2}, (72 + 32) + (9 * 8 * 16 + 64) + 170),
        ("resnet", (32, 32, 3), 10, {}, 78_666),
        (
            "resnet",
            (32, 32, 3),
            10,
            {"depth": 20},
            # 19 convolutions with bias, 19 normalizations, two 1x1 shortcuts, one dense layer
            (432 + 80)
            + 6 * (2304 + 80)
            + (4608 + 160 + 512 + 32)
            + 5 * (9216 + 160)
            + (18432 + 320 + 2048 + 64)
            + 5 * (36864 + 320)
            + 650,
        ),
        ("vgg", (8, 8, 1), 10, {"depth": 4, "width": 8}, 104 + 608 + 1216 + 2368 + 170),
        # MLPerf Tiny's keyword spotting network has 24,908, with a bias in each of its 9 convolutions of 64.
        ("ds_cnn", (49, 10, 1), 12, {}, 24_908 - 9 * 64),
    ],
)
def test_parameters(family, input_shape, num_classes, arguments, expected):
    assert build(family, input_shape=input_shape, num_classes=num_classes, **arguments).count_params() == expected


@pytest.mark.parametrize(
    "family, reference, alpha",
    [("mobilenet", "MobileNet", 0.25), ("mobilenet_v2", "MobileNetV2", 0.35)],
)
def test_mobilenets_are_those_of_keras_applications(family, reference, alpha):
    shape = (96, 96, 3)
    theirs = getattr(keras.applications, reference)(input_shape=shape, alpha=alpha, classes=3, weights=None)
    ours = build(family, input_shape=shape, num_classes=3, alpha=alpha)
    assert ours.count_params() == theirs.count_params()
    last_map = [layer.output.shape[1:] for layer in theirs.layers if isinstance(layer, keras.layers.ReLU)][-1]
    assert ours.get_layer("global_pool").input.shape[1:] == last_map


@pytest.mark.parametrize("depth", [8, 14, 20, 32, 44, 56])
def test_resnet_has_its_depth(depth):
    model = build("resnet", input_shape=(8, 8, 1), num_classes=3, depth=depth, width=2)
    convolutions = [name for name in sizes(model, keras.layers.Conv2D) if "shortcut" not in name]
    assert len(convolutions) + 1 == depth


def test_resnet8_takes_the_weights_of_mlperf_tiny():
    path = shared_path("models/resnet8_cifar10.h5")
    tf_keras = pytest.importorskip("tf_keras")
    reference = tf_keras.models.load_model(path, compile=False)
    model = build("resnet", input_shape=(32, 32, 3), num_classes=10)
    model.set_weights(reference.get_weights())
    x = np.random.default_rng(0).integers(0, 256, size=(8, 32, 32, 3)).astype("float32")
    ours, theirs = keras.ops.softmax(model(x)), np.asarray(reference(x, training=False))
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("side, last", [(8, 4), (28, 7), (32, 4), (96, 6), (224, 7)])
def test_cnn_halves_until_below_8_pixels(side, last):
    model = build("cnn", input_shape=(side, side, 1), num_classes=3, depth=6, width=1)
    assert model.get_layer("global_pool").input.shape[1:3] == (last, last)
    assert model.get_layer("block1_conv").output.shape[1] == side  # The first convolution sees every pixel.


def test_cnn_downsampling():
    pooled = build("cnn", input_shape=(8, 8, 1), num_classes=3, widths=(2, 3, 4), strides=(1, 2, 1))
    strided = build(
        "cnn", input_shape=(8, 8, 1), num_classes=3, widths=(2, 3, 4), strides=(1, 2, 1), downsample="stride"
    )
    expected = {"block1_conv": 8, "block2_conv": 4, "block3_conv": 4}
    assert sizes(pooled, keras.layers.Conv2D) == sizes(strided, keras.layers.Conv2D) == expected
    assert sizes(pooled, keras.layers.MaxPooling2D) == {"block2_pool": 4}
    assert not sizes(strided, keras.layers.MaxPooling2D)
    assert pooled.count_params() == strided.count_params()


def test_convolutions_before_normalization_have_no_bias():
    for family in ("cnn", "vgg", "ds_cnn", "mobilenet", "mobilenet_v2"):
        model = build(family, input_shape=(8, 8, 1), num_classes=3, **SMALL.get(family, {}))
        convolutions = [layer for layer in model.layers if layer.name.endswith("_conv")]
        assert convolutions and not any(layer.use_bias for layer in convolutions)


SHAPE = {"input_shape": (8, 8, 1), "num_classes": 3}


@pytest.mark.parametrize(
    "family, arguments, message",
    [
        ("resnext", SHAPE, "`family` must be one of mlp, lenet, .* Received: 'resnext'"),
        ("cnn", {**SHAPE, "widht": 3}, "`arguments of cnn` must be among widths, width, depth, .* Received: 'widht'"),
        ("cnn", {**SHAPE, "input_shape": (8, 8)}, r"`input_shape` must be \(height, width, channels\) for cnn"),
        ("cnn", {**SHAPE, "input_shape": (8, 0, 1)}, r"`input_shape` must be whole numbers above 0"),
        ("mlp", {**SHAPE, "input_shape": 8}, r"`input_shape` must be the sizes of one sample"),
        ("cnn", {**SHAPE, "num_classes": 1}, "`num_classes` must be a whole number, at least 2. Received: 1"),
        ("cnn", {**SHAPE, "width": 0}, "`cnn.width` must be a whole number, at least 1. Received: 0"),
        ("cnn", {**SHAPE, "width": True}, "`cnn.width` must be a whole number"),
        ("cnn", {**SHAPE, "widths": ()}, "`cnn.widths` must be a sequence of whole numbers"),
        ("cnn", {**SHAPE, "widths": (4, 4), "strides": (1,)}, "`cnn.strides` must be 2 of whole numbers"),
        ("cnn", {**SHAPE, "depth": 2, "strides": (4, 4)}, r"large enough to be divided by strides \(4, 4\)"),
        ("cnn", {**SHAPE, "downsample": "avg"}, "`cnn.downsample` must be 'max_pool' or 'stride'"),
        ("mlp", {**SHAPE, "depth": 0}, "`mlp.depth` must be"),
        ("lenet", SHAPE, r"at least 16 x 16 pixels for this lenet. Received: \(8, 8, 1\)"),
        ("lenet", {**SHAPE, "filters": (1, 2, 3)}, "`input_shape`|`lenet.filters` must be 2 of whole numbers"),
        ("resnet", {**SHAPE, "depth": 10}, r"`resnet.depth` must be 8, 14, 20, 32, 44, 56, or another 6n \+ 2"),
        ("resnet", {**SHAPE, "depth": 2}, "`resnet.depth` must be a whole number, at least 8"),
        ("resnet", {**SHAPE, "input_shape": (3, 8, 1)}, "at least 4 x 4 pixels"),
        ("vgg", {**SHAPE, "depth": 5}, "`vgg.depth` must be an even number"),
        ("vgg", {**SHAPE, "depth": 8}, "at least 16 x 16 pixels for this vgg"),
        ("mobilenet", {**SHAPE, "alpha": 0}, "`mobilenet.alpha` must be a number above 0"),
        ("mobilenet_v2", {**SHAPE, "depth": "1"}, "`mobilenet_v2.depth` must be a number above 0"),
        ("ds_cnn", {**SHAPE, "kernel_size": 3}, "`ds_cnn.kernel_size` must be 2 of whole numbers"),
    ],
)
def test_wrong_arguments(family, arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        build(family, **arguments)
