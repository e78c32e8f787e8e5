"""Images made from what a teacher remembers: against steps written out, what they are worth, and what is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import CLOSE, blobs, cross_entropy, tiny_mlp
from keras import layers

import tfcompress as tfc
from tfcompress.errors import InvalidArgumentError, ModelError, TrainingError
from tfcompress.techniques.distill import Distiller, SoftTargets, synthesize

RANGE = (-2.0, 6.0)  # Of pixels, so that a mean of 0 or a width of 1 would show.


def scaled(images):
    return RANGE[0] + (RANGE[1] - RANGE[0]) * images


def two_norms(name="teacher", softmax=False):
    """A network of 8x8x1 with a BatchNormalization at its beginning, and one in a nested network."""
    inner = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(12, 3, padding="same", use_bias=False),
            layers.BatchNormalization(momentum=0.8),
        ]
    )
    inputs = keras.Input((8, 8, 1))
    x = layers.BatchNormalization(momentum=0.8)(inputs)
    x = layers.ReLU()(inner(x))
    x = layers.Conv2D(12, 3, strides=2, activation="relu")(x)
    outputs = layers.Dense(4, activation="softmax" if softmax else None)(layers.Flatten()(x))
    return keras.Model(inputs, outputs, name=name)


@pytest.fixture(scope="module")
def teacher():
    keras.utils.set_random_seed(0)
    model = two_norms()
    model.compile(keras.optimizers.Adam(1e-2), cross_entropy(), metrics=["accuracy"], jit_compile=False)
    x, y = blobs(256)
    model.fit(scaled(x), y, batch_size=32, epochs=6, verbose=0)
    x, y = blobs(128, seed=1)
    assert model.evaluate(scaled(x), y, verbose=0, return_dict=True)["accuracy"] > 0.95
    return model


def norms(model):
    """Each BatchNormalization, and a network that gives what comes to it."""
    inner = model.layers[2]
    first = keras.Model(model.inputs, model.layers[0].output)
    second = keras.Sequential([model.layers[1], inner.layers[0]])
    return [(model.layers[1], first), (inner.layers[1], second)]


def statistics_distance(model, images):
    total = 0.0
    for norm, network in norms(model):
        values = network(images, training=False) if len(network.layers) > 1 else tf.convert_to_tensor(images)
        mean, variance = tf.reduce_mean(values, (0, 1, 2)), tf.math.reduce_variance(values, (0, 1, 2))
        total += tf.norm(mean - norm.moving_mean.value) + tf.norm(variance - norm.moving_variance.value)
    return total


def written_out(model, *, seed, batch, steps, rate, weights):
    """The same search in NumPy's Adam, by the gradient of a loss of its own."""
    pixels = np.clip(tf.random.stateless_normal((batch, 8, 8, 1), seed, stddev=0.5).numpy(), -1, 1)
    targets = np.arange(batch) % 4
    first, second = np.zeros_like(pixels), np.zeros_like(pixels)
    for step in range(1, steps + 1):
        with tf.GradientTape() as tape:
            variable = tf.Variable(pixels)
            images = 2.0 + 4.0 * variable
            sure = tf.reduce_mean(tf.keras.losses.sparse_categorical_crossentropy(targets, model(images), True))
            down, right = variable[:, 1:] - variable[:, :-1], variable[:, :, 1:] - variable[:, :, :-1]
            smooth = tf.reduce_mean(down**2) + tf.reduce_mean(right**2)
            terms = [statistics_distance(model, images), smooth, tf.reduce_mean(variable**2)]
            loss = sure + sum(weight * term for weight, term in zip(weights, terms, strict=True))
        slope = tape.gradient(loss, variable).numpy()
        first = 0.9 * first + 0.1 * slope
        second = 0.999 * second + 0.001 * slope**2
        move = (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-7)
        pixels = np.clip(pixels - rate * move, -1, 1)
    return 2.0 + 4.0 * pixels


def test_steps_equal_some_written_out(teacher):
    before = teacher.get_weights()
    weights = (0.3, 0.7, 0.2)
    options = {"batch_size": 8, "steps": 4, "learning_rate": 0.1, "input_range": RANGE, "progress": False}
    options |= dict(zip(("statistics_weight", "variation_weight", "l2_weight"), weights, strict=True))
    images, labels = synthesize(teacher, 12, seed=3, **options)
    for number, part in enumerate((images[:8], images[8:])):
        expected = written_out(teacher, seed=(3, number), batch=8, steps=4, rate=0.1, weights=weights)
        # Where a slope is next to nothing, Adam's step hangs on its rounding.
        difference = np.abs(part - expected[: len(part)])
        assert np.median(difference) < 1e-4 and np.mean(difference > 2e-3) < 0.05 and difference.max() < 0.4
    np.testing.assert_array_equal(labels, teacher.predict(images, verbose=0).argmax(-1))
    assert images.dtype == "float32" and labels.dtype == "int32"

    again, _ = synthesize(teacher, 12, seed=3, **options)
    np.testing.assert_array_equal(again, images)
    other, _ = synthesize(teacher, 12, seed=4, **options)
    assert np.abs(other - images).max() > 0.1
    for old, new in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert "call" not in vars(teacher.layers[1])


def distilled(teacher, images):
    """Accuracy on true images of a student that has seen others only."""
    keras.utils.set_random_seed(1)
    pixels = layers.Rescaling(0.25, offset=-0.5)
    student = keras.Sequential(
        [keras.Input((8, 8, 1)), pixels, layers.Flatten(), layers.Dense(16, "relu"), layers.Dense(4)]
    )
    distiller = Distiller(student, teacher, [SoftTargets(temperature=2.0, weight=1.0)])
    distiller.compile(keras.optimizers.Adam(1e-2), cross_entropy(), jit_compile=False)
    distiller.fit(images, np.zeros(len(images), "int32"), batch_size=32, epochs=8, verbose=0)
    x, y = blobs(128, seed=1)
    return (student.predict(scaled(x), verbose=0).argmax(-1) == y).mean()


def test_a_student_learns_from_them_what_it_does_not_learn_from_noise(teacher):
    images, labels = synthesize(teacher, 128, batch_size=64, steps=100, input_range=RANGE, progress=False)
    assert images.min() >= RANGE[0] and images.max() <= RANGE[1]
    noise = np.random.default_rng(0).uniform(*RANGE, size=images.shape).astype("float32")
    near, far = (float(statistics_distance(teacher, side[:64])) for side in (images, noise))
    # Of true images it is 0.13, of noise 4.4.
    assert near < 0.1 * far
    assert np.bincount(labels, minlength=4).min() > 25
    probabilities = keras.ops.softmax(teacher.predict(images, verbose=0))
    assert np.mean(np.max(probabilities, -1)) > 0.9
    of_images, of_noise = distilled(teacher, images), distilled(teacher, noise)
    assert of_images > 0.9 and of_images > of_noise + 0.1, (of_images, of_noise)


def test_probabilities_and_mixed_precision():
    """A softmax at the end, and layers that compute in bfloat16."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = two_norms(softmax=True)
    finally:
        keras.config.set_dtype_policy("float32")
    images, labels = synthesize(model, 5, batch_size=8, steps=3, progress=False)
    assert images.shape == (5, 8, 8, 1) and images.dtype == "float32" and labels.shape == (5,)
    assert np.isfinite(images).all() and images.min() >= 0 and images.max() <= 1


def test_it_is_a_public_name():
    assert tfc.synthesize is synthesize


def norm_first(*more, shape=(8, 8, 1), **options):
    return keras.Sequential([keras.Input(shape, **options), layers.BatchNormalization(), *more])


def classes(count=4):
    return layers.Flatten(), layers.Dense(count)


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (two_norms, {"count": 0}, InvalidArgumentError, "`synthesize.count` must be an integer of at least 1"),
        (two_norms, {"batch_size": 1}, InvalidArgumentError, "`synthesize.batch_size` must be an integer of at least"),
        (two_norms, {"steps": 1.5}, InvalidArgumentError, "`synthesize.steps` must be an integer"),
        (two_norms, {"learning_rate": 0.0}, InvalidArgumentError, "`synthesize.learning_rate` must be a number above"),
        (two_norms, {"input_range": (1, 0)}, InvalidArgumentError, r"must be \(lowest, highest\) pixel value"),
        (two_norms, {"l2_weight": -1.0}, InvalidArgumentError, "`synthesize.l2_weight` must be a number of at least 0"),
        (lambda: "model.keras", {}, InvalidArgumentError, "`synthesize.teacher` must be a Keras model; `tfcompress"),
        (lambda: tiny_mlp(), {}, ModelError, r"must take one image of known size.*\(None, 8\)"),
        (lambda: norm_first(*classes(), dtype="uint8"), {}, ModelError, "must take floats"),
        (lambda: norm_first(*classes(1)), {}, ModelError, r"at least 2 classes.*\(None, 1\)"),
        (lambda: norm_first(layers.Dense(4)), {}, ModelError, r"at least 2 classes.*\(None, 8, 8, 4\)"),
        (
            lambda: keras.Sequential([keras.Input((8, 8, 1)), *classes()]),
            {},
            ModelError,
            "must have BatchNormalization.*Pass the model as it was trained",
        ),
    ],
)
def test_what_is_refused(make, options, error, message):
    with pytest.raises(error, match=message):
        synthesize(make(), **{"count": 4, "progress": False, **options})


def test_a_loss_that_is_no_number_is_an_error():
    model = norm_first(*classes())
    model.layers[0].moving_mean.assign([np.nan])
    with pytest.raises(TrainingError, match="The loss became nan"):
        synthesize(model, 4, batch_size=4, steps=1, progress=False)


def test_taps_hear_what_comes_to_a_layer():
    from tfcompress.techniques.distill.features.taps import Tap, Taps

    model = tiny_mlp()
    taps = Taps(model, [Tap("second", inputs=True), Tap("first")])
    with taps.listening() as heard:
        model(blobs(4, shape=(8,))[0])
    found = taps.values(heard)
    np.testing.assert_allclose(found[Tap("second", inputs=True)], found[Tap("first")], **CLOSE)
