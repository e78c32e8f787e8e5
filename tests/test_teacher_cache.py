"""The cache of a teacher: what is stored is what it says about the very pictures of each epoch, computed once."""

import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import cross_entropy

import tfcompress as tfc
from tfcompress.data.augment import Augmentation
from tfcompress.data.taught import TaughtInputs
from tfcompress.errors import InvalidArgumentError, ModelError
from tfcompress.files import atomic_path
from tfcompress.techniques.distill import cache
from tfcompress.training.fit import fit

VIEWS = 3
# Probabilities whose rounding shows in their sum.
SPREAD = tf.nn.softmax(np.random.default_rng(0).normal(size=(64, 7)) * 2).numpy()


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(cache, "SHARD", 300)


@pytest.fixture(scope="module")
def digits():
    return tfc.load_dataset("digits")


@pytest.fixture(scope="module")
def data(digits):
    return dataclasses.replace(digits, augmentation=Augmentation(flip=True, shift=1, views=VIEWS))


def build(seed=0, classes=10):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(classes)])


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# ---- views


def test_epochs_go_through_the_views_in_turn_whatever_the_seed(data):
    def pictures(seed, epoch):
        """The pictures of an epoch in the order of their samples."""
        stored = tfc.StoredOutputs(np.tile(np.arange(1295.0)[None, :, None], (VIEWS, 1, 1)), views=VIEWS)
        batches = list(stored.train_batches(data, 128, seed=seed, first_epoch=epoch, epochs=epoch + 1))
        order = np.concatenate([x.teacher_outputs[:, 0] for x, _ in batches]).astype(int)
        assert not np.array_equal(order, np.arange(1295))
        return np.concatenate([x.inputs for x, _ in batches])[np.argsort(order)]

    first = [pictures(0, epoch) for epoch in range(VIEWS)]
    assert not any(np.array_equal(first[a], first[b]) for a in range(VIEWS) for b in range(a))
    for epoch in range(VIEWS):
        np.testing.assert_array_equal(pictures(7, epoch + VIEWS), first[epoch])
        np.testing.assert_array_equal(np.concatenate(list(data.view(epoch, 500))), first[epoch])
    np.testing.assert_array_equal(np.concatenate(list(data.view(1, 500, first=700))), first[1][700:])
    other = dataclasses.replace(data, augmentation=dataclasses.replace(data.augmentation, seed=1))
    assert not np.array_equal(np.concatenate(list(other.view(0, 500))), first[0])


def test_without_augmentation_there_is_one_view(digits):
    assert digits.views == 1
    np.testing.assert_array_equal(next(iter(digits.view(0, 10))), next(iter(digits.train.batch(10)))[0])


# ---- what is stored


@pytest.mark.parametrize("kind", ["keras", "function", "tflite"])
def test_every_batch_brings_what_the_teacher_says_about_its_pictures(kind, data, tmp_path):
    model = build()
    teacher = {"keras": model, "function": lambda x: model(x)}.get(kind)
    if kind == "tflite":
        teacher = tfc.export_tflite(model, tmp_path / "teacher.tflite", mode="float32").path
    stored = tfc.cache_teacher(teacher, data, tmp_path / "cache")
    assert (stored.size, stored.views, stored.num_classes) == (1295, VIEWS, 10)
    for epoch in (0, VIEWS - 1, VIEWS):
        for x, y in stored.train_batches(data, 500, seed=1, first_epoch=epoch, epochs=epoch + 1):
            assert isinstance(x, TaughtInputs) and len(y) == len(x.inputs)
            np.testing.assert_allclose(x.teacher_outputs, model(x.inputs), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("batch_size", [10, 1000])
def test_the_size_of_batches_changes_nothing(batch_size, data, tmp_path):
    # Below what the key looks at, and above a shard.
    expected = tfc.cache_teacher(build(), data, tmp_path / "cache")
    assert files(tmp_path / "cache").count("view-000/00004.npy") == 1
    tfc.cache_teacher(build(), data, tmp_path / "cache", batch_size=batch_size)
    actual = tfc.cache_teacher(build(), data, tmp_path / "other", batch_size=batch_size)
    every = np.arange(1295)
    np.testing.assert_allclose(actual.rows(1, every), expected.rows(1, every), rtol=1e-3, atol=1e-3)


def test_the_largest_logits_keep_their_probabilities(digits, tmp_path):
    model = build()
    stored = tfc.cache_teacher(model, digits, tmp_path / "cache", top_k=3)
    x, _ = next(iter(digits.train.batch(200)))
    actual = tf.nn.softmax(stored.rows(0, np.arange(200))).numpy()
    expected = tf.nn.softmax(model(x)).numpy()
    largest = np.argsort(expected, -1)[:, -3:]
    kept = np.take_along_axis(expected, largest, -1)
    np.testing.assert_allclose(np.take_along_axis(actual, largest, -1), kept, rtol=3e-3)
    others = np.sort(actual, -1)[:, :-3]
    np.testing.assert_allclose(others, np.tile((1 - kept.sum(-1, keepdims=True)) / 7, (1, 7)), rtol=2e-2)


def test_bytes_are_those_of_the_numbers(digits, tmp_path):
    tfc.cache_teacher(build(), digits, tmp_path / "cache")
    size = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.npy"))
    assert 1295 * 10 * 2 <= size <= 1295 * 10 * 2 + 128 * 5


def test_probabilities_become_logits(digits):
    probabilities = tf.nn.softmax(np.random.default_rng(0).normal(size=(1295, 10)) * 3).numpy()
    stored = tfc.StoredOutputs(probabilities.astype("float16"))
    logits = stored.logits(TaughtInputs(None, stored.rows(0, np.arange(1295))))
    np.testing.assert_allclose(tf.nn.softmax(logits), probabilities, rtol=1e-2, atol=1e-6)


# ---- interruption, and other teachers


def test_an_interrupted_build_goes_on_with_the_first_missing_shard(data, tmp_path):
    model, seen = build(), []
    whole = tfc.cache_teacher(model, data, tmp_path / "whole")

    def teacher(fail_after):
        def outputs(x):
            def count(batch):
                seen.append(len(batch))
                if sum(seen) > fail_after:
                    raise KeyboardInterrupt
                return batch

            return model(tf.ensure_shape(tf.numpy_function(count, [x], tf.float32), x.shape))

        return outputs

    with pytest.raises((KeyboardInterrupt, tf.errors.UnknownError)):
        tfc.cache_teacher(teacher(2100), data, tmp_path / "cut", batch_size=100)
    done = files(tmp_path / "cut")
    # 1,295 samples of the first view, and two shards of 300 of the second; nothing half written.
    assert done == [
        "index.json",
        *(f"view-000/0000{at}.npy" for at in range(5)),
        *(f"view-001/0000{at}.npy" for at in (0, 1)),
    ]
    times = {name: (tmp_path / "cut" / name).stat().st_mtime_ns for name in done}
    seen.clear()
    resumed = tfc.cache_teacher(teacher(10**9), data, tmp_path / "cut", batch_size=100)
    assert {name: (tmp_path / "cut" / name).stat().st_mtime_ns for name in done} == times
    # The probe twice, and what was missing.
    assert sum(seen) == 2 * 64 + (VIEWS * 1295 - 1295 - 600)
    for view in range(VIEWS):
        np.testing.assert_array_equal(resumed.rows(view, np.arange(1295)), whole.rows(view, np.arange(1295)))


def test_a_cache_is_read_by_its_own_teacher_data_and_views_only(data, digits, tmp_path):
    folder = tmp_path / "cache"
    tfc.cache_teacher(build(), data, folder)
    before = {name: (folder / name).read_bytes() for name in files(folder)}
    other_range = dataclasses.replace(data, input_range=(0.0, 2.0))
    more_views = dataclasses.replace(data, augmentation=dataclasses.replace(data.augmentation, views=4))
    weights = build().get_weights()
    same_weights = keras.Sequential([*build().layers, keras.layers.Softmax()])
    same_weights.set_weights(weights)
    for teacher, of, what in (
        (build(1), data, "teacher"),
        (lambda x: 2 * build()(x), data, "teacher"),
        (same_weights, data, "teacher"),
        (build(), other_range, "data"),
        (build(), more_views, "views"),
        (build(), digits, "views"),
    ):
        with pytest.raises(InvalidArgumentError, match=rf"holds the cache of this teacher.*differs: .*{what}"):
            tfc.cache_teacher(teacher, of, folder)
    with pytest.raises(InvalidArgumentError, match="top_k"):
        tfc.cache_teacher(build(), data, folder, top_k=2)
    assert {name: (folder / name).read_bytes() for name in files(folder)} == before
    tfc.cache_teacher(build(), data, folder)


def small(order=slice(None), **options):
    """200 samples, which are not all among those that the teacher is shown first; in another order, if one is given."""
    rng = np.random.default_rng(0)
    x, y = rng.uniform(size=(200, 8, 8, 1)).astype("float32"), np.arange(200) % 10
    return tfc.from_arrays(x[order], y[order], validation=(x[:10], y[:10]), test=(x[:10], y[:10]), **options)


OTHER_END = [*range(100), *range(199, 99, -1)]


def test_samples_that_changed_far_behind_the_first_are_other_data(tmp_path):
    data, folder = small(), tmp_path / "cache"
    stored = tfc.cache_teacher(build(), data, folder)
    stored.train_batches(small(), 64, seed=0, epochs=1)
    other = small(OTHER_END)
    with pytest.raises(InvalidArgumentError, match="differs: data"):
        tfc.cache_teacher(build(), other, folder)
    with pytest.raises(InvalidArgumentError, match="`data` must be that whose outputs are stored"):
        stored.train_batches(other, 64, seed=0, epochs=1)
    # What a user brings is of nothing that is known.
    tfc.StoredOutputs(np.zeros((200, 10))).train_batches(other, 64, seed=0, epochs=1)


def test_unlabelled_samples_that_changed_are_other_data(tmp_path):
    x = np.random.default_rng(1).uniform(size=(200, 8, 8, 1)).astype("float32")
    one, other = (small(unlabelled=x[order]).taught for order in (slice(None), OTHER_END))
    stored = tfc.cache_teacher(build(), one, tmp_path / "cache")
    with pytest.raises(InvalidArgumentError, match="`data` must be that whose outputs are stored"):
        stored.check_fits(other)


def test_what_a_killed_process_leaves_is_no_others_folder(tmp_path):
    folder = tmp_path / "cache"
    with atomic_path(folder / "index.json") as temporary:
        left = folder / temporary.parent.name
        assert left.is_dir()
        # Another worker, or this one killed here.
        assert tfc.cache_teacher(build(), small(), folder).size == 200
    (folder / "index.json").unlink()
    with pytest.raises(InvalidArgumentError, match="a new or empty folder"):
        tfc.cache_teacher(build(), small(), folder)


def test_damaged_files_are_named(tmp_path):
    folder, data = tmp_path / "cache", small()
    tfc.cache_teacher(build(), data, folder)
    shard = folder / "view-000" / "00000.npy"
    whole = shard.read_bytes()
    for content in (b"", whole[:200]):
        shard.write_bytes(content)
        with pytest.raises(ModelError, match="00000.npy' is damaged: .* Delete it"):
            tfc.cache_teacher(build(), data, folder)
    np.save(shard, np.zeros((199, 10), "float16"))
    with pytest.raises(ModelError, match="it holds 199 samples and not 200"):
        tfc.cache_teacher(build(), data, folder)
    shard.unlink()
    tfc.cache_teacher(build(), data, folder)
    assert shard.read_bytes() == whole
    for content in ("{", "[]", '{"first": "nothing"}', "{}"):
        (folder / "index.json").write_text(content)
        with pytest.raises(InvalidArgumentError, match="index.json.*damaged"):
            tfc.cache_teacher(build(), data, folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidArgumentError, match="`folder` must be a folder"):
        tfc.cache_teacher(build(), data, tmp_path / "file")


def test_the_largest_of_many_classes_keep_their_numbers(tmp_path):
    classes = 2**16 + 5000

    def teacher(x):
        return tf.one_hot(2**16 + tf.cast(x[:, 0, 0, 0] * 5000, tf.int32), classes) * 20.0

    data = small()
    stored = tfc.cache_teacher(teacher, data, tmp_path / "cache", top_k=2)
    x, _ = next(iter(data.train.batch(20)))
    expected = 2**16 + (x[:, 0, 0, 0].numpy() * 5000).astype(int)
    np.testing.assert_array_equal(stored.rows(0, np.arange(20)).argmax(1), expected)


@pytest.mark.parametrize("bad", [np.nan, 1e6])
def test_what_cannot_be_stored_is_an_error_and_leaves_no_shard(bad, digits, tmp_path):
    # Not in the first batch, which is looked at before.
    def outputs(x):
        is_later = tf.reduce_sum(x, [1, 2, 3]) > tf.reduce_max(tf.reduce_sum(first, [1, 2, 3]))
        return tf.where(is_later[:, None], bad, model(x))

    model, first = build(), next(iter(digits.view(0, 64)))
    with pytest.raises(ModelError, match="finite outputs"):
        tfc.cache_teacher(outputs, digits, tmp_path / "cache")
    assert [name for name in files(tmp_path / "cache") if not name.endswith("00000.npy")] == ["index.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top_k": 0}, "top_k"),
        ({"top_k": 10}, "below the classes"),
        ({"top_k": "2"}, "whole number"),
        ({"top_k": 1.5}, "whole number"),
        ({"top_k": True}, "whole number"),
    ],
)
def test_mistaken_arguments(arguments, message, digits, tmp_path):
    with pytest.raises(InvalidArgumentError, match=message):
        tfc.cache_teacher(build(), digits, tmp_path / "cache", **arguments)
    assert not (tmp_path / "cache").exists()


def test_new_pictures_in_each_epoch_cannot_be_stored(digits, tmp_path):
    data = dataclasses.replace(digits, augmentation=Augmentation(shift=1))
    with pytest.raises(InvalidArgumentError, match="views"):
        tfc.cache_teacher(build(), data, tmp_path / "cache")
    with pytest.raises(InvalidArgumentError, match="views"):
        tfc.StoredOutputs(np.zeros((1295, 10))).train_batches(data, 64, seed=0, epochs=1)


def test_a_folder_of_something_else_is_not_written_to(digits, tmp_path):
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(InvalidArgumentError, match="new or empty folder"):
        tfc.cache_teacher(build(), digits, tmp_path)
    assert files(tmp_path) == ["mine.txt"]


@pytest.mark.parametrize(
    ("outputs", "views", "message"),
    [
        (np.zeros(5), None, "shape"),
        (np.zeros((2, 5, 3)), 3, "shape"),
        (np.full((5, 3), np.nan), None, "finite"),
        ([[1, 2, 3], [4, 5]], None, "an array of numbers"),
        ([["a", "b"]], None, "an array of numbers"),
        (np.round(SPREAD, 2), None, "logits, or probabilities whose sum over the classes is 1"),
        (np.round(SPREAD * 256) / 256, None, "off by up to 0.0"),
    ],
)
def test_mistaken_arrays(outputs, views, message):
    with pytest.raises(InvalidArgumentError, match=message):
        tfc.StoredOutputs(outputs, views=views)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_arrays_of_probabilities_of_a_coarse_type(dtype):
    stored = tfc.StoredOutputs(tf.cast(SPREAD, dtype).numpy())
    logits = stored.logits(TaughtInputs(None, stored.rows(0, np.arange(64))))
    np.testing.assert_allclose(tf.nn.softmax(logits), SPREAD, atol=5e-3)


def test_values_between_0_and_1_that_are_no_probabilities_stay_as_they_are():
    values = np.random.default_rng(0).uniform(size=(64, 7)).astype("float32")
    stored = tfc.StoredOutputs(values)
    np.testing.assert_array_equal(stored.logits(TaughtInputs(None, stored.rows(0, np.arange(64)))), values)


def test_arrays_of_other_samples_or_views(digits, data):
    with pytest.raises(InvalidArgumentError, match="100 training samples in 1 views"):
        tfc.StoredOutputs(np.zeros((100, 10))).train_batches(digits, 64, seed=0, epochs=1)
    with pytest.raises(InvalidArgumentError, match="1295 training samples in 1 views"):
        tfc.StoredOutputs(np.zeros((1295, 10))).train_batches(data, 64, seed=0, epochs=1)


# ---- training


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"jit_compile": True},
        pytest.param({"steps_per_execution": 7}, marks=pytest.mark.slow),
        pytest.param({"run_eagerly": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_student_learns_the_same_from_the_cache_as_from_the_teacher(options, data, tmp_path):
    teacher = build(3)
    stored = tfc.cache_teacher(teacher, data, tmp_path / "cache")

    def trained(source, batches):
        student = build(1)
        distiller = tfc.Distiller(student, source)
        distiller.compile(keras.optimizers.SGD(0.1), cross_entropy(), metrics=["accuracy"], **options)
        validation = data.batches("validation", 64)
        history = distiller.fit(batches, epochs=2, steps_per_epoch=14, validation_data=validation, verbose=0).history
        return student.get_weights(), history

    plain, plain_history = trained(teacher, data.train_batches(100, seed=0, epochs=3))
    cached, cached_history = trained(stored, stored.train_batches(data, 100, seed=0, epochs=3))
    assert set(cached_history) == set(plain_history) and "val_accuracy" in cached_history
    for expected, actual in zip(plain, cached, strict=True):
        np.testing.assert_allclose(actual, expected, atol=2e-4)
    assert np.abs(cached[0] - build(1).get_weights()[0]).max() > 0.01


def test_on_two_replicas(data, tmp_path):
    stored = tfc.cache_teacher(build(3), data, tmp_path / "cache")

    def trained(strategy):
        settings = tfc.TrainSettings(epochs=2, strategy=strategy, optimizer="sgd", learning_rate=0.1)
        wrap = lambda replica: tfc.Distiller(replica, stored)  # noqa: E731
        options = {"batch_size": 128, "seed": 0, "wrap": wrap, "teacher_outputs": stored.lookup}
        return fit(build(1), data, settings, **options).model.get_weights()

    # The last batch is odd, and its replicas' means are averaged as if they were of as many samples.
    (one, *_), (two, *_) = trained("default"), trained("mirrored")
    np.testing.assert_allclose(two, one, atol=2e-3)
    assert np.abs(one - build(1).get_weights()[0]).max() > 0.05


def test_batches_of_another_kind_are_an_error_before_the_first_step(data, tmp_path):
    stored = tfc.cache_teacher(build(3), data, tmp_path / "cache")
    for source, batches, message in (
        (stored, data.train_batches(64, seed=0, epochs=1), "StoredOutputs.train_batches"),
        (build(3), stored.train_batches(data, 64, seed=0, epochs=1), "without stored outputs"),
    ):
        distiller = tfc.Distiller(build(1), source)
        distiller.compile("sgd", cross_entropy())
        with pytest.raises(InvalidArgumentError, match=message):
            distiller.fit(batches, verbose=0)
    with pytest.raises(InvalidArgumentError, match="10 classes"):
        tfc.Distiller(build(1, classes=4), stored)


RECIPE = """
seed: 0
data: {name: digits, batch_size: 128, augment: {shift: 1, views: 2}}
train: {epochs: 1}
teacher: {model: mlp, width: 8}
student: {model: mlp, width: 4}
stages: [distill: {}, prune: {schedule: {constant_sparsity: {target_sparsity: 0.5}}, teach: {}}]
"""


def test_a_recipe_asks_its_teacher_once_for_all_stages(tmp_path, monkeypatch):
    asked = []
    original = cache._computed
    monkeypatch.setattr(cache, "_computed", lambda *args: asked.append(args[2]) or original(*args))
    recipe = tfc.parse_recipe(RECIPE)
    result = tfc.run(recipe, tmp_path, progress=False)
    assert asked == [0, 1]
    (index,) = (tmp_path / "teacher").glob("*/index.json")
    assert json.loads(index.read_text())["views"] == 2
    assert [row.stage for row in result.rows] == ["teacher", "01-distill", "02-prune"]
    # Resumed, it is read.
    (tmp_path / "stages" / "02-prune" / "stage.json").unlink()
    tfc.run(recipe, tmp_path, progress=False)
    assert asked == [0, 1]
