"""What is minimized: schedules, weights that adapt or are learned, mixed pictures, the watch over the plain loss."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import CLOSE, blobs, cross_entropy, numpy_log_softmax, tiny_cnn, tiny_mlp
from keras import ops

from tfcompress.errors import InvalidArgumentError
from tfcompress.techniques.distill import (
    ByCertainty,
    ChannelWiseTargets,
    CollapseWarning,
    CutMix,
    Decoupled,
    Distiller,
    Features,
    HardLabels,
    LogitMatching,
    Mixup,
    MultiLabelTargets,
    Scheduled,
    SoftCrossEntropy,
    SoftTargets,
    StoredOutputs,
    WhereAgreeing,
)
from tfcompress.techniques.distill.collapse import CollapseWatch
from tfcompress.techniques.distill.learned_weights import LearnedWeights
from tfcompress.techniques.distill.objective import Objective


def logits(seed=0, shape=(6, 5)):
    return np.random.default_rng(seed).normal(scale=3.0, size=(2, *shape)).astype("float32")


@pytest.mark.parametrize(
    "loss", [SoftTargets(), SoftCrossEntropy(), Decoupled(), MultiLabelTargets()], ids=lambda loss: type(loss).__name__
)
def test_a_temperature_by_schedule_is_that_temperature(loss):
    teacher, student = logits()
    scheduled = Scheduled(loss, temperature=lambda step: 2.0 + 0.5 * ops.cast(step, "float32"))
    labels = np.arange(6) % 5
    options = {"labels": labels} if isinstance(loss, Decoupled) else {}
    for step, temperature in ((0, 2.0), (4, 4.0)):
        fixed = type(loss)(temperature=temperature)(teacher, student, **options)
        np.testing.assert_allclose(scheduled(teacher, student, step=step, **options), fixed, **CLOSE)
    images = logits(shape=(2, 4, 4, 3))
    maps = Scheduled(ChannelWiseTargets(), temperature=lambda step: 3.0)
    np.testing.assert_allclose(maps(*images, step=0), ChannelWiseTargets(temperature=3.0)(*images), **CLOSE)


def fitted(losses, *, steps=3, student=None, teacher=None, rate=0.1, **options):
    """The student after some steps of plain gradient descent, and what was logged."""
    keras.utils.set_random_seed(5)
    student, teacher = student or tiny_mlp(), teacher or tiny_mlp(name="teacher")
    distiller = Distiller(student, teacher, losses, **options)
    distiller.compile(keras.optimizers.SGD(rate), cross_entropy())
    x, y = blobs(16, shape=(8,))
    logs = distiller.fit(x, y, epochs=steps, batch_size=16, shuffle=False, verbose=0).history
    return distiller, logs


def test_weights_by_schedule_step_by_step():
    def weight(step):
        return 0.8 - 0.3 * ops.cast(step, "float32")

    student, teacher = tiny_mlp(), tiny_mlp(name="teacher")
    x, y = blobs(16, shape=(8,))
    expected = keras.models.clone_model(student)
    expected.set_weights(student.get_weights())
    for step in range(3):
        share = 0.8 - 0.3 * step
        with tf.GradientTape() as tape:
            outputs = expected(x)
            hard = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, outputs))
            loss = (1 - share) * hard + share * tf.reduce_mean(SoftTargets()(teacher(x), outputs))
        gradients = tape.gradient(loss, expected.trainable_variables)
        for variable, gradient in zip(expected.trainable_variables, gradients, strict=True):
            variable.assign_sub(0.1 * gradient)
    _, logs = fitted([Scheduled(SoftTargets(), weight=weight)], student=student, teacher=teacher)
    for one, two in zip(student.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(logs["loss"][-1], loss, rtol=1e-4)


def test_hints_first_then_outputs():
    def difference(teacher, student):
        return ops.mean(ops.square(teacher - student), axis=-1)

    hints = Features(difference, teacher_layer="first", student_layer="first")
    first = Scheduled(hints, weight=keras.optimizers.schedules.PiecewiseConstantDecay([1], [5.0, 0.0]))
    _, logs = fitted([first], steps=4)
    assert logs["feature_loss"][0] > 0 and logs["feature_loss"][3] == 0.0


def test_a_schedule_that_runs_out_of_its_range_is_held_there():
    loss = Scheduled(SoftTargets(), weight=lambda step: 1 - step / 2, temperature=lambda step: 4 - step)
    assert [float(loss.weight_at(tf.constant(step))) for step in (0, 1, 2, 5)] == [1, 0.5, 0, 0]
    teacher, student = tf.constant([[2.0, 0.0]]), tf.constant([[0.0, 0.5]])
    at_least = SoftTargets(temperature=0.01)(teacher, student)
    np.testing.assert_allclose(loss(teacher, student, step=tf.constant(9)), at_least, rtol=1e-4)
    with pytest.raises(InvalidArgumentError, match="no `if`, no NumPy"):
        Scheduled(SoftTargets(), weight=lambda step: 1.0 if step < 3 else 0.0)


def test_a_replica_without_samples_adds_nothing():
    objective = Objective([SoftTargets()], None, False)
    empty, weights = tf.zeros((0, 4)), tf.zeros((0,))
    for sample_weight in (None, weights):
        assert float(objective.of_teacher(empty, empty, None, sample_weight, 0)[0]) == 0.0


def test_certainty_equals_numpy():
    teacher, student = logits()
    p = numpy_log_softmax(teacher.astype("float64"))
    share = 1 + (np.exp(p) * p).sum(-1) / np.log(5)
    plain = SoftTargets(temperature=2.0)(teacher, student)
    values = ByCertainty(SoftTargets(temperature=2.0))(teacher, student)
    np.testing.assert_allclose(values, share * plain, **CLOSE)


@pytest.mark.parametrize("loss", [SoftTargets(temperature=1.0), LogitMatching()], ids=lambda loss: type(loss).__name__)
def test_agreement_equals_numpy(loss):
    teacher, student = logits(shape=(40, 5))
    labels = np.arange(40) % 5
    labels[-3:] = -1
    softmax = [np.exp(numpy_log_softmax(side.astype("float64"))) for side in (teacher, student)]
    own = softmax[1] - np.eye(5)[labels]
    if isinstance(loss, SoftTargets):
        pull = softmax[1] - softmax[0]
    else:
        centred = student - teacher - (student - teacher).mean(-1, keepdims=True)
        pull = centred * 2 / 5
    agrees = ((pull * own).sum(-1) >= 0) | (labels < 0)
    assert 0 < agrees[:-3].sum() < 37
    expected = np.where(agrees, loss(teacher, student), 0)
    values = WhereAgreeing(loss)
    np.testing.assert_allclose(values(teacher, student, labels=labels), expected, **CLOSE)
    with tf.GradientTape() as tape:
        watched = tf.Variable(student)
        total = tf.reduce_sum(values(teacher, watched, labels=labels))
    gradient = tape.gradient(total, watched).numpy()
    np.testing.assert_allclose(gradient, pull * agrees[:, None], rtol=1e-3, atol=1e-5)
    with pytest.raises(InvalidArgumentError, match="`WhereAgreeing.labels` must be the true classes"):
        values(teacher, student)


def test_learned_weights_go_where_the_losses_say():
    layer = LearnedWeights([1.0, 1.0])
    losses = [tf.constant(4.0), tf.constant(0.25)]
    optimizer = keras.optimizers.SGD(0.2)
    for _ in range(300):
        with tf.GradientTape() as tape:
            total = layer(losses)
        optimizer.apply(tape.gradient(total, layer.trainable_variables), layer.trainable_variables)
    # At the least of exp(-s) L + s / 2 each variance is twice its loss.
    np.testing.assert_allclose(np.exp(layer.log_variances.numpy()), [8.0, 0.5], rtol=1e-3)


def test_a_loss_that_counts_nothing_is_not_learned():
    losses = [SoftTargets(weight=1.0)]
    distiller = Distiller(tiny_mlp(), tiny_mlp(name="teacher"), losses, hard_weight=0.0, learn_weights=True)
    distiller.compile(keras.optimizers.SGD(0.0), cross_entropy())
    logs = distiller.fit(*blobs(16, shape=(8,)), verbose=0).history
    assert distiller.trained_along[0].log_variances.shape == (1,)
    np.testing.assert_allclose(logs["loss"], logs["distillation_loss"], rtol=1e-6)
    with pytest.raises(InvalidArgumentError, match="learn_weights` must be False where all weights are 0"):
        Distiller(tiny_mlp(), tiny_mlp(name="teacher"), [SoftTargets(weight=0.0)], hard_weight=0.0, learn_weights=True)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_weights_are_learned_along(jit_compile):
    student = tiny_mlp()
    distiller = Distiller(student, tiny_mlp(name="teacher"), [SoftTargets(weight=0.5)], learn_weights=True)
    assert len(distiller.trainable_variables) == len(student.trainable_variables) + 1
    distiller.compile(keras.optimizers.SGD(0.1), cross_entropy(), jit_compile=jit_compile)
    distiller.fit(*blobs(64, shape=(8,)), epochs=3, verbose=0)
    hard, soft = distiller.trained_along[0].log_variances.numpy()
    # The plain loss is the larger one, and comes to count less.
    assert hard > soft


@pytest.mark.parametrize("mix", [Mixup(alpha=1.0), CutMix(alpha=1.0)], ids=lambda mix: type(mix).__name__)
def test_mixtures_are_of_their_share(mix):
    x = np.arange(8, dtype="float32")[:, None, None, None] * np.ones((1, 6, 5, 2), "float32")
    shares = []
    for step in range(20):
        mixed = mix(tf.constant(x), step=step)
        again = mix(tf.constant(x), step=step)
        np.testing.assert_array_equal(mixed.inputs, again.inputs)
        partners, share = mixed.partners.numpy(), float(mixed.share)
        assert sorted(partners) == list(range(8)) and 0 <= share <= 1
        own = np.arange(8)
        np.testing.assert_allclose(
            mixed.inputs.numpy().mean((1, 2, 3)), share * own + (1 - share) * own[partners], rtol=1e-4, atol=1e-4
        )
        if isinstance(mix, CutMix):
            assert set(np.unique(mixed.inputs[3])) <= {3.0, float(partners[3])}
        shares.append(share)
    assert np.std(shares) > 0.1


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_step_of_mixtures_equals_one_written_out(stored, weighted):
    mix = Mixup(alpha=1.0, seed=3)
    student, teacher = tiny_mlp(), tiny_mlp(name="teacher")
    x, y = blobs(16, shape=(8,))
    sample_weight = np.linspace(0, 2, 16).astype("float32") if weighted else None
    weights = np.ones(16, "float32") if sample_weight is None else sample_weight
    mixed = mix(tf.constant(x), step=0)
    share, partners = mixed.share, mixed.partners.numpy()
    with tf.GradientTape() as tape:
        outputs = student(mixed.inputs)
        own = tf.nn.sparse_softmax_cross_entropy_with_logits(y, outputs) * weights
        other = tf.nn.sparse_softmax_cross_entropy_with_logits(y[partners], outputs) * weights[partners]
        if stored:
            said = tf.nn.softmax(teacher(x))
            says = tf.math.log(share * said + (1 - share) * tf.gather(said, partners))
        else:
            says = teacher(mixed.inputs)
        soft = SoftTargets()(says, outputs) * (share * weights + (1 - share) * weights[partners])
        loss = tf.reduce_mean(0.1 * (share * own + (1 - share) * other) + 0.9 * soft)
    before = student.get_weights()
    steps = tape.gradient(loss, student.trainable_variables)
    source = StoredOutputs(teacher(x).numpy()) if stored else teacher
    distiller = Distiller(student, source, mix=mix)
    distiller.compile(keras.optimizers.SGD(0.1), cross_entropy())
    data = tf.data.Dataset.from_tensors((x, y) if sample_weight is None else (x, y, sample_weight))
    if stored:
        from tfcompress.data.taught import TaughtInputs

        said = teacher(x)
        data = data.map(lambda x, *rest: (TaughtInputs(x, said), *rest))
    logs = distiller.fit(data, verbose=0).history
    np.testing.assert_allclose(logs["loss"][0], loss, rtol=1e-4)
    for old, step, variable in zip(before, steps, student.trainable_variables, strict=True):
        np.testing.assert_allclose(variable.numpy(), old - 0.1 * step.numpy(), rtol=1e-3, atol=1e-5)


def test_what_cannot_be_mixed():
    x, y = blobs(8, shape=(8,))
    distiller = Distiller(tiny_mlp(), tiny_mlp(name="teacher"), mix=Mixup())
    distiller.compile("sgd", cross_entropy())
    with pytest.raises(InvalidArgumentError, match="`Mixup.inputs` must be one tensor of floats.* Received: .*int32"):
        distiller.fit(x.astype("int32"), y, verbose=0)
    networks = [
        keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Conv2D(3, 1)], name=name) for name in ("one", "two")
    ]
    distiller = Distiller(*networks, mix=CutMix())
    distiller.compile("sgd", cross_entropy())
    with pytest.raises(InvalidArgumentError, match="`mix` must be Mixup where outputs have positions"):
        distiller.fit(np.ones((4, 6, 6, 1), "float32"), np.zeros((4, 6, 6), "int32"), verbose=0)


def test_pictures_are_mixed_under_xla():
    student = tiny_cnn()
    distiller = Distiller(student, tiny_cnn(name="teacher"), [SoftTargets(), HardLabels(weight=0.1)], mix=CutMix())
    distiller.compile("adam", cross_entropy(), jit_compile=True)
    assert np.isfinite(distiller.fit(*blobs(32), verbose=0).history["loss"][0])


def run_watch(losses, classes=10):
    watch = CollapseWatch(classes)
    said = []
    for epoch, loss in enumerate(losses):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            watch.on_epoch_end(epoch, {"hard_loss": loss})
        said += [epoch for one in caught if one.category is CollapseWarning]
    return said


def test_a_plain_loss_below_zero_that_falls_is_not_lost():
    watch = CollapseWatch(None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for epoch, loss in enumerate((-0.3, -0.5, -0.6)):
            watch.on_epoch_end(epoch, {"hard_loss": loss})


def test_a_plain_loss_that_gets_lost_is_said_once():
    assert run_watch([2.0, 1.0, 0.6, 0.5, 0.55, 0.6]) == []
    assert run_watch([2.0, 0.5, 0.9, 1.2, 3.0]) == [3]
    assert run_watch([2.0, 0.5, 1.2, 3.0]) == [2]
    assert run_watch([2.31, 2.30, 2.29]) == [1]
    assert run_watch([0.1, 0.02, 0.05]) == []
    assert run_watch([5.0, 4.9, 4.8], classes=None) == []
    assert run_watch([5.0, float("nan"), 4.8], classes=None) == []


def test_a_training_says_that_its_student_forgets():
    x, y = blobs(64, shape=(8,))
    wrong = tf.one_hot((y + 1) % 4, 4) * 20.0
    student = tiny_mlp()
    student.compile(keras.optimizers.Adam(1e-2), cross_entropy())
    student.fit(x, y, epochs=10, verbose=0)
    lookup = tf.constant(x), wrong

    def misleading(inputs):
        nearest = tf.argmin(tf.norm(inputs[:, None] - lookup[0][None], axis=-1), axis=1)
        return tf.gather(lookup[1], nearest)

    distiller = Distiller(student, misleading, [SoftTargets(temperature=2.0, weight=1.0)])
    distiller.compile(keras.optimizers.Adam(3e-2), cross_entropy())
    with pytest.warns(CollapseWarning, match="loss on the labels has risen to .* Lower the temperature"):
        distiller.fit(x, y, epochs=20, verbose=0)


def test_weights_are_no_sign_of_guessing():
    x, y = blobs(32, shape=(8,))
    for options in ({"sample_weight": np.full(32, 9.0)}, {"class_weight": dict.fromkeys(range(4), 9.0)}):
        distiller = Distiller(tiny_mlp(), tiny_mlp(name="teacher"))
        distiller.compile(keras.optimizers.Adam(1e-3), cross_entropy())
        with warnings.catch_warnings():
            warnings.simplefilter("error", CollapseWarning)
            assert min(distiller.fit(x, y, epochs=3, verbose=0, **options).history["hard_loss"]) > 1.4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Scheduled(SoftTargets()), "`Scheduled.weight` must be a schedule"),
        (lambda: Scheduled(SoftTargets(), weight=0.5), "`Scheduled.weight` must be a callable"),
        (lambda: Scheduled(SoftTargets(), temperature=lambda step: 0.0), "`Scheduled.temperature` must be a callable"),
        (lambda: Scheduled(LogitMatching(), temperature=lambda step: 2.0), "`Scheduled.loss` must be a loss with a"),
        (lambda: Mixup(alpha=0), "`Mixup.alpha` must be a number above 0. Received: 0"),
        (lambda: Distiller(tiny_mlp(), tiny_mlp(), mix="mixup"), "`Distiller.mix` must be a Mixup"),
        (lambda: CutMix()(tf.zeros((4, 3)), 0), "`CutMix.inputs` must be images"),
        (
            lambda: Distiller(
                tiny_mlp(), tiny_mlp(), [Scheduled(SoftTargets(), weight=lambda step: 0.5)], learn_weights=True
            ),
            "`Distiller.learn_weights` must be False where a weight has a schedule",
        ),
        (lambda: ByCertainty(Features(lambda t, s: t, teacher_layer="a", student_layer="b")), "a loss of outputs"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(InvalidArgumentError, match=message):
        make()
