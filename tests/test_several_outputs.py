"""Students and teachers with several outputs, each with losses of its own."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import blobs, tiny_mlp
from keras import layers, ops

from tfcompress.errors import InvalidArgumentError, ModelError
from tfcompress.techniques.distill import (
    Decoupled,
    Distiller,
    Features,
    Mixup,
    OutputMatching,
    Scheduled,
    SoftTargets,
    StoredOutputs,
    Teacher,
    TeacherBounded,
)


def two_outputs(*, as_dict=False, softmax=False, name="two"):
    inputs = keras.Input((8,))
    hidden = layers.Dense(12, activation="relu", name="hidden")(inputs)
    classes = layers.Dense(4, activation="softmax" if softmax else None, name="classes")(hidden)
    size = layers.Dense(1, name="size")(hidden)
    return keras.Model(inputs, {"classes": classes, "size": size} if as_dict else [classes, size], name=name)


def labelled(count=32):
    x, y = blobs(count, shape=(8,))
    return x, y, x.sum(1, keepdims=True).astype("float32")


def own_losses(softmax=False):
    return {"classes": keras.losses.SparseCategoricalCrossentropy(from_logits=not softmax), "size": "mse"}


@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize("softmax", [False, True])
def test_a_step_equals_one_written_out(as_dict, softmax):
    x, y, size = labelled()
    student = two_outputs(as_dict=as_dict, softmax=softmax)
    # The teacher has the names in another order and form.
    teacher = two_outputs(as_dict=not as_dict, softmax=not softmax, name="teacher")
    before = student.get_weights()

    def both(model):
        outputs = model(x)
        return (outputs["classes"], outputs["size"]) if isinstance(outputs, dict) else tuple(outputs)

    with tf.GradientTape() as tape:
        (own, own_size), (says, says_size) = both(student), both(teacher)
        own, says = (tf.math.log(own), says) if softmax else (own, tf.math.log(says))
        hard = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, own))
        hard += tf.reduce_mean((own_size - size) ** 2)
        loss = 0.2 * hard + 0.9 * tf.reduce_mean(SoftTargets()(says, own))
        loss += 0.3 * tf.reduce_mean((own_size - says_size) ** 2)
    steps = tape.gradient(loss, student.trainable_variables)
    distiller = Distiller(
        student,
        teacher,
        {"size": [OutputMatching(weight=0.3)], "classes": [SoftTargets(weight=0.9)]},
        hard_weight=0.2,
    )
    distiller.compile(keras.optimizers.SGD(0.1), own_losses(softmax))
    labels = {"classes": y, "size": size} if as_dict else [y, size]
    logs = distiller.fit(x, labels, batch_size=32, shuffle=False, verbose=0).history
    np.testing.assert_allclose(logs["loss"][0], loss, rtol=1e-4)
    for old, step, variable in zip(before, steps, student.trainable_variables, strict=True):
        np.testing.assert_allclose(variable.numpy(), old - 0.1 * step.numpy(), rtol=1e-3, atol=1e-5)


def test_a_teacher_of_several_sees_its_own_range():
    x, _, _ = labelled()
    network = two_outputs(name="teacher")
    teacher = Teacher(network, input_range=(0, 255), data_range=(0, 1))
    distiller = Distiller(two_outputs(), teacher, {"classes": [SoftTargets()]}, hard_weight=0.5)
    distiller.teacher.find_out_outputs(x)
    np.testing.assert_allclose(distiller.teacher.logits(x)["classes"], network(255 * x)[0], rtol=1e-4)
    with pytest.raises(ModelError, match="The teacher, the Keras model 'teacher', takes inputs of shape"):
        distiller.teacher.find_out_outputs(x[:, :4])
    mapped = Teacher(network, class_map=[1, 0])
    with pytest.raises(InvalidArgumentError, match="class_map` must be None where losses are given by output"):
        Distiller(two_outputs(), mapped, {"classes": [SoftTargets()]}, hard_weight=0.5)


def test_all_kinds_of_losses_by_output(tmp_path):
    def difference(teacher, student):
        return ops.mean(ops.square(teacher - student), axis=-1)

    x, y, size = labelled(64)
    student, teacher = two_outputs(as_dict=True), two_outputs(name="teacher")
    losses = {
        "classes": [
            Decoupled(weight=0.3),
            Scheduled(SoftTargets(), temperature=lambda step: 2.0),
            Features(difference, teacher_layer="hidden", student_layer="hidden"),
        ],
        "size": [OutputMatching()],
    }
    distiller = Distiller(student, teacher, losses, hard_weight=0.0, mix=Mixup(alpha=0.5))
    distiller.compile(keras.optimizers.Adam(1e-2), own_losses(), metrics={"classes": "accuracy"}, jit_compile=True)
    data = {"validation_data": (x, {"classes": y, "size": size}), "epochs": 6, "batch_size": 16, "verbose": 0}
    logs = distiller.fit(x, {"classes": y, "size": size}, **data).history
    assert logs["distillation_loss"][-1] < 0.7 * logs["distillation_loss"][0]
    assert {"feature_loss", "val_loss"} <= set(logs)
    distiller.save(tmp_path / "student.keras")
    assert keras.saving.load_model(tmp_path / "student.keras").count_params() == student.count_params()


def test_a_callable_with_a_dict_teaches():
    x, y, size = labelled()
    distiller = Distiller(
        two_outputs(),
        lambda x: {"classes": ops.zeros((ops.shape(x)[0], 4))},
        {"classes": [SoftTargets()]},
        hard_weight=1,
    )
    distiller.compile("adam", own_losses())
    assert np.isfinite(distiller.fit(x, [y, size], verbose=0).history["distillation_loss"][0])


def test_an_output_without_labels_has_none_for_its_losses():
    x, _, _ = labelled()
    student, teacher = two_outputs(as_dict=True), two_outputs(name="teacher")
    for loss in (Decoupled(), TeacherBounded()):
        distiller = Distiller(student, teacher, {"classes": [loss], "size": [OutputMatching()]}, hard_weight=0)
        distiller.compile("sgd", {"classes": None, "size": "mse"}, run_eagerly=True)
        labels = {"size": x.sum(1, keepdims=True)}
        if isinstance(loss, Decoupled):
            assert np.isfinite(distiller.fit(x, labels, verbose=0).history["distillation_loss"][0])
            continue
        with pytest.raises(InvalidArgumentError, match="`TeacherBounded.labels` must be the true values"):
            distiller.fit(x, labels, verbose=0)


def both(**options):
    return lambda: Distiller(two_outputs(), two_outputs(name="teacher"), {"classes": [SoftTargets()]}, **options)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (both(), InvalidArgumentError, "`Distiller.hard_weight` must be given where losses are, by output"),
        (lambda: Distiller(two_outputs(), two_outputs()), ModelError, "Give losses=dict"),
        (lambda: Distiller(two_outputs(), two_outputs(), {"klasses": [SoftTargets()]}, hard_weight=0),
         InvalidArgumentError, r"\['classes', 'size'\]"),
        (lambda: Distiller(two_outputs(), tiny_mlp(), {"classes": [SoftTargets()]}, hard_weight=0),
         ModelError, "Several outputs must have names"),
        (lambda: Distiller(two_outputs(), StoredOutputs(np.zeros((4, 4))), {"classes": [SoftTargets()]}, hard_weight=0),
         InvalidArgumentError, "`teacher` must be a Keras model, or a callable that gives a dict"),
    ],
    ids=["hard-weight", "one-list", "name", "one-output", "stored"],
)  # fmt: skip
def test_what_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_teacher_of_nan_is_named_by_its_output():
    x, y, size = labelled()
    distiller = Distiller(
        two_outputs(), lambda x: {"classes": ops.full((len(x), 4), np.nan)}, {"classes": [SoftTargets()]}, hard_weight=1
    )
    distiller.compile("adam", own_losses())
    with pytest.raises(ModelError, match="output 'classes'.* must give finite outputs"):
        distiller.fit(x, [y, size], verbose=0)
    with pytest.raises(InvalidArgumentError, match="`sample_weight` must be one number per sample"):
        good = Distiller(two_outputs(), two_outputs(), {"classes": [SoftTargets()]}, hard_weight=1)
        good.compile("adam", own_losses(), run_eagerly=True)
        good.fit(x, [y, size], sample_weight=[np.ones(32), np.ones(32)], verbose=0)
