"""Samples without labels: where they come from, who sees them, and what is learned from them."""

import dataclasses
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import CLOSE, blobs, cross_entropy, numpy_log_softmax, tiny_mlp

import tfcompress as tfc
from tfcompress.data import split as split_module
from tfcompress.data.split import Split
from tfcompress.errors import DataError, InvalidArgumentError, RecipeError
from tfcompress.pipeline import rows
from tfcompress.pipeline.inputs import data_key, load_data
from tfcompress.pipeline.plan import plan_run
from tfcompress.recipe import DataSpec
from tfcompress.train_settings import TrainSettings
from tfcompress.training.fit import classification_loss, fit
from tfcompress.training.unlabelled import AccuracyOfLabelled, LossOfLabelled

LABELLED, UNLABELLED = 24, 60


def numbered(unlabelled=None, **options):
    """Samples of 8 features of which the first is their number, those without labels from 1000 on."""
    x = np.zeros((LABELLED, 8), "float32")
    x[:, 0] = np.arange(LABELLED)
    held = (x[:8], np.arange(8) % 4)
    given = more() if unlabelled is None else unlabelled
    return tfc.from_arrays(x, np.arange(LABELLED) % 4, validation=held, test=held, unlabelled=given, **options)


def more():
    return np.pad(np.arange(1000, 1000 + UNLABELLED, dtype="float32")[:, None], ((0, 0), (0, 7)))


def streamed(data):
    """The same data from sources that are not in memory, and a count of what was read from each."""
    read = {"train": 0, "unlabelled": 0}

    def counted(split, name):
        def count(x):
            read[name] += 1
            return x

        def note(x, y):
            seen = tf.numpy_function(count, [x], x.dtype)
            seen.set_shape(x.shape)
            return seen, y

        return dataclasses.replace(split, stream=split.stream.map(note), resident=False)

    train, unlabelled = counted(data.splits["train"], "train"), counted(data.unlabelled, "unlabelled")
    return dataclasses.replace(data, splits={**data.splits, "train": train}, unlabelled=unlabelled), read


def collect(batches):
    pairs = [(x.numpy(), y.numpy()) for x, y in batches]
    return np.concatenate([x for x, _ in pairs])[:, 0].astype(int), np.concatenate([y for _, y in pairs])


# ---- the samples of an epoch


@pytest.mark.parametrize("source", ["streamed", "buffered"])
def test_an_epoch_has_each_sample_once(source, monkeypatch):
    data, read = streamed(numbered())
    if source == "buffered":
        monkeypatch.setattr(split_module, "MEMORY_BYTES", 20 * 32)
    taught = data.taught
    assert taught.steps_per_epoch(16) == 6 and data.steps_per_epoch(16) == 2
    everyone = [*range(LABELLED), *range(1000, 1000 + UNLABELLED)]
    epochs = [collect(taught.train_batches(16, seed=3, first_epoch=epoch, epochs=epoch + 1)) for epoch in range(2)]
    for numbers, labels in epochs:
        assert sorted(numbers) == everyone
        np.testing.assert_array_equal(labels, np.where(numbers < 1000, numbers % 4, -1))
    assert not np.array_equal(epochs[0][0], epochs[1][0])
    # As one stream, and whatever was read before.
    np.testing.assert_array_equal(
        collect(taught.train_batches(16, seed=3, epochs=2))[0], np.concatenate([numbers for numbers, _ in epochs])
    )
    if source == "streamed":
        # The labelled ones alone are read from the same memory.
        assert sorted(collect(data.train_batches(16, seed=3, epochs=1))[0]) == everyone[:LABELLED]
        assert read == {"train": LABELLED, "unlabelled": UNLABELLED}


def test_labels_are_spread_over_the_order():
    numbers, labels = collect(numbered().taught.train.batch(100))
    for kind in (numbers < 1000, numbers >= 1000):
        np.testing.assert_array_equal(numbers[kind], np.sort(numbers[kind]))
    places = np.flatnonzero(labels != -1)
    assert set(np.diff(places)) <= {3, 4} and places[0] < 3 and places[-1] > 80


def test_all_but_taught_sees_the_labelled_alone():
    data = numbered()
    assert data.sizes == {"train": LABELLED, "validation": 8, "test": 8}
    for split in data.sizes:
        assert (collect(data.batches(split, 7))[1] >= 0).all()
    assert (collect(data.train_batches(7, seed=0, epochs=1))[1] >= 0).all()
    assert data.taught is data.taught and data.taught.taught is data.taught
    without = dataclasses.replace(data, unlabelled=None)
    assert without.taught is without


# ---- where they come from


def test_a_share_leaves_labels_out_of_each_class():
    x, y = blobs(100, shape=(8,))
    data = tfc.from_arrays(x, y, unlabelled=0.8)
    whole = tfc.from_arrays(x, y)
    assert (data.sizes["train"], data.unlabelled.size) == (16, 56)
    np.testing.assert_array_equal(np.bincount([y for _, y in data.train.as_numpy_iterator()]), [4, 4, 4, 4])
    of_both = [next(iter(each.train.batch(100)))[0].numpy() for each in (data.taught, whole)]
    np.testing.assert_array_equal(np.sort(of_both[0], axis=0), np.sort(of_both[1], axis=0))
    assert (data.input_range, data.sizes["test"]) == (whole.input_range, whole.sizes["test"])


def test_a_share_of_the_first_digits():
    data = tfc.load_dataset("digits", limit_train=200, unlabelled=0.9)
    assert (data.sizes["train"], data.taught.sizes["train"], data.sizes["test"]) == (20, 200, 359)
    assert set(np.bincount([int(y) for _, y in data.train])) <= {1, 2, 3}


def test_a_folder_of_images(tmp_path):
    def write(path, value):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tf.io.encode_png(np.full((4, 4, 3), value, np.uint8)).numpy())

    for number, name in enumerate(("ant", "bee")):
        for index in range(10):
            write(tmp_path / name / f"{index}.png", 100 * number + index)
    for index in range(7):
        write(tmp_path / "unsorted" / f"{index}.png", 200 + index)
    spec = DataSpec(name="folder", folder=str(tmp_path), image_size=(4, 4), unlabelled=str(tmp_path / "unsorted"))
    data = load_data(spec)
    assert (data.class_names, data.sizes["train"], data.unlabelled.size) == (("ant", "bee"), 14, 7)
    x, y = next(iter(dataclasses.replace(data, input_range=(0.0, 255.0)).taught.train.batch(100)))
    assert sorted(x[y == -1][:, 0, 0, 0]) == list(range(200, 207))
    share = load_data(dataclasses.replace(spec, folder=str(tmp_path), unlabelled=0.5))
    assert (share.class_names, share.sizes["train"], share.unlabelled.size) == (("ant", "bee", "unsorted"), 9, 10)
    with pytest.raises(DataError, match="no folder .*elsewhere"):
        load_data(dataclasses.replace(spec, unlabelled=str(tmp_path / "elsewhere")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        load_data(dataclasses.replace(spec, unlabelled=str(tmp_path / "empty")))


def test_keys_of_data_and_of_a_cache_change_with_them(tmp_path):
    data = numbered()
    changed = more()
    changed[-1, 3] = 0.5
    others = [numbered(changed), numbered(more()[:-1]), dataclasses.replace(data, unlabelled=None)]
    assert data_key(DataSpec(), data) == data_key(DataSpec(), numbered())
    assert len({data_key(DataSpec(), each) for each in (data, *others)}) == 4
    stored = tfc.cache_teacher(tiny_mlp(), data.taught, tmp_path / "cache")
    assert stored.size == LABELLED + UNLABELLED
    for other in others:
        with pytest.raises(InvalidArgumentError, match="what differs"):
            tfc.cache_teacher(tiny_mlp(), other.taught, tmp_path / "cache")
    with pytest.raises(InvalidArgumentError, match=f"{LABELLED + UNLABELLED} training samples"):
        stored.train_batches(data, 8, seed=0, epochs=1)


# ---- loss and accuracy


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_is_the_mean_over_the_labelled(softmax, smoothing):
    rng = np.random.default_rng(0)
    outputs, y = rng.normal(size=(9, 4)).astype("float32"), np.array([1, -1, 3, -1, -1, 0, 2, -1, 1])
    log = numpy_log_softmax(outputs)
    target = (1 - smoothing) * np.eye(4)[y] + smoothing / 4
    expected = -(target * log).sum(-1)[y >= 0].mean()
    loss = LossOfLabelled(classification_loss(tiny_mlp(softmax=softmax), 4, smoothing))
    given = np.exp(log) if softmax else outputs
    np.testing.assert_allclose(loss(y, given), expected, **CLOSE)
    np.testing.assert_allclose(loss(y[:, None], given), expected, **CLOSE)
    weights = rng.uniform(size=9).astype("float32")
    weighted = (-(target * log).sum(-1) * weights)[y >= 0].mean()
    np.testing.assert_allclose(loss(y, given, sample_weight=weights), weighted, **CLOSE)
    variable = tf.Variable(given)
    with tf.GradientTape() as tape:
        nothing = loss(np.full(9, -1), variable)
    assert float(nothing) == 0 and not np.any(tape.gradient(nothing, variable))


def test_accuracy_is_that_of_the_labelled():
    accuracy = AccuracyOfLabelled()
    outputs, y = np.eye(4)[[0, 1, 2, 3, 0]], np.array([0, -1, 1, 3, -1])
    accuracy.update_state(y, outputs)
    accuracy.update_state(np.array([-1, -1]), outputs[:2])
    assert float(accuracy.result()) == pytest.approx(2 / 3)
    accuracy.reset_state()
    accuracy.update_state(y, outputs, sample_weight=np.array([1.0, 5.0, 3.0, 1.0, 5.0]))
    assert float(accuracy.result()) == pytest.approx(2 / 5)


def mostly_unlabelled():
    """48 samples, of which every fourth has a label, but none of the last 16."""
    x, y = blobs(48, shape=(8,))
    without = np.where((np.arange(48) % 4 == 0) & (np.arange(48) < 32), y, -1)
    data = tfc.from_arrays(*blobs(16, shape=(8,), seed=1), validation=(x[:8], y[:8]), test=(x[:8], y[:8]))
    stream = tf.data.Dataset.from_tensor_slices((x, without.astype("int32")))
    train = Split(stream, size=48, resident=True, labelled=False)
    return dataclasses.replace(data, splits={**data.splits, "train": train})


@pytest.mark.parametrize("strategy", ["default", "mirrored"])
def test_a_training_equals_one_written_out(strategy):
    data = mostly_unlabelled()
    student, teacher, weight, rate = tiny_mlp(), tiny_mlp(name="teacher"), 0.6, 0.5
    start = keras.models.clone_model(student)
    start.set_weights(student.get_weights())
    batches = list(data.train_batches(16, seed=0, epochs=2))
    plain = []
    for x, y in batches:
        labelled = y >= 0
        with tf.GradientTape() as tape:
            s, t = start(x), teacher(x)
            hard = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.maximum(y, 0), s)
            hard = tf.reduce_sum(hard[labelled]) / max(1, int(tf.reduce_sum(tf.cast(labelled, tf.int32))))
            p, q = tf.nn.log_softmax(t / 4), tf.nn.log_softmax(s / 4)
            soft = 16 * tf.reduce_mean(tf.reduce_sum(tf.exp(p) * (p - q), -1))
            loss = (1 - weight) * hard + weight * soft
        right = (np.argmax(s, -1) == y.numpy())[labelled].sum()
        plain.append((float(hard), int(labelled.numpy().sum()), right))
        for variable, gradient in zip(
            start.trainable_variables, tape.gradient(loss, start.trainable_variables), strict=True
        ):
            variable.assign_sub(rate * gradient)
    settings = TrainSettings(
        epochs=2, optimizer="sgd", momentum=0.0, learning_rate=rate, schedule="constant", strategy=strategy
    )
    losses = [tfc.SoftTargets(temperature=4.0, weight=weight)]
    result = fit(
        student, data, settings, batch_size=16, seed=0, wrap=lambda replica: tfc.Distiller(replica, teacher, losses)
    )
    for expected, actual in zip(start.get_weights(), result.model.get_weights(), strict=True):
        np.testing.assert_allclose(actual, expected, **CLOSE)
    for epoch in range(2):
        hard, count, right = np.array(plain[3 * epoch : 3 * epoch + 3]).T
        np.testing.assert_allclose(result.history["hard_loss"][epoch], (hard * count).sum() / count.sum(), **CLOSE)
        np.testing.assert_allclose(result.history["accuracy"][epoch], right.sum() / count.sum(), **CLOSE)


def test_of_a_mixture_the_labels_that_there_are_count():
    x, y = blobs(48, shape=(8,))
    student = tiny_mlp()
    mix = tfc.Mixup(alpha=1.0, seed=5)
    distiller = tfc.Distiller(student, tiny_mlp(name="teacher"), mix=mix)
    distiller.compile(keras.optimizers.SGD(0.0), LossOfLabelled(cross_entropy()))
    labels = np.where(np.arange(48) % 3 == 0, y, -1)
    logged = distiller.fit(x, labels, batch_size=48, shuffle=False, verbose=0).history["hard_loss"][0]
    mixed = mix(tf.constant(x), 0)
    log, share, partners = numpy_log_softmax(student(mixed.inputs).numpy()), float(mixed.share), mixed.partners.numpy()
    total = 0.0
    for index in range(48):
        for label, part in ((labels[index], share), (labels[partners[index]], 1 - share)):
            total -= part * log[index, label] if label >= 0 else 0.0
    np.testing.assert_allclose(logged, total / (labels >= 0).sum(), rtol=1e-4)


# ---- recipes

FEW = """
seed: 1
data: {name: digits, unlabelled: 0.985, batch_size: 128}
teacher: {file: teacher.keras}
student: {model: mlp, widths: [32]}
stages: [{distill: {temperature: 2.0, train: {epochs: 4, learning_rate: 2.0e-2}}}]
"""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A teacher that has seen all labels, in its own folder."""
    data = tfc.load_dataset("digits")
    model = tfc.build_model("mlp", input_shape=data.input_shape, num_classes=10, width=64, depth=1)
    keras.utils.set_random_seed(0)
    model.compile(keras.optimizers.Adam(1e-2), cross_entropy())
    x, y = next(iter(data.train.batch(2000)))
    model.fit(x.numpy(), y.numpy(), batch_size=128, epochs=5, verbose=0)
    folder = tmp_path_factory.mktemp("teacher")
    model.save(folder / "teacher.keras")
    return folder


def test_a_student_learns_from_samples_without_labels(teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(teacher)
    # What a file of each stage weighs is not looked at here.
    monkeypatch.setattr(rows, "_model_figures", lambda model: {})
    recipe = tfc.parse_recipe(FEW)
    mixed = tfc.run(recipe, tmp_path / "mixed", progress=False)
    # The same labels, and as many steps.
    data = dataclasses.replace(load_data(recipe.data), unlabelled=None)
    few = tfc.parse_recipe(FEW, ["stages.distill.train.epochs=44"])
    alone = tfc.compress(keras.saving.load_model("teacher.keras"), data, few, tmp_path / "alone", progress=False)
    accuracy = {name: run.rows[-1].accuracy for name, run in (("mixed", mixed), ("alone", alone))}
    assert accuracy["mixed"] > accuracy["alone"] + 0.05, accuracy
    assert len(list((tmp_path / "mixed" / "teacher").glob("*/view-000/*.npy"))) == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stages=[{quantize: {train: {epochs: 1}}}]"],
         "`stages` learn from no teacher, and nothing else sees samples without labels"),
        (["data.unlabelled=1.5"], r"`data.unlabelled` must be a number in \(0, 1\), a name of a split or a folder"),
        (["data.unlabelled=more"], r"`data.unlabelled` must be a number in \(0, 1\) for `name: digits`"),
        (["data.unlabelled=true"], "`data.unlabelled` must be a number or a string or null"),
        (["stages.distill.train.steps_per_execution=2"], "a divisor of the 11 steps of an epoch"),
    ],
)  # fmt: skip
def test_errors_of_recipes(teacher, monkeypatch, overrides, message):
    monkeypatch.chdir(teacher)
    with pytest.raises(RecipeError, match=message):
        recipe = tfc.parse_recipe(FEW, overrides)
        plan_run(recipe, load_data(recipe.data))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: numbered(unlabelled=1.0), InvalidArgumentError, "`unlabelled` must be a number in (0, 1)"),
        (lambda: numbered(unlabelled=0.999), DataError, "some must have labels, and some none"),
        (lambda: numbered(unlabelled=np.zeros((5, 9), "float32")), DataError, "unlabelled split: samples must have"),
        (lambda: numbered(unlabelled=np.full((5, 8), np.nan)), DataError, "unlabelled samples: x holds NaN"),
        (lambda: numbered(unlabelled=np.zeros((5, 8), "uint8")), DataError, "scaled differently"),
        (lambda: numbered(unlabelled=9.0 * np.ones((5, 8)), input_range=(0.0, 30.0)), None, ""),
        (lambda: numbered(unlabelled=-np.ones((5, 8)), input_range=(0.0, 30.0)), DataError, "must lie in input_range"),
        (lambda: tfc.load_dataset("digits", unlabelled="more"), InvalidArgumentError, "a share in (0, 1) for 'digits'"),
        (lambda: dataclasses.replace(numbered(), unlabelled=numbered().splits["train"]), InvalidArgumentError,
         "a Split with labelled=False"),
    ],
)  # fmt: skip
def test_errors_of_data(make, error, message):
    if error is None:
        make()
        return
    with pytest.raises(error, match=re.escape(message)):
        make()
