"""Students that teach each other: a step against one written out, what is logged and saved, and what is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import CLOSE, blob_dataset, blobs, cross_entropy, tiny_mlp, whole_and_resumed

import tfcompress as tfc
from tfcompress.errors import InvalidArgumentError, ModelError
from tfcompress.techniques.distill import Distiller, Features, MutualLearning, OutputMatching, PerClass, SoftTargets
from tfcompress.techniques.distill.losses import LogitMatching
from tfcompress.train_settings import TrainSettings
from tfcompress.training.fit import distribution_scope, fit


def students(count=2, kernel_regularizer=None):
    models = [tiny_mlp(name=f"student_{at}") for at in range(count)]
    for model in models:
        model.layers[0].kernel_regularizer = model.layers[0].kernel.regularizer = keras.regularizers.get(
            kernel_regularizer
        )
    return models


def check_moved(models, before, slopes, rate=0.1):
    for model, old, steps in zip(models, before, slopes, strict=True):
        for value, step, variable in zip(old, steps, model.trainable_variables, strict=True):
            np.testing.assert_allclose(variable.numpy(), value - rate * step.numpy(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("softmax", "weighted", "jit_compile"),
    [((False, False, False), True, True), ((True, True, True), False, False)],
)
def test_a_step_equals_one_written_out(softmax, weighted, jit_compile):
    x, y = blobs(32, shape=(8,))
    sample_weight = np.linspace(0, 2, 32).astype("float32") if weighted else None
    models = [tiny_mlp(softmax=softmax[at], name=f"student_{at}") for at in range(3)]
    before = [[variable.numpy() for variable in model.trainable_variables] for model in models]
    # One tape to each student, so that none can be moved by another's loss.
    logits = [np.asarray(tf.math.log(model(x)) if softmax[0] else model(x)) for model in models]
    weights = np.ones(32, "float32") if sample_weight is None else sample_weight
    slopes, totals = [], []
    for at, model in enumerate(models):
        with tf.GradientTape() as tape:
            own = tf.math.log(model(x)) if softmax[0] else model(x)
            hard = tf.nn.sparse_softmax_cross_entropy_with_logits(y, own)
            log_q = tf.nn.log_softmax(own)
            soft = 0.0
            for other in range(3):
                if other != at:
                    log_p = tf.nn.log_softmax(logits[other])
                    soft += 0.5 * tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), -1)
            total = tf.reduce_mean((hard + soft) * weights)
        slopes.append(tape.gradient(total, model.trainable_variables))
        totals.append(float(total))

    mutual = MutualLearning(models)
    own_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not softmax[0])
    mutual.compile(keras.optimizers.SGD(0.1), own_loss, jit_compile=jit_compile)
    logs = mutual.fit(x, y, sample_weight=sample_weight, batch_size=32, verbose=0).history
    np.testing.assert_allclose([logs[f"loss_{at}"][0] for at in (1, 2, 3)], totals, rtol=1e-4)
    np.testing.assert_allclose(logs["loss"][0], np.mean(totals), rtol=1e-4)
    check_moved(models, before, slopes)


def test_regularizers_are_those_of_each_student():
    models = []
    for strength in (0.5, 0.0):
        dense = keras.layers.Dense(4, kernel_regularizer=keras.regularizers.L2(strength), use_bias=False)
        models.append(keras.Sequential([keras.Input((8,)), dense]))
    kernels = [model.get_weights()[0] for model in models]
    x, y = np.zeros((16, 8), "float32"), np.zeros(16, "int32")
    mutual = MutualLearning(models, [SoftTargets(temperature=3.0, weight=0.7)], hard_weight=0.5)
    mutual.compile(keras.optimizers.SGD(0.1), cross_entropy(), jit_compile=False)
    logs = mutual.fit(x, y, verbose=0).history
    # All logits are zero: the labels' loss is log(4), and the students agree.
    np.testing.assert_allclose(logs["loss_1"][0], 0.5 * np.log(4) + 0.5 * (kernels[0] ** 2).sum(), rtol=1e-5)
    np.testing.assert_allclose(logs["loss_2"][0], 0.5 * np.log(4), rtol=1e-5)
    np.testing.assert_allclose(models[0].get_weights()[0], kernels[0] * (1 - 0.1), rtol=1e-4)
    np.testing.assert_allclose(models[1].get_weights()[0], kernels[1])


def test_it_is_fitted_like_any_model(tmp_path):
    x, y = blobs(64, shape=(8,))
    models = students()
    models[0].compile("adam", "mse")
    metric = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
    mutual = MutualLearning(models, [PerClass(SoftTargets(temperature=2.0, weight=0.5), weights=[1, 1, 2, 1])])
    mutual.compile(
        keras.optimizers.Adam(2e-2), cross_entropy(), metrics=[metric], steps_per_execution=2, jit_compile=False
    )
    best = keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", monitor="val_loss", save_best_only=True)
    history = mutual.fit(
        x, y, batch_size=16, epochs=5, validation_data=blobs(48, seed=1, shape=(8,)), callbacks=[best], verbose=0
    )
    logs = history.history
    names = {f"{name}{which}" for name in ("loss", "accuracy") for which in ("", "_1", "_2")}
    assert set(logs) == names | {f"val_{name}" for name in names}
    for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
        np.testing.assert_allclose(logs[name], (np.array(logs[f"{name}_1"]) + logs[f"{name}_2"]) / 2, rtol=1e-5)
    assert logs["loss"][-1] < 0.8 * logs["loss"][0]
    assert models[0].loss == "mse"
    # The metric that was given has counted nothing: each student has one of its own.
    assert float(metric.count) == 0

    tested = mutual.evaluate(x, y, batch_size=30, verbose=0, return_dict=True)
    assert mutual.evaluate(x, y, batch_size=30, verbose=0)[:2] == [tested["loss"], tested["accuracy"]]
    predicted = mutual.predict(x, verbose=0)
    for number, model in enumerate(models, 1):
        outputs = model(x).numpy()
        np.testing.assert_allclose(predicted[number - 1], outputs, **CLOSE)
        np.testing.assert_allclose(tested[f"accuracy_{number}"], (outputs.argmax(-1) == y).mean(), rtol=1e-6)
        np.testing.assert_allclose(tested[f"loss_{number}"], cross_entropy()(y, outputs), rtol=1e-4)

    mutual.save(tmp_path / "last.keras")
    kept = keras.saving.load_model(tmp_path / "last_2.keras")
    np.testing.assert_allclose(kept(x), models[1](x), **CLOSE)
    assert sorted(path.name for path in tmp_path.glob("best*")) == ["best_1.keras", "best_2.keras"]
    mutual.save_weights(tmp_path / "all.weights.h5")
    values = [model.get_weights() for model in models]
    for model in models:
        model.set_weights([np.zeros_like(weight) for weight in model.get_weights()])
    mutual.load_weights(tmp_path / "all.weights.h5")
    for model, weights in zip(models, values, strict=True):
        for one, two in zip(model.get_weights(), weights, strict=True):
            np.testing.assert_array_equal(one, two)


def test_replicas_agree_with_one():
    x, y = blobs(64, shape=(8,))
    start, trained, logs = [model.get_weights() for model in students()], {}, {}
    for replicas, strategy in ((1, "default"), (2, "mirrored")):
        with distribution_scope(strategy):
            mutual = MutualLearning(students(kernel_regularizer="l2"))
            for model, weights in zip(mutual.students, start, strict=True):
                model.set_weights(weights)
            mutual.compile(keras.optimizers.SGD(0.1), cross_entropy(), metrics=["accuracy"], jit_compile=False)
        logs[replicas] = mutual.fit(x, y, batch_size=32, shuffle=False, verbose=0).history
        trained[replicas] = mutual.get_weights()
    for one, two in zip(trained[1], trained[2], strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5)
    for name, values in logs[1].items():
        np.testing.assert_allclose(logs[2][name], values, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_in_fit_the_others_train_along_and_are_resumed(tmp_path):
    data, model = blob_dataset(64, shape=(8,)), tiny_mlp()

    def run(checkpoint, *callbacks):
        others = []

        def wrap(replica):
            others.append(tiny_mlp(name="other"))
            return MutualLearning([replica, *others])

        settings = TrainSettings(epochs=2)
        options = {"batch_size": 32, "seed": 0, "wrap": wrap, "checkpoint": checkpoint}
        result = fit(model, data, settings, callbacks=lambda replica: callbacks, **options)
        assert "val_accuracy_2" in result.history
        return [*result.model.get_weights(), *others[0].get_weights()]

    whole, resumed = whole_and_resumed(run, tmp_path / "training.npz", kill_after=1)
    for expected, actual in zip(whole, resumed, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_exits_of_one_network_teach_each_other():
    inputs = keras.Input((8,))
    hidden = keras.layers.Dense(16, activation="relu", kernel_regularizer="l2", name="shared")(inputs)
    early = keras.Model(inputs, keras.layers.Dense(4)(hidden))
    late = keras.Model(inputs, keras.layers.Dense(4)(keras.layers.Dense(16, activation="relu")(hidden)))
    mutual = MutualLearning([early, late])
    assert len(mutual.trainable_variables) == 8
    mutual.compile(keras.optimizers.Adam(1e-2), cross_entropy(), metrics=["accuracy"], jit_compile=False)
    x, y = blobs(64, shape=(8,))
    logs = mutual.fit(x, y, batch_size=16, epochs=4, verbose=0).history
    assert logs["loss_1"][-1] < logs["loss_1"][0] and logs["loss_2"][-1] < logs["loss_2"][0]


def test_a_deeper_exit_teaches_an_earlier_one():
    """By a `Distiller` of several outputs whose teacher is the student itself."""
    inputs = keras.Input((8,))
    hidden = keras.layers.Dense(16, activation="relu")(inputs)
    early = keras.layers.Dense(4, name="early")(hidden)
    late = keras.layers.Dense(4, name="late")(keras.layers.Dense(16, activation="relu")(hidden))
    student = keras.Model(inputs, [early, late])
    x, y = blobs(32, shape=(8,))
    before = [variable.numpy() for variable in student.trainable_variables]
    with tf.GradientTape() as tape:
        outputs = student(x)
        own = tf.add_n([tf.nn.sparse_softmax_cross_entropy_with_logits(y, side) for side in outputs])
        log_p, log_q = tf.stop_gradient(tf.nn.log_softmax(outputs[1])), tf.nn.log_softmax(outputs[0])
        loss = tf.reduce_mean(own + 0.5 * tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), -1))
    slopes = tape.gradient(loss, student.trainable_variables)

    def deepest(images):
        return {"early": student(images, training=False)[1]}

    losses = {"early": [SoftTargets(temperature=1.0, weight=0.5)]}
    distiller = Distiller(student, deepest, losses, hard_weight=1.0)
    distiller.compile(keras.optimizers.SGD(0.1), [cross_entropy(), cross_entropy()], jit_compile=False)
    logs = distiller.fit(x, [y, y], batch_size=32, verbose=0).history
    np.testing.assert_allclose(logs["loss"][0], loss, rtol=1e-4)
    check_moved([student], [before], [slopes])


def test_students_without_a_graph():
    class Own(keras.Model):
        def __init__(self, softmax):
            super().__init__()
            self.dense = keras.layers.Dense(4, activation="softmax" if softmax else None)

        def call(self, inputs):
            return self.dense(inputs)

    x, y = blobs(32, shape=(8,))
    mutual = MutualLearning([Own(softmax=True), Own(softmax=True)])
    mutual.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy", jit_compile=False)
    loss = mutual.fit(x, y, batch_size=32, verbose=0).history["loss_1"][0]
    p, q = (np.asarray(student(x)) for student in mutual.students)
    expected = -np.log(p[np.arange(32), y]).mean() + (q * np.log(q / p)).sum(-1).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    again = MutualLearning(mutual.students)
    again.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy", run_eagerly=True)
    with pytest.raises(ModelError, match="gives logits or probabilities shows on a batch only"):
        again.train_step((x, y))
    np.testing.assert_allclose(again.train_on_batch(x, y, return_dict=True)["loss_1"], expected, rtol=1e-4)


def test_what_the_others_say_must_be_what_the_loss_compares():
    softmax = [tiny_mlp(softmax=True), tiny_mlp(softmax=True)]
    with pytest.raises(InvalidArgumentError, match="raw outputs with OutputMatching"):
        MutualLearning(softmax, [OutputMatching()])
    sigmoids = [keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, "sigmoid")]) for _ in "ab"]
    with pytest.raises(InvalidArgumentError, match="with SoftTargets, not of sigmoids"):
        MutualLearning(sigmoids)


def test_it_is_a_public_name():
    assert tfc.MutualLearning is MutualLearning


def no_samples(teacher, student):
    return tf.reduce_mean(tf.square(teacher - student))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MutualLearning(students(1)), "`MutualLearning.students` must be a list of at least two different"),
        (lambda: MutualLearning(students(1) * 2), "at least two different Keras models"),
        (lambda: MutualLearning(["a", "b"]), "at least two different Keras models"),
        (lambda: MutualLearning([tiny_mlp(), tiny_mlp(classes=5)]), r"of one shape. Received: \[\(None, 4\)"),
        (lambda: MutualLearning(students(), []), "`MutualLearning.losses` must be at least one"),
        (lambda: MutualLearning(students(), ["soft"]), "`MutualLearning.losses` must be"),
        (
            lambda: MutualLearning(students(), hard_weight=-1.0),
            "`MutualLearning.hard_weight` must be a number of at least 0",
        ),
        (
            lambda: MutualLearning(
                students(), [Features(lambda t, s: t, teacher_layer="first", student_layer="first")]
            ),
            "`MutualLearning.losses` must be losses of outputs",
        ),
        (
            lambda: MutualLearning(students()).compile("sgd", "sparse_categorical_crossentropy"),
            "from_logits=True, since the student gives logits",
        ),
        (
            lambda: MutualLearning(students()).compile("sgd", cross_entropy(), loss_weights=[2.0]),
            "`loss_weights` must be None",
        ),
        (lambda: fitted([no_samples]), "`MutualLearning.losses` must be callables with one value per sample"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(InvalidArgumentError, match=message):
        make()


def fitted(losses):
    mutual = MutualLearning(students(), losses)
    mutual.compile("sgd", cross_entropy(), jit_compile=False)
    mutual.fit(*blobs(8, shape=(8,)), verbose=0)


def test_a_loss_of_ones_own_counts_once():
    models = students()
    x, y = blobs(8, shape=(8,))
    logits = [np.asarray(model(x)) for model in models]
    centred = [side - side.mean(-1, keepdims=True) for side in logits]
    mutual = MutualLearning(models, [LogitMatching(weight=0.25)], hard_weight=0.0)
    mutual.compile(keras.optimizers.SGD(0.0), cross_entropy(), jit_compile=False)
    logs = mutual.fit(x, y, verbose=0).history
    expected = 0.25 * np.square(centred[0] - centred[1]).mean()
    np.testing.assert_allclose([logs["loss_1"][0], logs["loss_2"][0]], expected, rtol=1e-4)
