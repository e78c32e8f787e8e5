"""Features: what is heard, how shapes are brought together, and a step against one written out."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import CLOSE, KillAfter, Killed, blob_dataset, blobs, cross_entropy, tiny_cnn, tiny_mlp, whole_and_resumed
from keras import layers, ops

from tfcompress.errors import InvalidArgumentError, ModelError
from tfcompress.techniques.distill import AttentionTransfer, Distiller, Features, Hints, SoftTargets, StoredOutputs
from tfcompress.techniques.distill.features.projectors import Projector, resized
from tfcompress.techniques.distill.features.taps import Tap, Taps, find_layer
from tfcompress.train_settings import TrainSettings
from tfcompress.training.fit import distribution_scope, fit


@dataclasses.dataclass(frozen=True)
class SquaredDifference:
    """A plain loss of features of one shape."""

    weight: float = 0.5
    same_shape: bool = True

    def __call__(self, teacher, student):
        return ops.mean(ops.square(teacher - student), axis=tuple(range(1, len(teacher.shape))))


def wide_cnn():
    """A teacher with more channels and positions within than `tiny_cnn`, and a network inside."""
    inputs = keras.Input((8, 8, 1), name="image")
    inner_input = keras.Input((8, 8, 6))
    inner = layers.Conv2D(10, 3, padding="same", activation="relu", name="conv")(inner_input)
    inner = keras.Model(inner_input, layers.BatchNormalization(name="bn")(inner), name="body")
    x = inner(layers.Conv2D(6, 3, padding="same", name="first")(inputs))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(4, name="classes")(x), name="wide")


def pair(teacher="first", student="stem", loss=None):
    return Features(loss or SquaredDifference(), teacher_layer=teacher, student_layer=student)


def untouched(model):
    return not any("call" in layer.__dict__ for layer in model._flatten_layers())


@pytest.mark.parametrize("weighted", [False, True])
def test_a_step_equals_one_written_out(weighted):
    keras.utils.set_random_seed(1)
    x, y = blobs(32, shape=(8,))
    sample_weight = np.linspace(0, 2, 32).astype("float32") if weighted else None
    student = tiny_mlp()
    wide = keras.Sequential([keras.Input((8,)), layers.Dense(7, activation="relu", name="wide"), layers.Dense(4)])
    hidden = student.layers[0].name
    distiller = Distiller(student, wide, [SoftTargets(weight=0.4), pair("wide", hidden)], hard_weight=0.3)
    kernel, bias = (variable.numpy() for variable in distiller.trained_along[0].trainable_variables)
    assert kernel.shape == (student.layers[0].units, 7)

    before = [variable.numpy() for variable in student.trainable_variables]
    projection = [tf.Variable(kernel), tf.Variable(bias)]
    with tf.GradientTape() as tape:
        features, logits = student.layers[0](x), student(x)
        projected = features @ projection[0] + projection[1]
        difference = tf.reduce_mean((projected - wide.layers[0](x)) ** 2, -1)
        hard = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
        soft = SoftTargets()(wide(x), logits)
        per_sample = 0.3 * hard + 0.4 * soft + 0.5 * difference
        loss = tf.reduce_mean(per_sample * (1.0 if sample_weight is None else sample_weight))
    variables = [*student.trainable_variables, *projection]
    steps = tape.gradient(loss, variables)

    distiller.compile(keras.optimizers.SGD(0.1), cross_entropy())
    logs = distiller.fit(x, y, batch_size=32, sample_weight=sample_weight, verbose=0, shuffle=False).history
    np.testing.assert_allclose(logs["loss"][0], loss, rtol=1e-4)
    trained = [*student.trainable_variables, *distiller.trained_along[0].trainable_variables]
    for value, step, variable in zip([*before, kernel, bias], steps, trained, strict=True):
        np.testing.assert_allclose(variable.numpy(), value - 0.1 * step.numpy(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{}, pytest.param({"jit_compile": True}, marks=pytest.mark.slow), {"steps_per_execution": 2}], ids=str
)
def test_features_come_together_and_nothing_stays(options, tmp_path):
    x, y = blobs(64)
    student, teacher = tiny_cnn(), wide_cnn()
    weights = teacher.get_weights()
    distiller = Distiller(student, teacher, [SoftTargets(), pair("body/conv", "stem_relu"), pair("pool", "hidden")])
    assert [layer.shape for layer in distiller.trained_along] == [(8, 8, 10), (10,)]
    distiller.compile(keras.optimizers.Adam(1e-2), cross_entropy(), metrics=["accuracy"], **options)
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "student.keras")
    validation = {"validation_data": (x, y), "callbacks": [checkpoint]}
    logs = distiller.fit(x, y, epochs=6, batch_size=16, verbose=0, **validation).history
    assert logs["feature_loss"][-1] < 0.7 * logs["feature_loss"][0]
    assert "val_feature_loss" not in logs
    assert untouched(student) and untouched(teacher)
    for old, new in zip(weights, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)
    saved = keras.saving.load_model(tmp_path / "student.keras")
    assert saved.count_params() == student.count_params()
    np.testing.assert_allclose(saved(x), student(x), **CLOSE)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(precision):
    settings = TrainSettings(epochs=4, learning_rate=1e-2, precision=precision)
    teacher = wide_cnn()
    result = fit(
        tiny_cnn(), blob_dataset(), settings, batch_size=32, seed=0,
        wrap=lambda replica: Distiller(replica, teacher, [SoftTargets(), pair()]),
    )  # fmt: skip
    assert result.history["feature_loss"][-1] < 0.8 * result.history["feature_loss"][0]


def test_two_replicas_compare_as_one():
    # Of one width, for the random start of a projector is not the same with a strategy as without.
    teacher, student = tiny_cnn(name="teacher"), tiny_cnn()
    results = {}
    for strategy in ("default", "mirrored"):
        settings = TrainSettings(epochs=1, strategy=strategy, optimizer="sgd", learning_rate=0.1)
        results[strategy] = fit(
            student, blob_dataset(), settings, batch_size=32, seed=0,
            # Normalization is by each replica's own batch, so it stands still here.
            wrap=lambda replica: Distiller(_frozen(replica), teacher, [SoftTargets(), pair("stem", "stem")]),
        )  # fmt: skip
    for one, two in zip(*(result.model.get_weights() for result in results.values()), strict=True):
        np.testing.assert_allclose(two, one, **CLOSE)
    losses = [result.history["feature_loss"] for result in results.values()]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    assert untouched(teacher)


def _frozen(model):
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.trainable = False
    return model


def test_a_killed_training_resumes_with_what_it_trained_along(tmp_path):
    teacher, student = wide_cnn(), tiny_cnn()

    def run(checkpoint, *callbacks):
        return fit(
            student, blob_dataset(), TrainSettings(epochs=4, learning_rate=1e-2), batch_size=32, seed=0,
            wrap=lambda replica: Distiller(replica, teacher, [pair()]), checkpoint=checkpoint,
            callbacks=lambda replica: callbacks,
        )  # fmt: skip

    whole, resumed = whole_and_resumed(run, tmp_path / "state.npz", kill_after=2)
    np.testing.assert_allclose(resumed.history["feature_loss"], whole.history["feature_loss"], rtol=1e-4)
    for one, two in zip(whole.model.get_weights(), resumed.model.get_weights(), strict=True):
        np.testing.assert_allclose(two, one, **CLOSE)


def test_networks_without_a_graph():
    class Block(keras.Model):
        def __init__(self, units, **kwargs):
            super().__init__(**kwargs)
            self.hidden = layers.Dense(units, activation="relu", name="hidden")
            self.classes = layers.Dense(4, name="classes")

        def call(self, inputs):
            return self.classes(self.hidden(inputs))

    x, y = blobs(32, shape=(8,))
    student, teacher = Block(5), Block(9)
    student(x), teacher(x)
    distiller = Distiller(student, teacher, [SoftTargets(), pair("hidden", "hidden")])
    distiller.compile("adam", cross_entropy())
    logs = distiller.fit(x, y, epochs=2, verbose=0).history
    assert logs["feature_loss"][-1] > 0
    assert [tuple(weight.shape) for weight in distiller.trained_along[0].weights] == [(5, 9), (9,)]


def test_attention_is_heard_as_it_is():
    inputs = keras.Input((6, 8))
    attention = layers.MultiHeadAttention(2, 4, name="attention")
    model = keras.Model(inputs, attention(inputs, inputs))
    x = np.random.default_rng(0).normal(size=(3, 6, 8)).astype("float32")
    expected, scores = attention(x, x, return_attention_scores=True)
    taps = Taps(model, [Tap("attention", attention=True), Tap("attention")])
    with taps.listening() as heard:
        outputs = model(x)
    values = taps.values(heard)
    np.testing.assert_allclose(values[Tap("attention", attention=True)], scores, **CLOSE)
    np.testing.assert_allclose(values[Tap("attention")], expected, **CLOSE)
    np.testing.assert_allclose(outputs, expected, **CLOSE)
    assert untouched(model)
    with pytest.raises(InvalidArgumentError, match="a MultiHeadAttention where attention is compared"):
        Taps(tiny_cnn(), [Tap("stem", attention=True)])


def test_a_network_is_left_as_it_was_by_an_error():
    model = tiny_cnn()
    taps = Taps(model, [Tap("stem")])
    with pytest.raises(ZeroDivisionError), taps.listening():
        assert not untouched(model)
        raise ZeroDivisionError
    assert untouched(model)


def test_layers_by_name_and_by_path():
    model = wide_cnn()
    body = model.get_layer("body")
    assert find_layer("x", model, "body/conv") is find_layer("x", model, "conv") is body.get_layer("conv")
    assert find_layer("x", model, "body") is body
    inputs = keras.Input((4,))
    twins = [keras.Sequential([keras.Input((4,)), layers.Dense(4, name="same")], name=name) for name in ("a", "b")]
    model = keras.Model(inputs, twins[1](twins[0](inputs)))
    assert find_layer("x", model, "b/same") is twins[1].get_layer("same")
    with pytest.raises(InvalidArgumentError, match=r"a name of one layer, such as one of \['a/same', 'b/same'\]"):
        find_layer("x", model, "same")


def shared_twice():
    inputs, dense = keras.Input((8, 8, 1)), layers.Dense(1, name="twice")
    x = layers.Flatten()(dense(dense(inputs)))
    return keras.Model(inputs, layers.Dense(4)(x))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Distiller(tiny_cnn(), wide_cnn(), [pair("frist")]), InvalidArgumentError,
         r"`Features.teacher_layer` must be the name of a layer of 'wide', such as \['first'.*Received: 'frist'"),
        (lambda: Distiller(tiny_cnn(), wide_cnn(), [pair(student="no")]), InvalidArgumentError,
         "`Features.student_layer` must be the name of a layer of 'tiny'"),
        (lambda: Distiller(tiny_cnn(), shared_twice(), [pair("twice")]), ModelError, "it ran 2 times"),
        (lambda: Distiller(tiny_cnn(), wide_cnn(), [pair("first", "hidden")]), InvalidArgumentError,
         r"`student_layer` must be a layer whose features have the axes of the teacher's, \(8, 8, 6\)"),
        (lambda: Distiller(tiny_cnn(), lambda x: x, [pair()]), InvalidArgumentError,
         "`teacher` must be a Keras model where features are compared"),
        (lambda: Distiller(tiny_cnn(), StoredOutputs(np.zeros((4, 4))), [pair()]), InvalidArgumentError,
         "`teacher` must be a Keras model where features are compared.*StoredOutputs"),
        (lambda: Features(3, teacher_layer="a", student_layer="b"), InvalidArgumentError, "`Features.loss` must be"),
        (lambda: pair(["a", "b"], "c"), InvalidArgumentError, "`Features.student_layer` must be as many layers"),
        (lambda: Features(Hints(), teacher_layer=["a", "b"], student_layer=["c", "d"]), InvalidArgumentError,
         r"`Features.teacher_layer` must be 1 for Hints. Received: \['a', 'b'\]"),
        (lambda: Distiller(tiny_cnn(), wide_cnn(), [pair("first", "hidden", AttentionTransfer())]),
         InvalidArgumentError, "AttentionTransfer"),
        (lambda: pair([], []), InvalidArgumentError, "`Features.teacher_layer` must be the name of a layer"),
    ],
    ids=[
        "no-layer", "no-student-layer", "twice", "axes", "callable", "stored", "no-loss", "counts", "two",
        "no-positions", "empty",
    ],
)  # fmt: skip
def test_what_is_refused_before_the_first_step(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_losses_of_keras_between_layers():
    if not hasattr(keras, "distillation"):
        pytest.skip("Keras before 3.12 has no distillation.")
    teacher = tiny_cnn(name="teacher")
    theirs = keras.distillation.FeatureDistillation(loss="mse", teacher_layer_name="stem", student_layer_name="stem")
    ours = pair("stem", "stem", SquaredDifference(weight=1.0))
    ends = []
    start = tiny_cnn()
    for loss in (theirs, ours):
        student = keras.models.clone_model(start)
        student.set_weights(start.get_weights())
        distiller = Distiller(student, teacher, [loss])
        distiller.compile(keras.optimizers.SGD(0.1), cross_entropy())
        distiller.fit(*blobs(32), shuffle=False, verbose=0)
        ends.append(student.get_weights())
    for one, two in zip(*ends, strict=True):
        np.testing.assert_allclose(two, one, **CLOSE)


@pytest.mark.parametrize(("old", "new"), [(8, 4), (9, 4), (4, 8), (5, 7), (6, 6)])
def test_positions_are_interpolated_or_averaged(old, new):
    x = np.random.default_rng(0).normal(size=(2, old, old, 3)).astype("float32")
    if new < old:
        # Each old position is `new` thin slices, each new one the mean of `old` of them.
        fine = np.repeat(np.repeat(x, new, 1), new, 2)
        expected = fine.reshape(2, new, old, new, old, 3).mean((2, 4))
    else:
        expected = tf.image.resize(x, (new, new)).numpy()
    np.testing.assert_allclose(resized(tf.constant(x), (new, new)), expected, **CLOSE)
    np.testing.assert_allclose(
        resized(tf.constant(x[:, 0]), (new,)), resized(tf.constant(x), (None, new))[:, 0], **CLOSE
    )
    np.testing.assert_allclose(resized(tf.constant(x), ()), x.mean((1, 2)), **CLOSE)


def test_a_projector_maps_channels_only_where_it_must():
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype("float32")
    same = Projector((None, None, 3))
    np.testing.assert_array_equal(same(x), x)
    assert not same.weights
    wider = Projector((2, 2, 5))
    kernel, bias = (weight.numpy() for weight in (wider(x), *wider.weights)[1:])
    expected = x.reshape(2, 2, 2, 2, 2, 3).mean((2, 4)) @ kernel + bias
    np.testing.assert_allclose(wider(x), expected, **CLOSE)


def test_backup_and_restore_goes_on_where_it_was(tmp_path):
    x, y = blobs(64)
    start, teacher = tiny_cnn(), wide_cnn()

    def trained(epochs, folder, kill_after=None):
        keras.utils.set_random_seed(0)
        student = keras.models.clone_model(start)
        student.set_weights(start.get_weights())
        distiller = Distiller(student, teacher, [SoftTargets(), pair()])
        distiller.compile(keras.optimizers.Adam(1e-2), cross_entropy())
        callbacks = [keras.callbacks.BackupAndRestore(folder, delete_checkpoint=False)] if folder else []
        callbacks += [] if kill_after is None else [KillAfter(kill_after)]
        distiller.fit(x, y, epochs=epochs, batch_size=32, shuffle=False, verbose=0, callbacks=callbacks)
        return student

    whole = trained(4, None)
    with pytest.raises(Killed):
        trained(4, tmp_path, kill_after=2)
    keras.utils.set_random_seed(99)
    resumed = trained(4, tmp_path)
    for one, two in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(two, one, **CLOSE)


def test_a_file_of_weights_is_the_students(tmp_path):
    x, y = blobs(32)
    distiller = Distiller(tiny_cnn(), wide_cnn(), [pair()])
    distiller.compile("adam", cross_entropy())
    distiller.fit(x, y, verbose=0)
    path = tmp_path / "weights.weights.h5"
    distiller.save_weights(path)
    student = tiny_cnn()
    student.load_weights(path)
    np.testing.assert_allclose(student(x), distiller.student(x), **CLOSE)
    other = Distiller(tiny_cnn(), wide_cnn(), [SoftTargets()])
    other.compile("sgd", cross_entropy())
    with pytest.warns(UserWarning, match="holds the state of another training"):
        other.load_weights(path)
    student.save_weights(path, overwrite=True)
    distiller.load_weights(path)


class Own(keras.Model):
    """A student without a graph."""

    def __init__(self):
        super().__init__()
        self.hidden, self.last = layers.Dense(5, name="hidden"), layers.Dense(4)

    def call(self, inputs, training=False):
        return self.last(self.hidden(inputs))


class Decorated(Own):
    @tf.function
    def call(self, inputs, training=False):
        return self.last(self.hidden(inputs))


def of_own(student, **options):
    distiller = Distiller(
        student,
        tiny_mlp(name="teacher"),
        [SoftTargets(), Features(Hints(), teacher_layer="first", student_layer="hidden")],
    )
    distiller.compile(keras.optimizers.SGD(0.1), cross_entropy(), **options)
    return distiller


def test_a_student_without_a_graph_shows_its_features_on_its_first_batch():
    x, y = blobs(16, shape=(8,))
    distiller = of_own(Own(), run_eagerly=True)
    distiller._outputs.find_out(x)
    with pytest.raises(ModelError, match="The shapes of features must be known before a step"):
        distiller.train_step((x, y))
    (projector,) = (distiller.train_on_batch(x, y), distiller.trained_along)[1]
    features = projector(distiller.student.hidden(x))
    expected = np.mean((features - distiller.teacher.source.get_layer("first")(x)) ** 2)
    again = distiller.train_on_batch(x, y, return_dict=True)
    np.testing.assert_allclose(again["feature_loss"], expected, rtol=1e-4)


def test_projectors_of_a_student_without_a_graph_are_in_the_scope_of_its_strategy():
    x, y = blobs(16, shape=(8,))
    with distribution_scope("mirrored"):
        strategy = tf.distribute.get_strategy()
        student = Own()
        student(x)
        distiller = of_own(student, jit_compile=False)
    distiller.fit(x, y, batch_size=16, verbose=0)
    (projector,) = distiller.trained_along
    assert len(strategy.experimental_local_results(projector.trainable_variables[0].value)) == 2


@pytest.mark.parametrize("eagerly", [False, True])
def test_layers_within_a_function_of_the_networks_own_are_not_heard(eagerly):
    x, y = blobs(16, shape=(8,))
    with pytest.raises(ModelError, match="within a `tf.function`.* Received: 'hidden'.* Leave out the decorator"):
        of_own(Decorated(), run_eagerly=eagerly).fit(x, y, verbose=0)
    student = Decorated()
    student(x, training=False)
    taps = Taps(student, [Tap("hidden")])
    with taps.listening() as heard:
        student(x, training=False)
    with pytest.raises(ModelError, match="it ran 0 times, or within a `tf.function` of the network's own"):
        taps.values(heard)
