"""What can teach: every kind of source, on inputs of its own size and with classes of its own; what is refused."""

import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import CLOSE, cross_entropy, numpy_log_softmax
from keras import layers
from tensorflow.core.protobuf import saved_model_pb2

import tfcompress as tfc
from tfcompress.errors import InvalidArgumentError, ModelError
from tfcompress.techniques.distill import Teacher
from tfcompress.techniques.distill.saved_model import SavedModel
from tfcompress.techniques.distill.several_outputs import TeacherOfSeveral
from tfcompress.techniques.distill.student_outputs import StudentOutputs

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


def adapted(kind):
    """A model with a layer that has a state beside its weights, and inputs for it."""
    if kind == "lookup":
        lookup = layers.IntegerLookup(output_mode="one_hot", max_tokens=6)
        lookup.adapt(np.array([10, 20, 30]))
        first, x = lookup, np.array([[10], [30], [7]])
    elif kind == "normalization":
        first, x = layers.Normalization(), 100 + 50 * np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
        first.adapt(x)
    else:
        first, x = layers.Lambda(lambda z: z * 2), np.ones((4, 3), "float32")
    return keras.Sequential([keras.Input(x.shape[1:], dtype=str(x.dtype)), first, layers.Dense(2)]), x


@pytest.mark.parametrize("kind", ["normalization", "lookup", "lambda"])
def test_a_copy_in_the_scope_of_a_strategy_says_the_same(kind):
    model, x = adapted(kind)
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        inside = Teacher(model).in_scope()
    assert inside.source is not model
    np.testing.assert_allclose(inside.logits(x), model(x), **CLOSE)


class Subclassed(keras.Model):
    """A model without a graph or a `get_config`; its softmax shows in its outputs only."""

    def __init__(self, units, activation=None, dtype=None):
        super().__init__(dtype=dtype)
        self.last = layers.Dense(units, activation=activation, dtype=dtype)

    def call(self, inputs):
        return self.last(inputs)


def test_what_cannot_be_copied_into_a_scope_is_named_as_a_teacher():
    teacher = Teacher(Subclassed(3))
    assert teacher.in_scope() is teacher
    message = "The teacher, the Keras model 'subclassed.*pass a callable"
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope(), pytest.raises(ModelError, match=message):
        teacher.in_scope()


# ---- what it gives


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("classes", [3, 400])
def test_probabilities_of_a_coarse_type_are_no_logits(dtype, classes):
    x = np.random.default_rng(0).normal(scale=3, size=(64, classes)).astype("float32")
    teacher = Teacher(lambda x: tf.nn.softmax(tf.cast(x, dtype)))
    teacher.find_out_outputs(tf.constant(x))
    expected = np.exp(numpy_log_softmax(x))
    np.testing.assert_allclose(tf.nn.softmax(teacher.logits(x)), expected, atol=2e-2)
    # Values in the range of probabilities whose sum is another stay what they are.
    other = Teacher(lambda x: tf.cast(tf.nn.softmax(x) * 1.1, dtype))
    other.find_out_outputs(tf.constant(x))
    assert (other.logits(x).numpy() >= 0).all()


def test_a_subclassed_student_of_bfloat16_is_known_by_its_probabilities():
    student = Subclassed(4, "softmax", "mixed_bfloat16")
    x = np.random.default_rng(0).normal(scale=2, size=(64, 8)).astype("float32")
    student(x)
    outputs = StudentOutputs(student, None)
    outputs.find_out(x)
    assert outputs.gives_distributions(None)


def test_what_float16_cannot_show_is_half_its_smallest_number():
    x = np.array([[30.0, 5.0, 0.0]], "float32")
    logits = Teacher(lambda x: tf.cast(tf.nn.softmax(x), tf.float16)).logits(x).numpy()
    # exp(-25) is below 2^-25, half of the smallest number.
    np.testing.assert_allclose(logits, [[0, -25 * np.log(2), -25 * np.log(2)]], rtol=1e-4, atol=1e-4)


def test_a_callable_whose_shape_python_hides_teaches():
    model = linear()
    teacher = Teacher(lambda x: tf.numpy_function(lambda v: model(v).numpy(), [x], tf.float32))
    teacher.find_out_outputs(IMAGES)
    inside = tf.function(teacher.logits).get_concrete_function(tf.TensorSpec((None, *SHAPE)))
    assert inside.structured_outputs.shape.as_list() == [None, 4]


def test_predict_is_refused_at_the_first_batch():
    model = linear()
    with pytest.raises(ModelError, match="callable 'predict', must give a tensor .* not its `predict`"):
        Teacher(model.predict).find_out_outputs(tf.constant(IMAGES))


@pytest.mark.parametrize("kind", ["keras", "tf_keras"])
def test_a_teacher_that_remembers_the_last_batch_is_refused(kind):
    library = library_of(kind)
    inputs = {"batch_shape" if kind == "keras" else "batch_input_shape": (8, 4, 3)}
    recurrent = [library.layers.InputLayer(**inputs), library.layers.LSTM(5, stateful=True, name="carries")]
    with pytest.raises(ModelError, match=r"\['carries'\] carry their states .* stateful=False"):
        Teacher(library.Sequential([*recurrent, library.layers.Dense(3)]))


def text_model(units, name=None):
    inputs = keras.Input((1,), dtype="string")
    x = layers.TextVectorization(output_sequence_length=4, vocabulary=["a", "b", "c"])(inputs)
    x = layers.GlobalAveragePooling1D()(layers.Embedding(6, units)(x))
    return keras.Model(inputs, layers.Dense(3)(x), name=name)


def test_models_of_text_teach_and_learn_and_are_not_compiled():
    student, texts = text_model(4), tf.constant([["a b"], ["c a"], ["b"], ["c"]])
    distiller = tfc.Distiller(student, text_model(8, name="words"))
    distiller.compile(keras.optimizers.SGD(0.1), cross_entropy())
    assert not distiller.jit_compile
    before = student.get_weights()[-1].copy()
    distiller.fit(texts, np.array([0, 1, 2, 1]), verbose=0)
    assert np.abs(student.get_weights()[-1] - before).max() > 0
    with pytest.raises(InvalidArgumentError, match="`jit_compile` must be False with the Keras model 'words'"):
        distiller.compile("sgd", cross_entropy(), jit_compile=True)
    several = text_model(8)
    assert not TeacherOfSeveral(keras.Model(several.input, {"kind": several.output}), ["kind"]).compiles


def test_an_own_softmax_behind_inputs_of_any_size_is_found_out_from_the_first_batch():
    def network():
        inputs = keras.Input((None, 2))
        last = layers.Dense(3, activation=lambda x: keras.ops.softmax(x))
        return keras.Model(inputs, last(layers.GlobalAveragePooling1D()(inputs)))

    x = np.random.default_rng(0).normal(size=(8, 5, 2)).astype("float32")
    model = network()
    np.testing.assert_allclose(Teacher(model).logits(x), np.log(model(x)), **CLOSE)
    distiller = tfc.Distiller(network(), model)
    distiller.compile("sgd", cross_entropy())
    with pytest.raises(InvalidArgumentError, match="from_logits=False, since the student gives probabilities"):
        distiller.fit(x, np.zeros(8), verbose=0)


def test_a_tflite_file_says_nothing_about_no_samples(tmp_path):
    teacher = Teacher(source_of("tflite", tmp_path))
    teacher.find_out_outputs(IMAGES)
    assert teacher.logits(IMAGES[:0]).shape == (0, 4)


def test_an_empty_dataset_is_an_error():
    distiller = tfc.Distiller(linear(), linear())
    distiller.compile("sgd", cross_entropy())
    with pytest.raises(InvalidArgumentError, match="`x` must be a tf.data.Dataset of at least one batch"):
        distiller.fit(tf.data.Dataset.from_tensor_slices((IMAGES, np.zeros(8))).take(0).batch(4), verbose=0)


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


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({"input_range": (0, 1), "data_range": (1, 1)}, "`data_range` must be a pair"),
        ({"input_range": 255, "data_range": (0, 1)}, "`input_range` must be a pair"),
        ({"input_range": (1, 0), "data_range": (0, 1)}, "`input_range` must be a pair"),
        ({"data_range": (0, 255)}, "`data_range` must be left out where `input_range` is"),
    ],
)
def test_mistaken_ranges(ranges, message):
    with pytest.raises(InvalidArgumentError, match=message):
        Teacher(linear(), **ranges)


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


def table(path):
    return tf.raw_ops.InitializeTableFromTextFileV2(
        table_handle=tf.raw_ops.HashTableV2(key_dtype=tf.int64, value_dtype=tf.string, shared_name="mine"),
        filename=path,
        key_index=-1,
        value_index=-2,
    )


READING = {
    "InitializeTableFromTextFileV2": table,
    "GenerateVocabRemapping": lambda path: (
        tf.raw_ops.GenerateVocabRemapping(
            new_vocab_file=path, old_vocab_file=path, new_vocab_offset=0, num_new_vocab=1
        ).num_present.op
    ),
    "LoadAndRemapMatrix": lambda path: (
        tf.raw_ops.LoadAndRemapMatrix(
            ckpt_path=path,
            old_tensor_name="x",
            row_remapping=tf.constant([0], tf.int64),
            col_remapping=tf.constant([], tf.int64),
            initializing_values=[],
            num_rows=1,
            num_cols=1,
        ).op
    ),
    "FixedUnigramCandidateSampler": lambda path: (
        tf.raw_ops.FixedUnigramCandidateSampler(
            true_classes=[[0]], num_true=1, num_sampled=1, unique=False, range_max=1, unigrams=[1.0]
        ).sampled_candidates.op
    ),
    "Abort": lambda path: tf.raw_ops.Abort(error_msg="", exit_without_error=True),
}


@pytest.mark.parametrize("how", ["constant", "captured"])
@pytest.mark.parametrize("operation", READING)
def test_a_saved_model_that_reads_files_of_others_or_ends_the_process_is_not_loaded(operation, how, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret\n")
    captured = tf.constant(str(secret))

    @tf.function(input_signature=[tf.TensorSpec((None, 4), name="x")])
    def outputs(x):
        with tf.control_dependencies([READING[operation](captured if how == "captured" else tf.constant(str(secret)))]):
            return tf.identity(x)

    module = tf.Module()
    module.outputs = outputs
    tf.saved_model.save(module, str(tmp_path / "model"), signatures=outputs)
    with pytest.raises(ModelError, match=f"runs the operation {operation}, which is no part of a model's graph"):
        Teacher(tmp_path / "model")


def with_vocabulary(folder):
    """A SavedModel that looks words up in a file of its own."""
    (folder / "words.txt").write_text("a\nb\n")
    inputs = keras.Input((1,), dtype="string")
    lookup = layers.StringLookup(vocabulary=str(folder / "words.txt"), output_mode="one_hot")
    model = keras.Model(inputs, layers.Dense(3)(lookup(inputs)))
    model.export(folder / "model", verbose=False)
    (folder / "words.txt").unlink()
    return model, folder / "model"


def test_a_saved_model_reads_its_own_vocabulary_and_no_other(tmp_path):
    model, path = with_vocabulary(tmp_path)
    words = tf.constant([["b"], ["a"], ["other"]])
    np.testing.assert_allclose(Teacher(path).logits(words), model(words), **CLOSE)
    # A copy of a loaded one fills its table by a function within a function.
    loaded = tf.saved_model.load(str(path))
    tf.saved_model.save(loaded, str(tmp_path / "again"), signatures=loaded.signatures["serving_default"])
    np.testing.assert_allclose(Teacher(tmp_path / "again").logits(words), model(words), **CLOSE)
    message = saved_model_pb2.SavedModel()
    message.ParseFromString((path / "saved_model.pb").read_bytes())
    for elsewhere in ("../../secret.txt", str(tmp_path / "secret.txt")):
        message.meta_graphs[0].asset_file_def[0].filename = elsewhere
        (path / "saved_model.pb").write_bytes(message.SerializeToString())
        with pytest.raises(ModelError, match="secret.txt' is outside of its folder"):
            Teacher(path)


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
