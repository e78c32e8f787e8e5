"""A student's moving average as its teacher: against one written out, in every kind of step, and after a resume."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import CLOSE, blob_dataset, blobs, cross_entropy, tiny_mlp, whole_and_resumed

import tfcompress as tfc
from tfcompress.errors import InvalidArgumentError, ModelError
from tfcompress.techniques.distill import AveragedTeacher, Distiller, Ensemble, SoftTargets, cache_teacher
from tfcompress.techniques.distill.features import Features, Hints
from tfcompress.train_settings import TrainSettings
from tfcompress.training.fit import distribution_scope, fit


def network(name="network"):
    """Dense layers with BatchNormalization between them."""
    norm = keras.layers.BatchNormalization(momentum=0.7, name="norm")
    return keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(12), norm, keras.layers.ReLU(), keras.layers.Dense(4)], name=name
    )


def taught(student, momentum=0.999, jit_compile=False):
    distiller = Distiller(student, AveragedTeacher(student, momentum), [SoftTargets(temperature=2.0, weight=0.5)])
    distiller.compile(keras.optimizers.SGD(0.1), cross_entropy(), jit_compile=jit_compile)
    return distiller


def written_out(student, x, y, momentum, batch):
    """Students and averages after each step of plain descent, by one `GradientTape` to each."""
    average = keras.models.clone_model(student)
    average.set_weights(student.get_weights())
    for step, at in enumerate(range(0, len(x), batch)):
        inputs, labels = x[at : at + batch], y[at : at + batch]
        says = tf.nn.log_softmax(average(inputs, training=False) / 2)
        with tf.GradientTape() as tape:
            outputs = student(inputs, training=True)
            own = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, outputs)
            soft = 4 * tf.reduce_sum(tf.exp(says) * (says - tf.nn.log_softmax(outputs / 2)), -1)
            loss = tf.reduce_mean(0.5 * own + 0.5 * soft)
        for variable, slope in zip(
            student.trainable_variables, tape.gradient(loss, student.trainable_variables), strict=True
        ):
            variable.assign_sub(0.1 * slope)
        share = min(momentum, (1 + step) / (10 + step))
        average.set_weights(
            [
                share * old + (1 - share) * new
                for old, new in zip(average.get_weights(), student.get_weights(), strict=True)
            ]
        )
    return average


@pytest.mark.parametrize(("momentum", "jit_compile"), [(0.15, False), (0.999, True)])
def test_steps_equal_some_written_out(momentum, jit_compile):
    x, y = blobs(64, shape=(8,))
    student, twin = network(), network("twin")
    twin.set_weights(student.get_weights())
    expected = written_out(twin, x, y, momentum, 16)

    distiller = taught(student, momentum, jit_compile=jit_compile)
    distiller.fit(x, y, batch_size=16, shuffle=False, verbose=0)
    for model, reference in ((student, twin), (distiller.teacher.source, expected)):
        for actual, wanted in zip(model.get_weights(), reference.get_weights(), strict=True):
            np.testing.assert_allclose(actual, wanted, rtol=1e-3, atol=1e-4)
    assert int(distiller.teacher.variables[-1]) == 4
    # The statistics of BatchNormalization are among them, and not those of the student.
    means = [model.get_layer("norm").moving_mean.numpy() for model in (student, distiller.teacher.source)]
    assert np.abs(means[0] - means[1]).max() > 1e-4


def test_the_random_start_is_forgotten():
    student = tiny_mlp()
    teacher = AveragedTeacher(student)
    start = student.get_weights()
    student.set_weights([np.ones_like(weight) for weight in start])
    for _ in range(30):
        teacher.follow(student)
    kernel = teacher.source.get_weights()[0]
    # What 30 steps of a plain momentum of 0.999 would have left of it is 0.97.
    shares = np.prod([min(0.999, (1 + step) / (10 + step)) for step in range(30)])
    assert shares < 1e-5
    np.testing.assert_allclose(kernel, 1.0, atol=1e-4)


def test_replicas_agree_with_one():
    """Without BatchNormalization, whose statistics are those of one replica."""
    x, y = blobs(64, shape=(8,))
    model, trained = tiny_mlp(), {}
    outside = AveragedTeacher(model, 0.5)
    for replicas, strategy in ((1, "default"), (2, "mirrored")):
        with distribution_scope(strategy):
            student = tiny_mlp()
            student.set_weights(model.get_weights())
            # One that was made before is copied into the scope; the other is in it.
            distiller = Distiller(student, outside if replicas == 2 else AveragedTeacher(student, 0.5))
            distiller.compile(keras.optimizers.SGD(0.1), cross_entropy(), jit_compile=False)
        distiller.fit(x, y, batch_size=32, epochs=2, shuffle=False, verbose=0)
        trained[replicas] = [*student.weights, *distiller.teacher.variables]
    for one, two in zip(trained[1], trained[2], strict=True):
        np.testing.assert_allclose(*(keras.ops.convert_to_numpy(side) for side in (one, two)), rtol=1e-4, atol=1e-5)
    # Both replicas' averages are the same; Python's `int` could not read their number of steps.
    for variable in trained[2]:
        first, second = (copy.numpy() for copy in variable.value.values)
        np.testing.assert_array_equal(first, second)
    assert keras.ops.convert_to_numpy(trained[2][-1]) == 4
    assert np.abs(trained[1][0].numpy() - trained[1][len(model.weights)].numpy()).max() > 1e-4
    assert int(outside.variables[-1]) == 0


def test_what_it_says_is_not_stored(tmp_path):
    with pytest.raises(InvalidArgumentError, match="`teacher` must be one whose outputs stay as they are"):
        cache_teacher(AveragedTeacher(tiny_mlp()), blob_dataset(shape=(8,)), tmp_path)


@pytest.mark.slow
def test_a_training_is_resumed_with_its_average(tmp_path):
    data, model = blob_dataset(64, shape=(8,)), tiny_mlp()

    def run(checkpoint, *callbacks):
        teachers = []

        def wrap(replica):
            teachers.append(AveragedTeacher(replica, 0.9))
            return Distiller(replica, teachers[-1])

        result = fit(
            model,
            data,
            TrainSettings(epochs=2),
            batch_size=32,
            seed=0,
            wrap=wrap,
            callbacks=lambda replica: callbacks,
            checkpoint=checkpoint,
        )
        return [*result.model.get_weights(), *(keras.ops.convert_to_numpy(each) for each in teachers[0].variables)]

    whole, resumed = whole_and_resumed(run, tmp_path / "training.npz", kill_after=1)
    assert whole[-1] == resumed[-1] == 4
    for expected, actual in zip(whole, resumed, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_it_follows_in_mixed_precision_and_with_features():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        student = network()
    finally:
        keras.config.set_dtype_policy("float32")
    teacher = AveragedTeacher(student, 0.5)
    policies = [[layer.dtype_policy.name for layer in model.layers] for model in (student, teacher.source)]
    assert policies[0] == policies[1] and "mixed_bfloat16" in policies[0]
    assert {weight.dtype for weight in teacher.source.weights} == {"float32"}
    hint = Features(Hints(weight=0.1), teacher_layer="norm", student_layer="norm")
    distiller = Distiller(student, teacher, [SoftTargets(), hint])
    distiller.compile("adam", cross_entropy(), jit_compile=False, steps_per_execution=2)
    before = teacher.source.get_weights()
    history = distiller.fit(*blobs(64, shape=(8,)), batch_size=16, epochs=2, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert np.abs(before[0] - teacher.source.get_weights()[0]).max() > 1e-4
    assert len(distiller.trainable_variables) == len(student.trainable_variables)


def test_it_has_what_layers_learned_from_data_and_copies_integers():
    normalization = keras.layers.Normalization()
    normalization.adapt(np.array([[1.0, 2.0], [3.0, 6.0]]))
    dropout = keras.layers.Dropout(0.5)
    student = keras.Sequential([keras.Input((2,)), normalization, keras.layers.Dense(3), dropout])
    teacher = AveragedTeacher(student)
    x = np.ones((2, 2), "float32")
    np.testing.assert_allclose(teacher.logits(x), student(x), **CLOSE)
    student.layers[0].count.assign(7)
    teacher.follow(student)
    assert int(teacher.source.layers[0].count) == 7
    np.testing.assert_allclose(teacher.logits(x), student(x), **CLOSE)


def test_a_student_without_a_graph_is_averaged():
    @keras.saving.register_keras_serializable(package="test_averaged_teacher")
    class Own(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.dense = keras.layers.Dense(4)

        def call(self, inputs):
            return self.dense(inputs)

    x, y = blobs(32, shape=(8,))
    with pytest.raises(ModelError, match="has no weights yet.*Call it on a batch"):
        AveragedTeacher(Own())
    student = Own()
    student(x)
    distiller = taught(student, 0.5)
    distiller.fit(x, y, verbose=0)
    assert np.abs(distiller.teacher.source.get_weights()[0] - student.get_weights()[0]).max() > 1e-6


def test_it_follows_within_an_ensemble_and_is_refused_for_several_outputs():
    student = network()
    ensemble = Ensemble([AveragedTeacher(student, 0.5), network("large")])
    distiller = Distiller(student, ensemble)
    distiller.compile("sgd", cross_entropy(), jit_compile=False)
    distiller.fit(*blobs(64, shape=(8,)), batch_size=16, verbose=0)
    assert int(ensemble.variables[-1]) == 4 and len(ensemble.variables) == len(student.weights) + 1
    with pytest.raises(InvalidArgumentError, match="must be a Keras model, or a callable that gives a dict"):
        Distiller(student, AveragedTeacher(student), {"dense": [SoftTargets()]}, hard_weight=1.0)


def test_it_is_not_stored():
    student = tiny_mlp()
    assert AveragedTeacher(student).key() is None
    assert tfc.AveragedTeacher is AveragedTeacher


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: AveragedTeacher(lambda x: x), InvalidArgumentError, "`AveragedTeacher.student` must be the Keras"),
        (lambda: AveragedTeacher(tiny_mlp(), 1.0), InvalidArgumentError, r"momentum` must be a number in \[0, 1\)"),
        (lambda: AveragedTeacher(tiny_mlp(), True), InvalidArgumentError, "Received: True"),
        (
            lambda: taught(tiny_mlp()).teacher.follow(tiny_mlp(inputs=7)),
            ModelError,
            r"must follow the student .*\[\(8, 16\).*Received: 'mlp' with \[\(7, 16\).*Make it of the student",
        ),
    ],
)
def test_what_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
