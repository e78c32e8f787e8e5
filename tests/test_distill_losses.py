"""Distillation losses of every kind of output against NumPy, their gradients against finite differences of NumPy's."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import CLOSE, blob_dataset, cross_entropy, tiny_mlp

from tfcompress.errors import InvalidArgumentError
from tfcompress.teach_settings import FeatureSettings, TeachSettings
from tfcompress.techniques.distill import (
    LOSSES,
    ChannelWiseTargets,
    CutMix,
    Decoupled,
    Distill,
    Distiller,
    HardLabels,
    KerasDistillation,
    LabelSmoothing,
    LogitMatching,
    Mixup,
    MultiLabelTargets,
    OutputMatching,
    PerClass,
    SoftCrossEntropy,
    SoftTargets,
    Standardized,
    TeacherBounded,
    WhereConfident,
    WhereCorrect,
    WhereLabelled,
    keras_losses,
)
from tfcompress.techniques.distill.by_name import FEATURE_LOSSES, teaching
from tfcompress.train_settings import TrainSettings
from tfcompress.training.fit import fit

CLASSES = 5
SHAPES = {"flat": (6, CLASSES), "sequence": (4, 3, CLASSES), "dense": (2, 3, 4, CLASSES)}
WEIGHTS = (0.5, 2.0, 0.0, 1.0, 3.0)


def softmax(x, axis=-1):
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def kl(p, q, axis=-1):
    return (p * (np.log(p) - np.log(q))).sum(axis)


def sample_mean(values):
    return values.reshape(len(values), -1).mean(1)


def soft(t, s, temperature):
    return temperature**2 * kl(softmax(t / temperature), softmax(s / temperature))


def z_scores(x):
    return (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)


def numpy_decoupled(t, s, labels, alpha, beta, temperature):
    """By the paper's definition, one position after the other."""
    values = np.zeros(t.shape[:-1])
    for place in np.ndindex(values.shape):
        p, q = softmax(t[place] / temperature), softmax(s[place] / temperature)
        k = labels[place] if 0 <= labels[place] < CLASSES else int(t[place].argmax())
        others = np.arange(CLASSES) != k
        target = kl(np.array([p[k], 1 - p[k]]), np.array([q[k], 1 - q[k]]))
        among = kl(p[others] / p[others].sum(), q[others] / q[others].sum())
        values[place] = temperature**2 * (alpha * target + beta * among)
    return sample_mean(values)


def numpy_multi_label(t, s, labels, temperature):
    p, q = (1 / (1 + np.exp(-side / temperature)) for side in (t, s))
    return sample_mean(temperature**2 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))))


def numpy_channel_wise(t, s, labels, temperature):
    t, s = (side.reshape(len(side), -1, CLASSES) / temperature for side in (t, s))
    return temperature**2 * kl(softmax(t, 1), softmax(s, 1), axis=1).mean(-1)


def numpy_bounded(t, s, labels, margin):
    of_teacher, of_student = (((side - labels) ** 2).mean(-1) for side in (t, s))
    return sample_mean(np.where(of_student + margin > of_teacher, of_student, 0))


def numpy_huber(t, s, labels, delta):
    apart = np.abs(t - s)
    return sample_mean(np.where(apart <= delta, 0.5 * apart**2, delta * (apart - 0.5 * delta)))


def numpy_where_labelled(t, s, labels):
    stays = labels != -1
    values = np.where(stays, soft(t, s, 4.0), 0).reshape(len(t), -1)
    return values.sum(1) / np.maximum(stays.reshape(len(t), -1).sum(1), 1)


def one_hot(classes):
    return np.eye(CLASSES)[classes]


def classes_of(t, labels):
    return np.where((labels >= 0) & (labels < CLASSES), labels, t.argmax(-1))


CASES = {
    "soft_targets": (SoftTargets(temperature=3.0), lambda t, s, y: sample_mean(soft(t, s, 3.0))),
    "soft_cross_entropy": (
        SoftCrossEntropy(temperature=3.0),
        lambda t, s, y: sample_mean(-9 * (softmax(t / 3) * np.log(softmax(s / 3))).sum(-1)),
    ),
    "logit_matching": (
        LogitMatching(),
        lambda t, s, y: sample_mean((t - t.mean(-1, keepdims=True) - s + s.mean(-1, keepdims=True)) ** 2),
    ),
    "hard_labels": (
        HardLabels(),
        lambda t, s, y: sample_mean(-(one_hot(t.argmax(-1)) * np.log(softmax(s))).sum(-1)),
    ),
    "label_smoothing": (
        LabelSmoothing(),
        lambda t, s, y: sample_mean(kl(np.full(s.shape, 1 / CLASSES), softmax(s))),
    ),
    "decoupled": (
        Decoupled(alpha=0.7, beta=3.0, temperature=2.0),
        lambda t, s, y: numpy_decoupled(t, s, y, 0.7, 3.0, 2.0),
    ),
    "standardized": (
        Standardized(SoftTargets(temperature=2.0)),
        lambda t, s, y: sample_mean(soft(z_scores(t), z_scores(s), 2.0)),
    ),
    "standardized_decoupled": (
        Standardized(Decoupled(beta=2.0, temperature=2.0)),
        lambda t, s, y: numpy_decoupled(z_scores(t), z_scores(s), y, 1.0, 2.0, 2.0),
    ),
    "multi_label": (MultiLabelTargets(temperature=2.0), lambda t, s, y: numpy_multi_label(t, s, y, 2.0)),
    "channel_wise": (ChannelWiseTargets(temperature=2.0), lambda t, s, y: numpy_channel_wise(t, s, y, 2.0)),
    "squared": (OutputMatching(), lambda t, s, y: sample_mean((t - s) ** 2)),
    "absolute": (OutputMatching(distance="absolute"), lambda t, s, y: sample_mean(np.abs(t - s))),
    "huber": (OutputMatching(distance="huber", delta=1.5), lambda t, s, y: numpy_huber(t, s, y, 1.5)),
    "bounded": (TeacherBounded(margin=0.5), lambda t, s, y: numpy_bounded(t, s, y, 0.5)),
    "per_class": (
        PerClass(SoftTargets(), weights=WEIGHTS),
        lambda t, s, y: sample_mean(np.array(WEIGHTS)[classes_of(t, y)] * soft(t, s, 4.0)),
    ),
    "where_confident": (
        WhereConfident(Decoupled(beta=1.0), threshold=0.7),
        lambda t, s, y: sample_mean(
            (softmax(t).max(-1) >= 0.7)
            * numpy_decoupled(t.reshape(-1, CLASSES), s.reshape(-1, CLASSES), y.reshape(-1), 1, 1, 4).reshape(y.shape)
        ),
    ),
    "where_correct": (
        WhereCorrect(SoftTargets()),
        lambda t, s, y: sample_mean((t.argmax(-1) == y) * soft(t, s, 4.0)),
    ),
    "where_labelled": (WhereLabelled(SoftTargets(), ignored=-1), numpy_where_labelled),
    "nested": (
        PerClass(WhereCorrect(SoftTargets()), weights=WEIGHTS),
        lambda t, s, y: sample_mean(np.array(WEIGHTS)[classes_of(t, y)] * (t.argmax(-1) == y) * soft(t, s, 4.0)),
    ),
}
PAIRS = [
    pytest.param(name, kind, id=f"{name}-{kind}")
    for name in CASES
    for kind in SHAPES
    if not (name == "channel_wise" and kind == "flat")
]


def sides(kind, scale=2.0, seed=0):
    """Float32 outputs of teacher and student."""
    return np.random.default_rng(seed).normal(scale=scale, size=(2, *SHAPES[kind])).astype("float32")


def labels_of(name, kind, seed=1):
    """Labels of which some are the teacher's choice, some are not, and some are none; values for a regression."""
    rng = np.random.default_rng(seed)
    if name == "bounded":
        return rng.normal(scale=2.0, size=SHAPES[kind]).astype("float32")
    chosen, others = sides(kind)[0].argmax(-1), rng.integers(-1, CLASSES, SHAPES[kind][:-1])
    labels = np.where(rng.uniform(size=chosen.shape) < 0.5, chosen, others)
    labels.reshape(-1)[:2] = [-1, 255]
    return labels


def options(loss, name, kind):
    return {"labels": labels_of(name, kind)} if "labels" in loss.__call__.__code__.co_varnames else {}


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_values_and_gradients_equal_numpy(name, kind):
    loss, reference = CASES[name]
    teacher, student = sides(kind)
    labels = options(loss, name, kind)
    variable = tf.Variable(student)
    with tf.GradientTape() as tape:
        values = loss(teacher, variable, **labels)
        total = tf.reduce_sum(values)
    t, s = teacher.astype("float64"), student.astype("float64")
    y = labels_of(name, kind)
    expected = reference(t, s, y)
    assert values.shape == (len(t),) and values.dtype == "float32"
    assert np.any(expected > 1e-3)
    np.testing.assert_allclose(values, expected, **CLOSE)
    slopes = np.zeros(s.shape)
    for place in np.ndindex(s.shape):
        step = np.zeros(s.shape)
        step[place] = 1e-5
        slopes[place] = (reference(t, s + step, y) - reference(t, s - step, y)).sum() / 2e-5
    np.testing.assert_allclose(tape.gradient(total, variable), slopes, **CLOSE)


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"bounded", "where_correct", "where_labelled", "nested"}))
def test_without_labels_the_teacher_chooses(name):
    loss, reference = CASES[name]
    teacher, student = sides("sequence")
    expected = reference(teacher.astype("float64"), student.astype("float64"), teacher.argmax(-1))
    np.testing.assert_allclose(loss(teacher, student), expected, **CLOSE)


AT_REST = {
    "soft_targets": lambda t: t + 3.0,
    "logit_matching": lambda t: t + 3.0,
    "label_smoothing": lambda t: 0 * t + 2.0,
    "decoupled": lambda t: t + 3.0,
    "standardized": lambda t: 0.5 * t + 3.0,
    "multi_label": lambda t: t,
    "channel_wise": lambda t: t + np.arange(CLASSES, dtype="float32"),
    "squared": lambda t: t,
    "huber": lambda t: t,
    "per_class": lambda t: t + 3.0,
    "where_confident": lambda t: t + 3.0,
}


@pytest.mark.parametrize("name", AT_REST)
def test_zero_and_at_rest_where_the_docstring_says(name):
    loss, _ = CASES[name]
    teacher, _ = sides("dense")
    student = tf.Variable(AT_REST[name](teacher))
    with tf.GradientTape() as tape:
        values = loss(teacher, student)
    np.testing.assert_allclose(values, 0, atol=1e-5)
    np.testing.assert_allclose(tape.gradient(values, student), 0, atol=1e-5)


def test_bounded_regression_rests_on_the_labels_and_below_the_teacher():
    loss, label = TeacherBounded(margin=1.0), np.zeros((3, 1), "float32")
    teacher = np.array([[2.0], [2.0], [2.0]], "float32")
    student = np.array([[0.0], [1.7], [1.8]], "float32")
    np.testing.assert_allclose(loss(teacher, student, labels=label), [0, 0, 1.8**2], **CLOSE)
    np.testing.assert_allclose(loss(teacher, student, labels=label[:, 0]), [0, 0, 1.8**2], **CLOSE)


def test_soft_cross_entropy_and_hard_labels_are_least_where_they_say():
    teacher, student = sides("flat")
    loss = SoftCrossEntropy(temperature=3.0)
    assert np.all(np.asarray(loss(teacher, teacher + 1.0)) < np.asarray(loss(teacher, student)))
    np.testing.assert_allclose(HardLabels()(teacher, 1e3 * one_hot(teacher.argmax(-1))), 0, atol=1e-6)


def test_decoupled_with_the_weights_of_soft_targets_is_soft_targets():
    teacher, student = sides("flat")
    doubt = 1 - softmax(teacher / 2.0).max(-1)
    halves = [Decoupled(alpha=a, beta=b, temperature=2.0)(teacher, student) for a, b in ((1, 0), (0, 1))]
    np.testing.assert_allclose(halves[0] + doubt * halves[1], SoftTargets(temperature=2.0)(teacher, student), **CLOSE)


def test_standardized_logits_may_be_shifted_scaled_and_equal():
    teacher, student = sides("flat")
    loss = Standardized(SoftTargets(temperature=2.0))
    np.testing.assert_allclose(loss(teacher, 0.02 * student + 1.0), loss(5.0 * teacher, student), **CLOSE)
    equal = tf.Variable(np.zeros_like(student))
    with tf.GradientTape() as tape:
        values = loss(teacher, equal)
    assert np.abs(tape.gradient(values, equal)).max() < 200


def test_label_smoothing_beside_labels_is_that_of_keras_up_to_a_constant():
    _, student = sides("flat")
    y, share = np.arange(len(student)) % CLASSES, 0.3
    smoothed = keras.losses.categorical_crossentropy(one_hot(y), student, from_logits=True, label_smoothing=share)
    plain = keras.losses.sparse_categorical_crossentropy(y, student, from_logits=True)
    ours = (1 - share) * plain + share * (LabelSmoothing(weight=share)(student, student) + np.log(CLASSES))
    np.testing.assert_allclose(ours, smoothed, **CLOSE)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", CASES)
def test_extreme_outputs_stay_finite(name, dtype):
    loss, _ = CASES[name]
    kind = "dense"
    shape = SHAPES[kind]
    signs = np.random.default_rng(3).choice([-1e4, 0.0, 1e4], size=(2, *shape)).astype("float32")
    signs[:, 0, 0] = 0.0  # All equal.
    teacher, student = (tf.cast(side, dtype) for side in signs)
    with tf.GradientTape() as tape:
        tape.watch(student)
        values = loss(teacher, student, **options(loss, name, kind))
    gradient = tape.gradient(values, student)
    assert values.dtype == "float32"
    assert np.isfinite(values).all() and np.isfinite(tf.cast(gradient, "float32")).all()


def test_soft_targets_of_extreme_logits_equal_numpy():
    teacher, student = np.array([[1e4, -1e4, 0]], "float32"), np.array([[-1e4, 1e4, 0]], "float32")
    np.testing.assert_allclose(SoftTargets(temperature=1.0)(teacher, student), [2e4], rtol=1e-6)
    np.testing.assert_allclose(Decoupled(beta=0, temperature=1.0)(teacher, student), [2e4], rtol=1e-6)
    np.testing.assert_allclose(Decoupled(alpha=0, beta=1, temperature=1.0)(teacher, student), [1e4], rtol=1e-6)
    np.testing.assert_allclose(MultiLabelTargets()(teacher, student), [2e4 / 3], rtol=1e-6)


def test_xla_compiles_each_with_open_shapes():
    teacher, student = sides("sequence")
    classes, true = (tf.constant(labels_of(name, "sequence")) for name in ("decoupled", "bounded"))

    def values(teacher, student, classes, true):
        labels = {name: {"labels": true if name == "bounded" else classes} for name in CASES}
        return {
            name: loss(teacher, student, **(labels[name] if options(loss, name, "sequence") else {}))
            for name, (loss, _) in CASES.items()
        }

    outputs, integers = tf.TensorSpec((None, None, CLASSES)), tf.TensorSpec((None, None), classes.dtype)
    compiled = tf.function(values, jit_compile=True, input_signature=[outputs, outputs, integers, outputs])
    found, expected = compiled(teacher, student, classes, true), values(teacher, student, classes, true)
    assert all(value.shape == (len(teacher),) for value in found.values())
    for name in CASES:
        np.testing.assert_allclose(found[name], expected[name], **CLOSE, err_msg=name)


def linear(kind, seed):
    model = keras.Sequential([keras.Input((*SHAPES[kind][1:-1], 7)), keras.layers.Dense(CLASSES)])
    model.layers[0].kernel.assign(np.random.default_rng(seed).normal(size=(7, CLASSES)))
    return model


def a_step(names, kind, weights=None, **compiled):
    """Two steps on these losses, and what NumPy says of the first."""
    losses = [CASES[name][0] for name in names]
    x = np.random.default_rng(5).normal(size=(*SHAPES[kind][:-1], 7)).astype("float32")
    student, teacher = linear(kind, 1), linear(kind, 2)
    t, s = (np.asarray(model(x), "float64") for model in (teacher, student))
    # The teacher is right about every other sample.
    y = (t.argmax(-1) + np.arange(t[..., 0].size).reshape(t.shape[:-1]) % 2) % CLASSES
    y = labels_of("bounded", kind) if names == ["bounded"] else y
    expected = sum(
        loss.weight * np.mean(CASES[name][1](t, s, y) * (1 if weights is None else weights))
        for name, loss in zip(names, losses, strict=True)
    )
    # As a callable, which spares a look at its graph.
    distiller = Distiller(student, lambda inputs: teacher(inputs), losses, hard_weight=0.0)
    own = keras.losses.MeanSquaredError() if names == ["bounded"] else cross_entropy()
    distiller.compile(keras.optimizers.SGD(1e-3), own, **compiled)
    history = distiller.fit(x, y, batch_size=len(x), sample_weight=weights, epochs=2, verbose=0, shuffle=False).history
    return history["distillation_loss"], expected


@pytest.mark.parametrize(
    ("name", "kind"), [(name, "dense" if name in ("channel_wise", "where_labelled") else "flat") for name in CASES]
)
def test_a_distiller_trains_on_each_with_labels_and_weights(name, kind):
    weights = np.linspace(0, 2, SHAPES[kind][0]).astype("float32") if kind == "flat" else None
    (first, second), expected = a_step([name], kind, weights, run_eagerly=True)
    np.testing.assert_allclose(first, expected, **CLOSE)
    assert second < first


def test_a_compiled_step_has_several_at_once():
    (first, second), expected = a_step(["decoupled", "per_class"], "flat", np.linspace(0, 2, 6), jit_compile=True)
    np.testing.assert_allclose(first, expected, **CLOSE)
    assert second < first


@pytest.mark.slow
def test_two_replicas_have_their_own_labels():
    losses = [Decoupled(weight=0.3), WhereCorrect(Standardized(SoftTargets(temperature=2.0, weight=0.3)))]
    data, teacher, student = blob_dataset(shape=(8,)), tiny_mlp(name="teacher"), tiny_mlp()
    one, two = (
        fit(
            student,
            data,
            TrainSettings(epochs=1, strategy=strategy, optimizer="sgd", learning_rate=0.1),
            batch_size=32,
            seed=0,
            wrap=lambda replica: Distiller(replica, teacher, losses),
        )
        for strategy in ("default", "mirrored")
    )
    np.testing.assert_allclose(two.history["distillation_loss"], one.history["distillation_loss"], rtol=1e-4)
    for expected, actual in zip(one.model.get_weights(), two.model.get_weights(), strict=True):
        np.testing.assert_allclose(actual, expected, **CLOSE)


def test_labels_go_to_the_losses_that_ask_for_them():
    seen = {}

    def asks(teacher, student, labels=None):
        seen["labels"] = labels
        return tf.reduce_mean(tf.abs(teacher - student), -1)

    def asks_not(teacher, student):
        return tf.reduce_mean(tf.abs(teacher - student), -1)

    distiller = Distiller(linear("flat", 1), linear("flat", 2), [asks, asks_not], hard_weight=0.5)
    distiller.compile("adam", cross_entropy(), run_eagerly=True)
    y = np.array([4, 2, 0, 1, 3, 3])
    distiller.fit(np.ones((6, 7), "float32"), y, shuffle=False, verbose=0)
    np.testing.assert_array_equal(np.ravel(seen["labels"]), y)


def test_one_hot_labels_are_integer_labels():
    teacher, student = sides("sequence")
    labels = np.random.default_rng(0).integers(0, CLASSES, SHAPES["sequence"][:-1])
    for loss in (Decoupled(), PerClass(SoftTargets(), weights=WEIGHTS), WhereCorrect(SoftTargets())):
        expected = loss(teacher, student, labels=labels)
        for form in (one_hot(labels), labels[..., None], labels.astype("float32")):
            np.testing.assert_allclose(loss(teacher, student, labels=form), expected, **CLOSE)


def test_a_wrapper_has_the_weight_of_its_loss_and_takes_a_plain_callable():
    def plain(teacher, student):
        return tf.reduce_mean(tf.abs(teacher - student), -1)

    assert WhereConfident(Decoupled(weight=0.3), threshold=0.5).weight == 0.3
    assert PerClass(WhereCorrect(SoftTargets(weight=0.2)), weights=WEIGHTS).weight == 0.2
    assert WhereCorrect(plain).weight == 1.0
    teacher, student = sides("dense")
    expected = sample_mean((softmax(teacher).max(-1) >= 0.6) * np.abs(teacher - student).mean(-1))
    np.testing.assert_allclose(WhereConfident(plain, threshold=0.6)(teacher, student), expected, **CLOSE)


def logits_of(shape):
    return np.zeros(shape, "float32")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Decoupled(alpha=-1), "`Decoupled.alpha` must be a number of at least 0. Received: -1"),
        (lambda: Decoupled(beta=float("nan")), "`Decoupled.beta` must be"),
        (lambda: Decoupled(temperature=0), "`Decoupled.temperature` must be a number above 0"),
        (lambda: Decoupled(weight=2), "`Decoupled.weight` must be"),
        (lambda: HardLabels(weight=-0.1), "`HardLabels.weight` must be"),
        (lambda: LabelSmoothing(weight=2), "`LabelSmoothing.weight` must be"),
        (lambda: MultiLabelTargets(temperature=float("inf")), "`MultiLabelTargets.temperature` must be"),
        (lambda: MultiLabelTargets(weight=2), "`MultiLabelTargets.weight` must be"),
        (lambda: ChannelWiseTargets(temperature=-1), "`ChannelWiseTargets.temperature` must be"),
        (lambda: ChannelWiseTargets(weight=2), "`ChannelWiseTargets.weight` must be"),
        (lambda: OutputMatching(distance="cosine"), "`OutputMatching.distance` must be one of .*Received: 'cosine'"),
        (lambda: OutputMatching(delta=0), "`OutputMatching.delta` must be a number above 0"),
        (lambda: OutputMatching(weight=2), "`OutputMatching.weight` must be"),
        (lambda: TeacherBounded(margin=-1), "`TeacherBounded.margin` must be"),
        (lambda: TeacherBounded(weight=2), "`TeacherBounded.weight` must be"),
        (lambda: WhereConfident(SoftTargets(), threshold=80), "`WhereConfident.threshold` must be a probability"),
        (lambda: WhereConfident(3), "`WhereConfident.loss` must be a callable .* Received: 3"),
        (lambda: WhereConfident(ChannelWiseTargets()), "`WhereConfident.loss` must be a loss of class logits"),
        (lambda: WhereLabelled(MultiLabelTargets()), "`WhereLabelled.loss` must be a loss of class logits"),
        (lambda: WhereCorrect(TeacherBounded()), "`WhereCorrect.loss` must be a loss of class logits"),
        (lambda: PerClass(SoftTargets(), weights=[]), "`PerClass.weights` must be a list of numbers of at least 0"),
        (lambda: PerClass(SoftTargets(), weights={0: 1.0, 1: 5.0}), "`PerClass.weights` must be a list of numbers"),
        (
            lambda: PerClass(SoftTargets(), weights=[1, -1]),
            "`PerClass.weights` must be a list of numbers of at least 0",
        ),
        (
            lambda: PerClass(SoftTargets(), weights=[1, 1])(*sides("flat")),
            "`PerClass.weights` must be 5 numbers, one for each class",
        ),
        (lambda: WhereCorrect(SoftTargets())(*sides("flat")), "`WhereCorrect.labels` must be the true classes"),
        (lambda: WhereLabelled(SoftTargets())(*sides("flat")), "`WhereLabelled.labels` must be integers"),
        (lambda: TeacherBounded()(*sides("flat")), "`TeacherBounded.labels` must be the true values"),
        (
            lambda: TeacherBounded()(*sides("flat"), labels=np.zeros((6, 2))),
            r"`TeacherBounded.labels` must be of the student's shape \(6, 5\). Received: \(6, 2\)",
        ),
        (
            lambda: Decoupled()(*sides("sequence"), labels=np.zeros(4)),
            r"`Decoupled.labels` must be integer classes .*\(4, 3, 5\). Received: \(4,\)",
        ),
        (
            lambda: SoftTargets()(logits_of((2, 3)), logits_of((2, 4))),
            r"`SoftTargets.student_outputs` must be of the teacher's shape \(2, 3\). Received: \(2, 4\)",
        ),
        (lambda: SoftTargets()(logits_of((2,)), logits_of((2,))), "`SoftTargets.student_outputs` must be of shape"),
        (lambda: SoftTargets()(logits_of((2, 1)), logits_of((2, 1))), "at least 2 classes; `MultiLabelTargets` is for"),
        (lambda: ChannelWiseTargets()(*sides("flat")), r"must be of shape \(batch, positions..., channels\)"),
    ],
)
def test_what_does_not_fit_is_named(make, message):
    with pytest.raises(InvalidArgumentError, match=message):
        make()


def test_a_distiller_names_what_does_not_fit_before_the_first_step():
    x, y = np.ones((6, 7), "float32"), np.zeros(6, "int32")
    scalar = Distiller(linear("flat", 1), linear("flat", 2), [lambda t, s: tf.reduce_mean(t - s)], hard_weight=0.5)
    scalar.compile("adam", cross_entropy())
    with pytest.raises(InvalidArgumentError, match="one value per sample, shape"):
        scalar.fit(x, y, verbose=0)
    dense = Distiller(linear("sequence", 1), linear("sequence", 2), [SoftTargets()])
    dense.compile("adam", cross_entropy())
    with pytest.raises(InvalidArgumentError, match="`sample_weight` must be one number per sample; `WhereLabelled`"):
        dense.fit(np.ones((4, 3, 7), "float32"), np.zeros((4, 3), "int32"), sample_weight=np.ones((4, 3)), verbose=0)


def test_sigmoids_are_no_logits():
    sigmoid = keras.Sequential([keras.Input((7,)), keras.layers.Dense(CLASSES, activation="sigmoid")])
    apart = keras.Sequential([keras.Input((7,)), keras.layers.Dense(CLASSES), keras.layers.Activation("sigmoid")])
    with pytest.raises(InvalidArgumentError, match="`teacher` must be a model of logits with MultiLabelTargets"):
        Distiller(linear("flat", 1), sigmoid, [MultiLabelTargets()])
    with pytest.raises(InvalidArgumentError, match="`student` must be a model of logits with MultiLabelTargets"):
        Distiller(apart, linear("flat", 1), [MultiLabelTargets()])


needs_keras_distillation = pytest.mark.skipif(
    not hasattr(keras, "distillation"), reason="this Keras has no keras.distillation"
)


def keras_cases():
    distillation = getattr(keras, "distillation", None)
    if distillation is None:
        return {}
    return {
        "kl": distillation.LogitsDistillation(temperature=2.0, loss=keras.losses.KLDivergence()),
        "entropy": distillation.LogitsDistillation(loss=keras.losses.CategoricalCrossentropy(from_logits=True)),
        "mse": distillation.FeatureDistillation(loss="mse"),
    }


@needs_keras_distillation
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("name", keras_cases())
def test_keras_losses_as_they_are(name, kind):
    inner = keras_cases()[name]
    teacher, student = sides(kind)
    values = KerasDistillation(inner)(teacher, student)
    assert values.shape == (len(teacher),)
    np.testing.assert_allclose(np.mean(values), inner.compute_loss(teacher, student), **CLOSE)
    alone = [inner.compute_loss(teacher[i : i + 1], student[i : i + 1]) for i in range(len(teacher))]
    np.testing.assert_allclose(values, alone, **CLOSE)


@needs_keras_distillation
def test_xla_compiles_a_keras_loss_and_its_gradient():
    loss = KerasDistillation(keras_cases()["kl"])
    teacher, student = sides("flat")

    def slopes(student):
        with tf.GradientTape() as tape:
            tape.watch(student)
            values = loss(teacher, student)
        return tape.gradient(values, student)

    compiled = tf.function(slopes, jit_compile=True)(tf.constant(student))
    with tf.GradientTape() as tape:
        variable = tf.Variable(student)
        total = len(teacher) * loss.loss.compute_loss(teacher, variable)
    np.testing.assert_allclose(compiled, tape.gradient(total, variable), **CLOSE)


@needs_keras_distillation
def test_the_temperature_of_keras_is_ours():
    teacher, student = sides("flat")
    inner = keras.distillation.LogitsDistillation(temperature=3.0, loss=keras.losses.KLDivergence())
    # Keras clips probabilities, so it is a little off.
    np.testing.assert_allclose(
        KerasDistillation(inner)(teacher, student), SoftTargets(temperature=3.0)(teacher, student), rtol=1e-3
    )


@needs_keras_distillation
def test_a_distiller_takes_a_keras_loss_with_sample_weights():
    inner = keras.distillation.LogitsDistillation(temperature=2.0, loss=keras.losses.KLDivergence())
    x = np.random.default_rng(0).normal(size=(6, 7)).astype("float32")
    weights = np.linspace(0, 2, 6).astype("float32")
    student, teacher = linear("flat", 1), linear("flat", 2)
    values = KerasDistillation(inner)(teacher(x), student(x))
    distiller = Distiller(student, teacher, [inner], hard_weight=0.5)
    distiller.compile(keras.optimizers.SGD(1e-3), cross_entropy(), run_eagerly=True)
    history = distiller.fit(x, np.zeros(6), sample_weight=weights, epochs=2, verbose=0, shuffle=False).history
    np.testing.assert_allclose(history["distillation_loss"][0], np.mean(weights * values), **CLOSE)
    assert history["distillation_loss"][1] < history["distillation_loss"][0]


@needs_keras_distillation
def test_keras_losses_of_the_whole_batch():
    class Own(keras.distillation.DistillationLoss):
        def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
            return tf.reduce_max(tf.abs(teacher_outputs - student_outputs))

    summed = keras.distillation.LogitsDistillation(temperature=1.0, loss=keras.losses.KLDivergence(reduction="sum"))
    teacher, student = sides("flat")
    for inner in (Own(), summed):
        loss = KerasDistillation(inner)
        assert loss.needs_whole_batch
        np.testing.assert_allclose(loss(teacher, student), [inner.compute_loss(teacher, student)] * 6, **CLOSE)
        distiller = Distiller(linear("flat", 1), linear("flat", 2), [inner], hard_weight=0.5)
        distiller.compile("adam", cross_entropy(), run_eagerly=True)
        x, y = np.ones((6, 7), "float32"), np.zeros(6, "int32")
        assert np.isfinite(distiller.fit(x, y, verbose=0).history["loss"][0])
        with pytest.raises(InvalidArgumentError, match="`sample_weight` must be left out with KerasDistillation"):
            distiller.fit(x, y, sample_weight=np.ones(6), verbose=0)
        with pytest.raises(InvalidArgumentError, match="`WhereConfident.loss` must be a loss with a value for each"):
            WhereConfident(inner)


@needs_keras_distillation
def test_keras_losses_that_cannot_be_taken():
    between = keras.distillation.FeatureDistillation(teacher_layer_name="dense", student_layer_name="dense")
    with pytest.raises(InvalidArgumentError, match="one without names of layers, which `Features` has around it"):
        KerasDistillation(between)
    with pytest.raises(InvalidArgumentError, match="one of a single output"):
        KerasDistillation(keras.distillation.LogitsDistillation(loss=["mse", "mse"]))
    with pytest.raises(InvalidArgumentError, match=r"a `keras.distillation.DistillationLoss`"):
        KerasDistillation(SoftTargets())
    with pytest.raises(InvalidArgumentError, match=r"`KerasDistillation.weight` must be"):
        KerasDistillation(keras_cases()["kl"], weight=2)
    with pytest.warns(UserWarning, match="without a softmax"):
        KerasDistillation(keras.distillation.LogitsDistillation())


def test_a_keras_without_distillation_changes_nothing(monkeypatch):
    monkeypatch.setattr(keras_losses, "_KERAS", None)
    distiller = Distiller(linear("flat", 1), linear("flat", 2), [WhereConfident(SoftTargets(), threshold=0.1)])
    distiller.compile("adam", cross_entropy(), run_eagerly=True)
    assert distiller.fit(np.ones((6, 7)), np.zeros(6), verbose=0).history["distillation_loss"][0] > 0
    with pytest.raises(InvalidArgumentError, match="`Distiller.losses` must be a callable"):
        Distiller(linear("flat", 1), linear("flat", 2), [object()])


@pytest.mark.parametrize("kind", LOSSES)
def test_a_recipe_names_each_by_temperature_and_weight(kind):
    settings = TeachSettings(kind=kind, temperature=3.0, weight=0.25)
    lesson = teaching(settings, seed=0)
    (loss,) = lesson.losses
    assert loss.weight == 0.25
    assert getattr(getattr(loss, "loss", loss), "temperature", 3.0) == 3.0
    assert lesson.pairs == () and lesson.mix is None
    assert teaching(Distill(kind=kind, temperature=3.0, weight=0.25).teaching(), seed=0) == lesson


@pytest.mark.parametrize("kind", FEATURE_LOSSES)
def test_a_recipe_names_each_loss_of_features(kind):
    two = ("a", "b") if kind == "solution_flow" else "a"
    pair = FeatureSettings(kind=kind, teacher_layer=two, student_layer=two)
    weighted = dataclasses.replace(pair, weight=7.0)
    own, given = (teaching(TeachSettings(features=(one,)), seed=0) for one in (pair, weighted))
    assert own.pairs[0].weight == FEATURE_LOSSES[kind]().weight
    assert given.pairs[0].weight == 7.0 and isinstance(given.pairs[0].loss, FEATURE_LOSSES[kind])


def test_a_recipe_mixes_pictures():
    assert teaching(TeachSettings(mixup=0.2), seed=3).mix == Mixup(alpha=0.2, seed=3)
    assert teaching(TeachSettings(cutmix=1.0), seed=3).mix == CutMix(alpha=1.0, seed=3)


def test_a_tflite_teacher_of_dense_outputs(tmp_path):
    teacher = keras.Sequential([keras.Input((4, 4, 2)), keras.layers.Conv2D(CLASSES, 3, padding="same")])
    (tmp_path / "dense.tflite").write_bytes(tf.lite.TFLiteConverter.from_keras_model(teacher).convert())
    student = keras.Sequential([keras.Input((4, 4, 2)), keras.layers.Conv2D(CLASSES, 1)])
    x = np.random.default_rng(0).normal(size=(8, 4, 4, 2)).astype("float32")
    expected = np.mean(CASES["soft_targets"][0](teacher(x), student(x)))
    distiller = Distiller(student, tmp_path / "dense.tflite", [SoftTargets(temperature=3.0, weight=1.0)])
    distiller.compile(keras.optimizers.SGD(0.0), cross_entropy())
    history = distiller.fit(x, np.zeros((8, 4, 4)), verbose=0).history
    np.testing.assert_allclose(history["distillation_loss"][0], expected, rtol=1e-3)
