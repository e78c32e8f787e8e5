"""What can teach: every kind of source, on inputs of its own size and with classes of its own; what is refused."""

import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import CLOSE, cross_entropy, numpy_log_softmax
from keras import layers

import tfcompress as tfc
from tfcompress.errors import InvalidArgumentError, ModelError
from tfcompress.techniques.distill import Teacher
from tfcompress.techniques.distill.saved_model import SavedModel

SHAPE = (8, 8, 1)
IMAGES = np.random.default_rng(0).uniform(size=(8, *SHAPE)).astype("float32")


def linear(library=keras, classes=4, shape=SHAPE, softmax=False, seed=0, name="large"):
    """A flat linear classifier of either Keras, with weights of that seed."""
    model = library.Sequential(
        [
            library.layers.InputLayer(shape),
            library.layers.Flatten(),
            library.layers.Dense(classes, activation="softmax" if softmax else None),
        ],
        name=name,
    )
    kernel = np.random.default_rng(seed).normal(size=(int(np.prod(shape)), classes))
    model.set_weights([kernel.astype("float32"), np.arange(classes, dtype="float32")])
    return model


def expected_logits(images=IMAGES, classes=4, seed=0):
    kernel = np.random.default_rng(seed).normal(size=(int(np.prod(images.shape[1:])), classes)).astype("float32")
    return images.reshape(len(images), -1) @ kernel + np.arange(classes)


class Graph(tf.Module):
    """Functions of TensorFlow alone, for SavedModels that no Keras has made."""

    def __init__(self):
        self.kernel = tf.Variable(tf.ones((4, 3)))

    @tf.function(input_signature=[tf.TensorSpec((None, 4), name="x")])
    def outputs(self, x):
        return x @ self.kernel

    @tf.function(input_signature=[tf.TensorSpec((None, 4), name="x")])
    def two(self, x):
        return {"a": x @ self.kernel, "b": x}

    @tf.function(input_signature=[tf.TensorSpec((2, 4), name="x")])
    def of_two_samples(self, x):
        return x @ self.kernel

    @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.uint8, name="x")])
    def of_integers(self, x):
        return tf.cast(x, tf.float32) @ self.kernel

    @tf.function(input_signature=[tf.TensorSpec((None, 4), name="x"), tf.TensorSpec((None, 4), name="y")])
    def of_two_inputs(self, x, y):
        return (x + y) @ self.kernel


def exported(folder, signatures):
    module = Graph()
    named = {name: getattr(module, function) for name, function in signatures.items()}
    tf.saved_model.save(module, str(folder), signatures=named)
    return folder


# ---- every kind of source


KINDS = (
    "keras",
    "tf_keras",
    "keras_file",
    "tf_keras_file",
    "tflite",
    "saved_model",
    "tf_keras_saved_model",
    "callable",
)


def written(kind, model, folder):
    """A model, of the Keras that the kind is of, as a source of that kind."""
    path = folder / "model"
    if kind in ("keras_file", "tf_keras_file"):
        path = folder / f"model.{'keras' if kind == 'keras_file' else 'h5'}"
        model.save(path)
    elif kind == "tf_keras_saved_model":
        model.save(path, save_format="tf")
    elif kind == "saved_model":
        model.export(path, verbose=False)
    elif kind == "tflite":
        path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    else:
        return model if kind != "callable" else lambda x: model(x)
    return path


def library_of(kind):
    import tf_keras

    return tf_keras if kind.startswith("tf_keras") else keras


def source_of(kind, folder, **options):
    return written(kind, linear(library_of(kind), **options), folder)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_logits_of_its_probabilities_and_teaches(kind, tmp_path):
    teacher = Teacher(source_of(kind, tmp_path, softmax=True))
    assert teacher.num_classes == (None if kind == "callable" else 4)
    teacher.find_out_outputs(IMAGES)
    assert teacher.num_classes == 4 and teacher.output_shape == (4,)
    expected = numpy_log_softmax(expected_logits())
    np.testing.assert_allclose(teacher.logits(IMAGES), expected, rtol=1e-3, atol=1e-4)
    assert teacher.compiles == (kind != "tflite")
    if teacher.compiles:
        compiled = tf.function(teacher.logits, jit_compile=True)
        np.testing.assert_allclose(compiled(IMAGES), expected, rtol=1e-3, atol=1e-4)
    assert (teacher.key() is None) == (kind == "callable")


@pytest.mark.parametrize("kind", ["tf_keras", "saved_model"])
def test_variables_of_others_teach_on_two_replicas(kind, tmp_path):
    teacher = Teacher(source_of(kind, tmp_path))
    teacher.find_out_outputs(IMAGES)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        inside = teacher.in_scope()
    halves = strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensors(IMAGES).unbatch().batch(8))
    found = strategy.run(tf.function(inside.logits), args=(next(iter(halves)),))
    actual = np.concatenate([part.numpy() for part in strategy.experimental_local_results(found)])
    np.testing.assert_allclose(actual, expected_logits(), **CLOSE)


@pytest.mark.parametrize("kind", ["keras", "tf_keras", "tflite", "saved_model"])
def test_another_teacher_has_another_key(kind, tmp_path):
    for number in (0, 1, 2):
        (tmp_path / str(number)).mkdir()
    one, same, other = (
        Teacher(source_of(kind, tmp_path / str(number), seed=seed)) for number, seed in ((0, 0), (1, 0), (2, 1))
    )
    assert one.key() != other.key()
    if kind in ("keras", "tf_keras"):
        assert one.key() == same.key()
    else:  # Two exports of one model differ in their names.
        shutil.copytree(tmp_path / "0", tmp_path / "copy")
        assert Teacher(tmp_path / "copy" / "model").key() == one.key()


def test_a_key_knows_what_is_done_with_inputs_and_outputs():
    model = linear()
    options = [
        {},
        {"resize": (4, 4)},
        {"resize": (4, 5)},
        {"class_map": [0, 1]},
        {"class_map": [1, 0]},
        {"class_map": [0, 1], "resize": (4, 4)},
        {"input_range": (0, 255), "data_range": (0, 1)},
    ]
    assert len({Teacher(model, **each).key() for each in options}) == len(options)


def test_a_subclassed_model_of_tf_keras_teaches_live_and_as_its_saved_graph(tmp_path):
    import tf_keras

    class Own(tf_keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = linear(tf_keras)

        def call(self, inputs, training=None):
            return tf.where(training, 0.0, 1.0) * self.inner(inputs) if training is not None else self.inner(inputs)

    model = Own()
    model(IMAGES)
    model.save(tmp_path / "own", save_format="tf")
    for source in (model, tmp_path / "own"):
        np.testing.assert_allclose(Teacher(source).logits(IMAGES), expected_logits(), **CLOSE)
    assert isinstance(Teacher(tmp_path / "own").source, SavedModel)


# ---- inputs of its own


@pytest.mark.parametrize("size", [(8, 8), (5, 3), (3, 12), (17, 16)])
def test_images_are_resized_as_tensorflow_does_also_compiled(size):
    images = np.random.default_rng(1).uniform(size=(3, 8, 8, 2)).astype("float32")
    expected = tf.image.resize(images, size, antialias=True).numpy().reshape(3, -1)
    teacher = Teacher(lambda x: tf.reshape(x, (3, -1)), resize=size)
    np.testing.assert_allclose(teacher.logits(images), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(tf.function(teacher.logits, jit_compile=True)(images), expected, rtol=1e-5, atol=1e-6)
    of_any_size = tf.function(teacher.logits, input_signature=[tf.TensorSpec((3, None, None, 2))])
    np.testing.assert_allclose(of_any_size(images), expected, rtol=1e-5, atol=1e-6)


def test_shrinking_by_two_is_the_mean_with_neighbours():
    # Of half the size, a pixel is a triangle over four: 1/8, 3/8, 3/8, 1/8, of which one is cut off at the border.
    row = np.array([8.0, 0, 0, 16, 0, 0, 24, 0], "float32").reshape(1, 1, 8, 1)
    actual = Teacher(lambda x: tf.reshape(x, (1, -1)), resize=(1, 4)).logits(row)
    np.testing.assert_allclose(actual[0], [8 * 3 / 7, 6, 5, 24 * 3 / 7], rtol=1e-5)


def test_size_and_range_go_together_and_are_kept_by_a_copy():
    images = (IMAGES * 255).astype("uint8")
    options = {"resize": (4, 4), "input_range": (-1, 1), "data_range": (0, 255), "class_map": [3, 0]}
    teacher = Teacher(linear(shape=(4, 4, 1)), **options)
    prepared = tf.image.resize(images, (4, 4), antialias=True).numpy() / 127.5 - 1
    expected = expected_logits(prepared)[:, [3, 0]]
    np.testing.assert_allclose(teacher.logits(images), expected, rtol=1e-4, atol=1e-4)
    copy = teacher.with_source(linear(shape=(4, 4, 1)))
    np.testing.assert_allclose(copy.logits(images), expected, rtol=1e-4, atol=1e-4)
    assert copy.key() == teacher.key() and copy.num_classes == 2


@pytest.mark.parametrize("kind", ["keras", "tf_keras", "tflite", "saved_model"])
def test_inputs_of_another_size_are_an_error_that_says_so(kind, tmp_path):
    source = source_of(kind, tmp_path, shape=(4, 6, 1))
    with pytest.raises(ModelError, match=r"\(batch, 4, 6, 1\). Received: .*\(batch, 8, 8, 1\).*resize=\(4, 6\)"):
        Teacher(source).find_out_outputs(IMAGES)
    Teacher(source, resize=(4, 6)).find_out_outputs(IMAGES)
    with pytest.raises(ModelError, match=r"\(batch, 4, 6, 1\). Received: .*\(batch, 3, 3, 1\)"):
        Teacher(source, resize=(3, 3)).find_out_outputs(IMAGES)
    with pytest.raises(ModelError, match=r"Received: .*\(batch, 4, 6, 3\). Pass a callable"):
        Teacher(source).find_out_outputs(np.zeros((2, 4, 6, 3), "float32"))


def test_a_last_axis_of_one_is_as_keras_takes_it():
    inputs = keras.Input((8, 8))
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(inputs)))
    assert Teacher(model).logits(IMAGES).shape == (8, 3)


def test_only_images_are_resized():
    for inputs in (np.zeros((2, 8), "float32"), {"image": IMAGES}):
        with pytest.raises(InvalidArgumentError, match="`resize` must be None unless the inputs are images"):
            Teacher(lambda x: x, resize=(4, 4)).find_out_outputs(inputs)


# ---- classes of its own


@pytest.mark.parametrize("softmax", [False, True])
def test_a_class_map_chooses_and_orders_classes(softmax):
    chosen = [5, 0, 3]
    teacher = Teacher(linear(classes=6, softmax=softmax), class_map=chosen)
    assert teacher.num_classes == 3
    own = expected_logits(classes=6)
    probabilities = np.exp(numpy_log_softmax(own))[:, chosen]
    np.testing.assert_allclose(
        tf.nn.softmax(teacher.logits(IMAGES)), probabilities / probabilities.sum(-1, keepdims=True), rtol=1e-3
    )
    if not softmax:
        np.testing.assert_allclose(teacher.logits(IMAGES), own[:, chosen], **CLOSE)
        np.testing.assert_allclose(tf.function(teacher.logits, jit_compile=True)(IMAGES), own[:, chosen], **CLOSE)


@pytest.mark.parametrize(
    ("class_map", "message"),
    [
        ([0, 4], "`class_map` must be indices below 4, the outputs of the Keras model 'large'. Received: 4"),
        ([0, 1, 0], "all different. Received: '0 twice'"),
        ([0, -1], "index of the teacher's output, from 0"),
        ([0.0, 1.0], "index of the teacher's output"),
        ([], "index of the teacher's output"),
        ("ab", "index of the teacher's output"),
    ],
)
def test_mistaken_class_maps(class_map, message):
    with pytest.raises(InvalidArgumentError, match=message):
        Teacher(linear(), class_map=class_map)


def test_a_class_map_of_what_only_outputs_tell():
    with pytest.raises(InvalidArgumentError, match="indices below 4"):
        Teacher(lambda x: linear()(x), class_map=[0, 4]).find_out_outputs(IMAGES)
    with pytest.raises(InvalidArgumentError, match="`student` must be a model of 2 classes, .* Received: 4"):
        tfc.Distiller(linear(), Teacher(linear(), class_map=[0, 1]))


@pytest.mark.parametrize("resize", [8, (0, 4), (4,), (4, 4, 1), (4.0, 4.0), (True, 4), "44"])
def test_mistaken_sizes(resize):
    with pytest.raises(InvalidArgumentError, match=r"`resize` must be None or \(height, width\)"):
        Teacher(linear(), resize=resize)


# ---- what is refused before the first step


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_wrong_with_a_teacher_is_an_error_before_the_first_step(kind, tmp_path):
    student = linear(name="small", seed=5)
    before = student.get_weights()
    wrong, broken = tmp_path / "wrong", tmp_path / "broken"
    for folder in (wrong, broken):
        folder.mkdir()
    with pytest.raises(InvalidArgumentError, match="model of 3 classes|of the teacher's shape"):
        fit(student, Teacher(source_of(kind, wrong, classes=3)))
    model = linear(library_of(kind))
    model.set_weights([np.full((64, 4), np.nan, "float32"), np.zeros(4, "float32")])
    with pytest.raises(ModelError, match="finite outputs. Received: NaN"):
        fit(student, Teacher(written(kind, model, broken)))
    for expected, actual in zip(before, student.get_weights(), strict=True):
        np.testing.assert_array_equal(actual, expected)


def fit(student, teacher):
    distiller = tfc.Distiller(student, teacher)
    distiller.compile("adam", cross_entropy())
    distiller.fit(IMAGES, np.zeros(8), verbose=0)


def test_callables_that_give_something_else():
    for outputs, message in (
        (lambda x: tf.zeros(8), r"must give outputs of shape \(8, ..., classes\) for 8 samples. Received: \(8,\)"),
        (lambda x: tf.zeros((1, 4)), r"Received: \(1, 4\)"),
        (lambda x: (tf.zeros((8, 4)), tf.zeros((8, 2))), "must give one tensor. Received: 2"),
    ):
        with pytest.raises(ModelError, match=message):
            Teacher(outputs).find_out_outputs(IMAGES)


def test_files_of_weights_and_folders_of_nothing(tmp_path):
    linear().save_weights(tmp_path / "large.weights.h5")
    with pytest.raises(ModelError, match=r"holds weights without a model .*load\(path, into=model\)"):
        Teacher(tmp_path / "large.weights.h5")
    (tmp_path / "model.tflite").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="No model can be read from"):
        Teacher(tmp_path / "model.tflite")


# ---- SavedModels that no Keras has made


def test_a_signature_is_run_by_its_name_or_as_the_only_one(tmp_path):
    x = np.arange(8, dtype="float64").reshape(2, 4)
    for signatures in ({"serving_default": "outputs", "other": "two"}, {"mine": "outputs"}):
        teacher = Teacher(exported(tmp_path / "-".join(signatures), signatures))
        np.testing.assert_allclose(teacher.logits(x), x.sum(1, keepdims=True).repeat(3, 1), **CLOSE)
    both = Teacher(exported(tmp_path / "both", {"mine": "of_two_inputs"}))
    np.testing.assert_allclose(both.logits({"x": x, "y": x}), 2 * x.sum(1, keepdims=True).repeat(3, 1), **CLOSE)
    with pytest.raises(ModelError, match=r"by name, as a dict of \['x', 'y'\]"):
        both.logits(x)


@pytest.mark.parametrize(
    ("signatures", "message"),
    [
        ({"one": "outputs", "two": "outputs"}, "several signatures, none of which is 'serving_default': one, two"),
        ({}, "has no signature"),
        ({"serving_default": "two"}, r"must have one output. Received: {'a': \(None, 3\), 'b': \(None, 4\)}"),
        ({"serving_default": "of_two_samples"}, r"batches of any size. Received: input 'x' of shape \(2, 4\)"),
    ],
)
def test_what_a_saved_model_must_have(signatures, message, tmp_path):
    with pytest.raises(ModelError, match=message):
        Teacher(exported(tmp_path / "model", signatures))


def test_a_saved_model_of_integers_is_not_given_rounded_floats(tmp_path):
    teacher = Teacher(exported(tmp_path / "model", {"serving_default": "of_integers"}))
    teacher.find_out_outputs(np.ones((2, 4), "int32"))
    with pytest.raises(ModelError, match="takes uint8 as input 'x'. Received: float32"):
        teacher.find_out_outputs(np.ones((2, 4), "float32"))


@pytest.mark.parametrize("operation", ["PyFunc", "WriteFile", "PrintV2"])
def test_a_saved_model_that_would_do_more_than_compute_is_not_loaded(operation, tmp_path):
    ran = tmp_path / "ran"

    def does(x):
        if operation == "PyFunc":
            return tf.ensure_shape(tf.numpy_function(lambda v: ran.write_text("") or v, [x], tf.float32), x.shape)
        if operation == "WriteFile":
            tf.io.write_file(str(ran), "")
        else:
            tf.print(x, output_stream=f"file://{ran}")
        return x

    module = tf.Module()
    # Within another function, where the signature alone does not show it.
    inner = tf.function(does)
    module.outer = tf.function(lambda x: inner(x), input_signature=[tf.TensorSpec((None, 4), name="x")])
    tf.saved_model.save(module, str(tmp_path / "model"), signatures=module.outer)
    with pytest.raises(ModelError, match=f"runs the operation {operation}, which is no part of a model's graph"):
        Teacher(tmp_path / "model")
    assert not ran.exists()


def test_a_damaged_saved_model(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"\xff\xff nothing")
    with pytest.raises(ModelError, match="is damaged"):
        Teacher(tmp_path)
    folder = exported(tmp_path / "model", {"serving_default": "outputs"})
    (folder / "variables" / "variables.data-00000-of-00001").write_bytes(b"")
    with pytest.raises(ModelError, match="cannot load the SavedModel|is damaged|is not loaded"):
        Teacher(folder)
