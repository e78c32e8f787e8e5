"""Which losses take which outputs: what is refused, by which fact, and what is taken."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import CLOSE
from keras import layers

from tfcompress.errors import InvalidArgumentError
from tfcompress.techniques.distill import (
    AveragedTeacher,
    Distiller,
    Ensemble,
    Mixup,
    MultiLabelTargets,
    OutputMatching,
    Scheduled,
    SoftTargets,
    StoredOutputs,
    TeacherBounded,
    WhereConfident,
    WhereLabelled,
)
from tfcompress.techniques.distill.fitting import innermost
from tfcompress.techniques.distill.stored_outputs import largest

X = np.random.default_rng(0).normal(size=(16, 8)).astype("float32")
OF_LABELS = keras.losses.BinaryCrossentropy(from_logits=True)


def linear(activation=None, units=3, name=None):
    return keras.Sequential([keras.Input((8,)), layers.Dense(units, activation=activation)], name=name)


class Own(keras.Model):
    """A network without a graph."""

    def __init__(self, activation=None, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(3, activation=activation)

    def call(self, inputs, training=False):
        return self.dense(inputs)


def values(x):
    return x[:, :3]


def two(first=None, second=None):
    inputs = keras.Input((8,))
    first, second = layers.Dense(1, first, name="first")(inputs), layers.Dense(3, second, name="second")(inputs)
    return keras.Model(inputs, [first, second])


def fitted(student, teacher, loss, own="mse", **options):
    distiller = Distiller(student, teacher, [loss], **options)
    distiller.compile(keras.optimizers.SGD(0.0), own, run_eagerly=True)
    return distiller.fit(X, (X[:, :3] > 0).astype("float32"), batch_size=16, verbose=0).history


def weight(step):
    return 0.5


RAW = "must be one of raw outputs with {}, not of probabilities of classes: {}"
STORED = np.random.default_rng(1).normal(size=(9, 3)).astype("float32")


@pytest.mark.parametrize(
    "loss",
    [OutputMatching(), TeacherBounded(), Scheduled(MultiLabelTargets(), weight=weight)],
    ids=["OutputMatching", "TeacherBounded", "MultiLabelTargets"],
)
@pytest.mark.parametrize(
    ("make", "way_out"),
    [
        (lambda loss: Distiller(linear(), Ensemble([values, values]), [loss]), 'give the `Ensemble` combine="logits"'),
        (
            lambda loss: Distiller(linear(), Ensemble([linear(), linear("softmax")], combine="logits"), [loss]),
            "leave out the softmax",
        ),
        (lambda loss: Distiller(linear(), linear("softmax"), [loss]), "leave out the softmax"),
        (lambda loss: Distiller(linear("softmax"), linear(), [loss]), "leave out the softmax"),
        (lambda loss: Distiller(linear(), StoredOutputs(STORED), [loss], mix=Mixup()), "give a live teacher"),
        (lambda loss: Distiller(linear(), StoredOutputs(tf.nn.softmax(STORED)), [loss]), "store raw outputs"),
        (
            lambda loss: Distiller(linear(), StoredOutputs.of_shards([[largest(STORED, 2)]], (3,)), [loss]),
            "without `top_k`",
        ),
        (
            lambda loss: Distiller(
                linear(),
                StoredOutputs.of_shards([[tf.nn.log_softmax(4 * STORED).numpy().astype("float16")]], (3,)),
                [loss],
            ),
            "store raw outputs",
        ),
        (lambda loss: fitted(Own("softmax"), linear(), loss), "leave out the softmax"),
        (lambda loss: fitted(linear(), lambda x: tf.nn.softmax(x[:, :3]), loss), "leave out the softmax"),
    ],
    ids=["ensemble", "member", "teacher", "student", "mix", "stored", "top-k", "cached", "own-student", "callable"],
)  # fmt: skip
def test_logarithms_of_probabilities_are_no_values(make, way_out, loss):
    with pytest.raises(InvalidArgumentError, match=RAW.format(type(innermost(loss)).__name__, ".*" + way_out)):
        make(loss)


def test_within_a_wrapper_too():
    with pytest.raises(InvalidArgumentError, match="raw outputs with OutputMatching"):
        Distiller(linear(), linear("softmax"), [WhereLabelled(OutputMatching())])
    with pytest.raises(InvalidArgumentError, match="with SoftTargets, not of sigmoids"):
        Distiller(linear(), linear("sigmoid"), [Scheduled(WhereConfident(SoftTargets()), weight=weight)])


@pytest.mark.parametrize("loss", [MultiLabelTargets(), SoftTargets()], ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize(
    "make",
    [
        lambda loss: Distiller(linear("sigmoid"), linear(), [Scheduled(loss, weight=weight)]),
        lambda loss: Distiller(two(), two(second="sigmoid"), {"second": [loss]}, hard_weight=0),
        lambda loss: Distiller(two(second="sigmoid"), two(), {"second": [loss]}, hard_weight=0),
        lambda loss: Distiller(linear(), Ensemble([linear(), linear("sigmoid")], combine="logits"), [loss]),
        lambda loss: Distiller(linear(), StoredOutputs(tf.sigmoid(STORED)), [loss]),
        lambda loss: fitted(linear(), lambda x: tf.sigmoid(x[:, :3]), loss, OF_LABELS),
        lambda loss: fitted(Own("sigmoid"), linear(), loss, keras.losses.BinaryCrossentropy()),
        lambda loss: fitted(Own("sigmoid"), linear(), loss, "binary_crossentropy"),
    ],
    ids=["scheduled", "second", "student-second", "member", "stored", "callable", "own-student", "by-name"],
)
def test_sigmoids_are_no_logits(make, loss):
    with pytest.raises(InvalidArgumentError, match=f"logits (or probabilities )?with {type(loss).__name__}.*sigmoid"):
        make(loss)


@pytest.mark.parametrize("loss", [OutputMatching(weight=1.0), MultiLabelTargets(weight=1.0)])
def test_what_fits_is_compared_as_it_is(loss):
    expected = None
    for student, teacher in (
        (linear(name="student"), values),
        (Own(), values),
        (linear(), Ensemble([values, values], combine="logits")),
    ):
        student(X)
        student.set_weights([np.eye(8, 3)[::-1], np.zeros(3)])
        found = fitted(student, teacher, loss, OF_LABELS)["distillation_loss"][0]
        if expected is None:
            expected = np.mean(loss(X[:, :3], X @ np.eye(8, 3)[::-1].astype("float32")))
        np.testing.assert_allclose(found, expected, **CLOSE)


def test_only_the_output_of_the_loss_counts():
    Distiller(two(first="sigmoid"), two(first="sigmoid"), {"second": [MultiLabelTargets()]}, hard_weight=1.0)
    Distiller(two(second="softmax"), two(second="softmax"), {"first": [OutputMatching()]}, hard_weight=1.0)
    sigmoids = {"first": [OutputMatching()], "second": [OutputMatching()]}
    Distiller(two("sigmoid", "sigmoid"), two("sigmoid", "sigmoid"), sigmoids, hard_weight=1.0)


def test_an_untrained_average_of_small_logits_is_not_taken_for_sigmoids():
    student = Own()
    student(X)
    student.set_weights([np.full((8, 3), 1e-3), np.array([0.1, 0.2, 0.3])])
    assert student(X).numpy().min() > 0 and student(X).numpy().max() < 1
    fitted(student, AveragedTeacher(student), MultiLabelTargets(), OF_LABELS)


@pytest.mark.parametrize("own", [keras.losses.BinaryCrossentropy(), "binary_crossentropy"], ids=["loss", "name"])
def test_binary_cross_entropy_takes_sigmoids(own):
    hard_sigmoid = keras.activations.hard_sigmoid
    for activation in ("sigmoid", hard_sigmoid, "softmax"):
        Distiller(linear(activation), values, [lambda t, s: s[:, 0]], hard_weight=1.0).compile("sgd", own)
    with pytest.raises(InvalidArgumentError, match="from_logits=True, since the student gives logits"):
        Distiller(linear(), values, [OutputMatching()]).compile("sgd", own)
    with pytest.raises(InvalidArgumentError, match="from_logits=False, since the student gives sigmoids"):
        Distiller(linear("sigmoid"), values, [OutputMatching()]).compile("sgd", OF_LABELS)
    with pytest.raises(InvalidArgumentError, match="from_logits=True, since the student gives logits"):
        Distiller(linear(), values).compile("sgd", "sparse_categorical_crossentropy")
