"""Distillation: losses against NumPy, the step against one written out, teachers of every kind, and what is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import CLOSE, blob_dataset, blobs, cross_entropy, numpy_log_softmax, tiny_cnn, tiny_mlp
from keras import layers

from tfcompress.errors import InvalidArgumentError, ModelError
from tfcompress.techniques.distill import (
    AveragedTeacher,
    Distiller,
    Features,
    Hints,
    LogitMatching,
    Scheduled,
    SoftCrossEntropy,
    SoftTargets,
    Teacher,
    WhereConfident,
)
from tfcompress.train_settings import TrainSettings
from tfcompress.training.fit import fit


def logits(seed=0, scale=3.0):
    return np.random.default_rng(seed).normal(scale=scale, size=(2, 8, 10)).astype("float32")


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_soft_targets_equal_numpy(temperature):
    teacher, student = logits()
    p, q = numpy_log_softmax(teacher / temperature), numpy_log_softmax(student / temperature)
    np.testing.assert_allclose(
        SoftTargets(temperature=temperature)(teacher, student), temperature**2 * (np.exp(p) * (p - q)).sum(-1), **CLOSE
    )
    np.testing.assert_allclose(
        SoftCrossEntropy(temperature=temperature)(teacher, student),
        -(temperature**2) * (np.exp(p) * q).sum(-1),
        **CLOSE,
    )


def test_logit_matching_equals_numpy_and_ignores_offsets():
    teacher, student = logits()
    difference = (teacher - teacher.mean(-1, keepdims=True)) - (student - student.mean(-1, keepdims=True))
    np.testing.assert_allclose(LogitMatching()(teacher, student), (difference**2).mean(-1), **CLOSE)
    np.testing.assert_allclose(LogitMatching()(teacher, teacher + 7.0), 0, atol=1e-5)


@pytest.mark.parametrize(
    "loss", [SoftTargets(temperature=3.0), SoftCrossEntropy(temperature=3.0), LogitMatching()], ids=repr
)
def test_gradients_equal_finite_differences(loss):
    teacher, student = (tf.constant(side, tf.float64) for side in logits(scale=1.0))
    with tf.GradientTape() as tape:
        tape.watch(student)
        value = tf.reduce_sum(loss(teacher, student))
    gradient = tape.gradient(value, student).numpy()
    step = 1e-5
    for row, column in [(0, 0), (3, 7), (7, 9)]:
        nudge = np.zeros(student.shape)
        nudge[row, column] = step
        up, down = (tf.reduce_sum(loss(teacher, student + sign * nudge)) for sign in (1, -1))
        np.testing.assert_allclose(gradient[row, column], (up - down) / (2 * step), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("student_softmax", [False, True])
@pytest.mark.parametrize("teacher_softmax", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_step_equals_one_written_out(student_softmax, teacher_softmax, weighted):
    x, y = blobs(32, shape=(8,))
    sample_weight = np.linspace(0, 2, 32).astype("float32") if weighted else None
    student, teacher = tiny_mlp(softmax=student_softmax), tiny_mlp(softmax=teacher_softmax, name="teacher")
    temperature, weight, rate = 4.0, 0.7, 0.1
    before = [variable.numpy() for variable in student.trainable_variables]
    with tf.GradientTape() as tape:
        own, teaching = (
            tf.math.log(model(x)) if softmax else model(x)
            for model, softmax in ((student, student_softmax), (teacher, teacher_softmax))
        )
        hard = tf.nn.sparse_softmax_cross_entropy_with_logits(y, own)
        p, q = tf.nn.log_softmax(teaching / temperature), tf.nn.log_softmax(own / temperature)
        soft = temperature**2 * tf.reduce_sum(tf.exp(p) * (p - q), -1)
        per_sample = (1 - weight) * hard + weight * soft
        loss = tf.reduce_mean(per_sample * (1.0 if sample_weight is None else sample_weight))
    expected = [
        value - rate * step.numpy()
        for value, step in zip(before, tape.gradient(loss, student.trainable_variables), strict=True)
    ]

    distiller = Distiller(student, teacher, [SoftTargets(temperature=temperature, weight=weight)])
    own_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not student_softmax)
    distiller.compile(keras.optimizers.SGD(rate), own_loss)
    history = distiller.fit(x, y, batch_size=32, sample_weight=sample_weight, verbose=0, shuffle=False)
    np.testing.assert_allclose(history.history["loss"][0], loss, rtol=1e-4)
    for value, variable in zip(expected, student.trainable_variables, strict=True):
        np.testing.assert_allclose(variable.numpy(), value, rtol=1e-3, atol=1e-5)


def test_regularizers_are_not_scaled_by_the_hard_weight():
    inputs = keras.Input((8,))
    dense = keras.layers.Dense(4, kernel_regularizer=keras.regularizers.L2(0.5), use_bias=False, name="only")
    student = keras.Model(inputs, dense(inputs))
    kernel = dense.kernel.numpy()
    distiller = Distiller(student, lambda x: tf.zeros((tf.shape(x)[0], 4)), [SoftTargets(weight=1.0)])
    distiller.compile(keras.optimizers.SGD(0.0), cross_entropy())
    x, y = np.zeros((16, 8), "float32"), np.zeros(16, "int32")
    history = distiller.fit(x, y, verbose=0)
    np.testing.assert_allclose(history.history["loss"][0], 0.5 * (kernel**2).sum(), rtol=1e-5)


def test_teacher_is_unchanged_and_untracked(tmp_path):
    x, y = blobs(64)
    student, teacher = tiny_cnn(), tiny_cnn(name="teacher")
    before, flags = teacher.get_weights(), [layer.trainable for layer in teacher.layers]
    distiller = Distiller(student, teacher)
    distiller.compile("adam", cross_entropy(), metrics=["accuracy"])
    distiller.fit(x, y, epochs=2, verbose=0, callbacks=[keras.callbacks.ModelCheckpoint(tmp_path / "best.keras")])
    for expected, actual in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(actual, expected)
    assert flags == [layer.trainable for layer in teacher.layers]
    assert len(distiller.trainable_variables) == len(student.trainable_variables)
    saved = keras.saving.load_model(tmp_path / "best.keras")
    np.testing.assert_allclose(saved(x), student(x), **CLOSE)
    assert saved.name == "tiny"
    loss, accuracy = distiller.evaluate(x, y, verbose=0)
    np.testing.assert_allclose(loss, cross_entropy()(y, student(x)), rtol=1e-4)
    np.testing.assert_allclose(accuracy, np.mean(np.argmax(student(x), -1) == y))


@pytest.mark.parametrize("options", [{"jit_compile": True}, {"steps_per_execution": 2}], ids=str)
def test_compile_options(options):
    x, y = blobs(64, shape=(8,))
    distiller = Distiller(tiny_mlp(), tiny_mlp(name="teacher"))
    distiller.compile("adam", cross_entropy(), **options)
    losses = distiller.fit(x, y, epochs=8, batch_size=16, verbose=0).history["distillation_loss"]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(precision):
    data, teacher = blob_dataset(shape=(8,)), tiny_mlp(name="teacher")
    settings = TrainSettings(epochs=5, learning_rate=1e-2, precision=precision)
    result = fit(tiny_mlp(), data, settings, batch_size=32, seed=0, wrap=lambda replica: Distiller(replica, teacher))
    losses = result.history["distillation_loss"]
    assert losses[-1] < 0.7 * losses[0]


def test_two_replicas_distill_as_one():
    data, teacher, student = blob_dataset(shape=(8,)), tiny_mlp(name="teacher"), tiny_mlp()
    results = {}
    for strategy in ("default", "mirrored"):
        settings = TrainSettings(epochs=2, strategy=strategy, optimizer="sgd", learning_rate=0.1)
        results[strategy] = fit(
            student, data, settings, batch_size=32, seed=0, wrap=lambda replica: Distiller(replica, teacher)
        )
    for one, two in zip(*(results[name].model.get_weights() for name in ("default", "mirrored")), strict=True):
        np.testing.assert_allclose(two, one, **CLOSE)
    for name in ("loss", "hard_loss", "distillation_loss"):
        np.testing.assert_allclose(results["mirrored"].history[name], results["default"].history[name], rtol=1e-4)


def test_tflite_and_keras_files_teach_alike(tmp_path):
    from tfcompress.export import export_tflite

    x, _ = blobs(16)
    model = tiny_cnn(softmax=True)
    model.save(tmp_path / "teacher.keras")
    export_tflite(model, tmp_path / "teacher.tflite", mode="float32")
    expected = numpy_log_softmax(np.log(model(x)))
    for suffix in ("keras", "tflite"):
        teacher = Teacher(tmp_path / f"teacher.{suffix}")
        np.testing.assert_allclose(numpy_log_softmax(teacher.logits(x).numpy()), expected, rtol=1e-3, atol=1e-3)
    student = tiny_cnn()
    distiller = Distiller(student, tmp_path / "teacher.tflite")
    distiller.compile("adam", cross_entropy())
    assert np.isfinite(distiller.fit(*blobs(), verbose=0).history["distillation_loss"][0])


def test_input_range_of_a_teacher():
    teacher = Teacher(lambda inputs: inputs, input_range=(0, 255), data_range=(-1, 1))
    np.testing.assert_allclose(teacher.logits(tf.constant([[-1.0, 0.0, 1.0]])), [[0, 127.5, 255]])


def test_own_callable_as_a_loss():
    student = tiny_mlp()
    distiller = Distiller(
        student, tiny_mlp(name="teacher"), [lambda t, s: tf.reduce_mean(tf.abs(t - s), -1)], hard_weight=0.5
    )
    distiller.compile("adam", cross_entropy())
    assert distiller.fit(*blobs(shape=(8,)), verbose=0).history["distillation_loss"][0] > 0


def halved(loss):
    return Scheduled(loss, weight=lambda step: 0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SoftTargets(temperature="4"), "`SoftTargets.temperature` must be a number above 0. Received: '4'"),
        (lambda: SoftTargets(weight=None), r"`SoftTargets.weight` must be a number in \[0, 1\]. Received: None"),
        (lambda: Hints(weight="1"), "`Hints.weight` must be a number of at least 0. Received: '1'"),
        (lambda: Distiller(tiny_mlp(), tiny_mlp(), hard_weight="0.5"), "`Distiller.hard_weight` must be a number"),
        (lambda: Distiller(tiny_mlp(), tiny_mlp(), hard_weight=np.nan), "`Distiller.hard_weight` must be a number"),
        (lambda: Distiller(tiny_mlp(), tiny_mlp(), SoftTargets()), "`Distiller.losses` must be a list of losses"),
        (
            lambda: Distiller(tiny_mlp(), tiny_mlp(), {"last": SoftTargets()}, hard_weight=1),
            "a dict with a list for each output. Received: SoftTargets",
        ),
        (lambda: Distiller(tiny_mlp(), tiny_mlp(), [SoftTargets]), r"such as `SoftTargets\(\)`, not its class"),
        (lambda: WhereConfident(halved(SoftTargets())), r"write `Scheduled\(WhereConfident\(...\)\)`"),
        (lambda: halved(halved(SoftTargets())), "`Scheduled.loss` must be a loss without a schedule"),
        (
            lambda: Features(halved(Hints()), teacher_layer="first", student_layer="first"),
            "`Features.loss` must be a loss itself, .* a schedule goes around `Features`",
        ),
        (
            lambda: Distiller("student.keras", tiny_mlp()),
            "`student` must be a Keras 3 model.* Received: 'student.keras'",
        ),
        (lambda: Distiller(None, tiny_mlp()), "`student` must be a Keras 3 model"),
        (lambda: SoftTargets(temperature=0), "`SoftTargets.temperature` must be a number above 0. Received: 0"),
        (lambda: SoftTargets(weight=1.5), r"`SoftTargets.weight` must be a number in \[0, 1\]. Received: 1.5"),
        (lambda: Distiller(tiny_mlp(), tiny_mlp(classes=3)), "`student` must be a model of 3 classes, .* Received: 4"),
        (lambda: Distiller(tiny_mlp(), tiny_mlp(), []), "`Distiller.losses` must be at least one callable"),
        (lambda: Distiller(tiny_mlp(), tiny_mlp(), [SoftTargets(), SoftTargets()]), "weights that add up to at most 1"),
        (lambda: Distiller(tiny_mlp(), 3), "`teacher` must be a Keras model, a model file, or a callable. Received: 3"),
        (lambda: Teacher(lambda x: x, input_range=(0, 255)), "`data_range` must be the range of the data"),
    ],
)
def test_arguments_out_of_range(make, message):
    with pytest.raises(InvalidArgumentError, match=message):
        make()


def test_softmax_is_not_taken_twice():
    distiller = Distiller(tiny_mlp(softmax=True), tiny_mlp())
    with pytest.raises(InvalidArgumentError, match="from_logits=False, since the student gives probabilities"):
        distiller.compile("adam", cross_entropy())


def test_missing_unreadable_and_broken_teachers(tmp_path):
    with pytest.raises(ModelError, match="No teacher file"):
        Teacher(tmp_path / "none.keras")
    (tmp_path / "text.keras").write_text("not a model")
    with pytest.raises(ModelError, match="No model can be read from .*text.keras"):
        Teacher(tmp_path / "text.keras")
    with pytest.raises(ModelError, match="it is a folder without a model in it"):
        Teacher(tmp_path)
    distiller = Distiller(tiny_mlp(), lambda x: tf.fill((tf.shape(x)[0], 4), np.nan))
    distiller.compile("adam", cross_entropy())
    with pytest.raises(ModelError, match="finite outputs. Received: NaN"):
        distiller.fit(*blobs(shape=(8,)), verbose=0)


def test_loss_by_its_name_meets_a_student_of_logits():
    distiller = Distiller(tiny_mlp(), tiny_mlp())
    with pytest.raises(InvalidArgumentError, match="from_logits=True, since the student gives logits"):
        distiller.compile("adam", "sparse_categorical_crossentropy")


def test_saved_weights_are_those_of_the_student(tmp_path):
    student = tiny_mlp()
    distiller = Distiller(student, tiny_mlp(name="teacher"))
    distiller.compile("adam", cross_entropy())
    save = keras.callbacks.ModelCheckpoint(tmp_path / "last.weights.h5", save_weights_only=True)
    distiller.fit(*blobs(shape=(8,)), verbose=0, callbacks=[save])
    other = tiny_mlp()
    other.load_weights(tmp_path / "last.weights.h5")
    np.testing.assert_array_equal(other.get_layer("last").kernel, student.get_layer("last").kernel)


def test_an_int8_teacher_gives_probabilities_whatever_its_first_batch():
    from helpers import shared_path

    teacher = Teacher(shared_path("models/resnet8_cifar10_int8.tflite"))
    rng = np.random.default_rng(0)
    for _ in range(3):
        x = rng.uniform(0, 255, size=(4, 32, 32, 3)).astype("float32")
        logits = teacher.logits(x).numpy()
        # A rounded zero is half a step of 1/256.
        assert logits.min() >= np.log(0.5 / 256) - 1e-5 and logits.max() <= 0
    assert teacher.gives_distributions and not teacher.gives_sigmoids


def two_inputs(name="two"):
    left, right = keras.Input((4,), name="left"), keras.Input((3,), name="right")
    return keras.Model({"left": left, "right": right}, layers.Dense(4)(layers.Concatenate()([left, right])), name=name)


def test_a_model_with_several_inputs_is_distilled():
    rng = np.random.default_rng(0)
    x = {"left": rng.normal(size=(16, 4)).astype("float32"), "right": rng.normal(size=(16, 3)).astype("float32")}
    teacher, student = two_inputs("teacher"), two_inputs("student")
    distiller = Distiller(student, teacher, losses=[SoftTargets(temperature=2.0, weight=1.0)])
    distiller.compile("adam", cross_entropy())
    before = divergence(teacher, student, x)
    distiller.optimizer.learning_rate = 0.05
    distiller.fit(x, np.zeros(16, "int32"), epochs=20, verbose=0)
    assert divergence(teacher, student, x) < 0.5 * before


def divergence(teacher, student, x, to_logits=np.asarray):
    p, q = teacher.predict(x, verbose=0), to_logits(student.predict(x, verbose=0))
    p, q = numpy_log_softmax(p), numpy_log_softmax(q)
    return float((np.exp(p) * (p - q)).sum(1).mean())


def test_a_student_of_several_outputs_is_refused():
    inputs = keras.Input((4,))
    student = keras.Model(inputs, [layers.Dense(4)(inputs), layers.Dense(4)(inputs)])
    with pytest.raises(ModelError, match="must give one tensor"):
        Distiller(student, tiny_mlp(inputs=4))


class Own(keras.Model):
    """A student without a graph."""

    def __init__(self, activation=None):
        super().__init__()
        self.hidden = layers.Dense(6, activation="relu", name="hidden")
        self.last = layers.Dense(4, activation=activation)

    def call(self, inputs, training=False):
        return self.last(self.hidden(inputs))


def test_a_first_batch_is_looked_at_before_it_trains():
    x, y = blobs(16, shape=(8,))
    student, teacher = Own("softmax"), tiny_mlp(name="teacher")
    loss = SoftTargets(temperature=1.0, weight=1.0)
    distiller = Distiller(student, lambda x: tf.nn.softmax(teacher(x)), [loss])
    distiller.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy", run_eagerly=True)
    with pytest.raises(ModelError, match="Whether 'own.*' gives logits or probabilities shows on a batch only"):
        distiller.train_step((x, y))
    logs = distiller.train_on_batch(x, y, return_dict=True)
    np.testing.assert_allclose(logs["distillation_loss"], divergence(teacher, student, x, np.log), rtol=1e-4)
    assert distiller.train_on_batch(x, y, return_dict=True).keys() == logs.keys()


def of_an_average_and_of_features():
    keras.utils.set_random_seed(1)
    student = tiny_mlp()
    hints = Features(Hints(), teacher_layer="wide", student_layer="first")
    inputs = keras.Input((8,))
    wide = keras.Model(inputs, layers.Dense(4)(layers.Dense(7, name="wide")(inputs)))
    average = Distiller(student, AveragedTeacher(student, momentum=0.5))
    both = [average, Distiller(tiny_mlp(), wide, [SoftTargets(), hints])]
    for distiller in both:
        distiller.compile(keras.optimizers.Adam(0.05), cross_entropy(), run_eagerly=True)
    return both


def test_a_training_goes_on_from_weights_that_are_read_before_its_first_step(tmp_path, recwarn):
    x, y = blobs(16, shape=(8,))
    path = tmp_path / "state.weights.h5"
    for first, second in zip(of_an_average_and_of_features(), of_an_average_and_of_features(), strict=True):
        first.fit(x, y, epochs=2, batch_size=16, verbose=0)
        first.save_weights(path, overwrite=True)
        second.load_weights(path)
        assert not [one for one in recwarn if "another training" in str(one.message)]
        whole, resumed = (one.fit(x, y, batch_size=16, verbose=0).history["loss"] for one in (first, second))
        np.testing.assert_allclose(resumed, whole, rtol=1e-5)
        for one, two in zip(first._state(), second._state(), strict=True):
            np.testing.assert_allclose(two, one, **CLOSE)


def test_the_state_of_a_bfloat16_student_is_read(tmp_path):
    x, y = blobs(16, shape=(8,))
    keras.config.set_dtype_policy("bfloat16")
    try:
        student = tiny_mlp()
    finally:
        keras.config.set_dtype_policy("float32")
    distiller = Distiller(student, tiny_mlp(name="teacher"))
    distiller.compile(keras.optimizers.Adam(0.01), cross_entropy(), run_eagerly=True)
    distiller.train_on_batch(x, y)
    state = [keras.ops.convert_to_numpy(variable) for variable in distiller._state()]
    assert any(value.dtype == "bfloat16" for value in state)
    distiller.save_weights(tmp_path / "state.weights.h5")
    distiller.train_on_batch(x, y)
    distiller.load_weights(tmp_path / "state.weights.h5")
    for before, variable in zip(state, distiller._state(), strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), before)
