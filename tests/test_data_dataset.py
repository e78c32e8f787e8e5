"""Order, resume, ranges and caching of `Dataset`."""

import dataclasses
import hashlib
import subprocess
import sys
import textwrap
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcompress.data import Augmentation, Dataset, from_arrays, load_dataset, split
from tfcompress.data.split import Split
from tfcompress.errors import InvalidArgumentError

ROOT = Path(__file__).resolve().parents[1]
AUGMENTATION = Augmentation(flip=True, shift=2, crop=1)


def images(count=103, *, augmentation=AUGMENTATION, **arguments):
    """Random pixels of which the first tells the sample's index, when nothing moves it."""
    x = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
    x[:, 0, 0, 0] = np.arange(count)
    y = np.arange(count) % 4
    held = (x[:8], y[:8])
    return from_arrays(x, y, validation=held, test=held, augmentation=augmentation, **arguments)


def streamed(data):
    """The same data from a source that isn't in memory."""
    train = dataclasses.replace(data.splits["train"], resident=False)
    return dataclasses.replace(data, splits={**data.splits, "train": train})


def collect(batches):
    pairs = [(x.numpy(), y.numpy()) for x, y in batches]
    return np.concatenate([x for x, _ in pairs]), np.concatenate([y for _, y in pairs])


def assert_same(left, right):
    np.testing.assert_array_equal(left[0], right[0])
    np.testing.assert_array_equal(left[1], right[1])


@pytest.mark.parametrize("source", ["resident", "streamed", "buffered"])
def test_resumed_epochs_are_bit_identical(source, monkeypatch):
    data = images() if source == "resident" else streamed(images())
    if source == "buffered":
        monkeypatch.setattr(split, "MEMORY_BYTES", 20 * 64)
        assert data.splits["train"].shuffle_buffer == 20
    whole = collect(data.train_batches(16, seed=5, epochs=3))
    assert len(whole[0]) == 3 * 103
    third = collect(data.train_batches(16, seed=5, first_epoch=2, epochs=3))
    assert_same(third, (whole[0][206:], whole[1][206:]))
    # The global seed has no say in it.
    tf.random.set_seed(99)
    assert_same(collect(data.train_batches(16, seed=5, epochs=3)), whole)


def test_resume_holds_in_another_process():
    code = """
        import hashlib, tensorflow as tf
        from tfcompress.data import Augmentation, load_dataset
        tf.random.set_seed(123)
        data = load_dataset("digits", augmentation=Augmentation(flip=True, shift=1), limit_train=100)
        digest = hashlib.sha256()
        for x, y in data.train_batches(32, seed=1, first_epoch=1, epochs=2):
            digest.update(x.numpy().tobytes() + y.numpy().tobytes())
        print(digest.hexdigest())
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    data = load_dataset("digits", augmentation=Augmentation(flip=True, shift=1), limit_train=100)
    digest = hashlib.sha256()
    for x, y in list(data.train_batches(32, seed=1, epochs=3))[4:8]:
        digest.update(x.numpy().tobytes() + y.numpy().tobytes())
    assert run.stdout.strip() == digest.hexdigest()


def test_each_epoch_has_each_sample_once_in_another_order():
    data = images(augmentation=None, input_range=(0.0, 255.0))
    indices = collect(data.train_batches(16, seed=0, epochs=3))[0][:, 0, 0, 0].reshape(3, 103)
    for epoch in indices:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(103))
    assert len({tuple(epoch) for epoch in indices}) == 3
    other = collect(data.train_batches(16, seed=1, epochs=1))[0][:, 0, 0, 0]
    assert (other != indices[0]).any()
    # A complete shuffle: where a sample lands tells nothing about where it came from.
    assert abs(np.corrcoef(indices[0], np.arange(103))[0, 1]) < 0.4


def test_augmentation_belongs_to_the_sample_not_to_its_batch():
    data = images()
    small, large = (collect(data.train_batches(size, seed=0, epochs=2)) for size in (5, 103))
    assert_same(small, large)


def test_augmentation_is_the_one_that_was_drawn():
    plain = collect(images(augmentation=None, input_range=(0.0, 255.0)).train_batches(32, seed=2, epochs=2))[0][103:]
    order = plain[:, 0, 0, 0].astype(int)
    actual = collect(images(input_range=(0.0, 255.0)).train_batches(32, seed=2, epochs=2))[0][103:]
    draws = AUGMENTATION.draw(seed=2, epoch=1, size=103).numpy()
    np.testing.assert_array_equal(actual, AUGMENTATION.apply(tf.constant(plain), draws[order]))
    assert (actual != plain).any()


def test_shift_brings_in_the_low_end_of_the_range():
    x = np.full((20, 8, 8, 1), 255, np.uint8)
    data = from_arrays(x, np.arange(20) % 2, input_range=(-1.0, 1.0), augmentation=Augmentation(shift=3))
    assert set(np.unique(collect(data.train_batches(8, seed=0, epochs=1))[0])) == {-1.0, 1.0}
    data = from_arrays(
        x.astype(np.float32), np.arange(20) % 2, input_range=(-5.0, 255.0), augmentation=Augmentation(shift=3)
    )
    assert set(np.unique(collect(data.train_batches(8, seed=0, epochs=1))[0])) == {-5.0, 255.0}


def test_leaves_the_global_seed_alone():
    data = images()
    tf.random.set_seed(11)
    expected = tf.random.uniform([3]).numpy()
    tf.random.set_seed(11)
    data.train_batches(16, seed=0, epochs=1)
    np.testing.assert_array_equal(tf.random.uniform([3]), expected)


@pytest.mark.parametrize("input_range", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
def test_pixels_are_mapped_to_the_range(input_range):
    x = np.arange(256, dtype=np.uint8).reshape(16, 4, 4, 1)
    data = from_arrays(
        x, np.arange(16) % 2, validation=(x, np.zeros(16, int)), test=(x, np.zeros(16, int)), input_range=input_range
    )
    low, high = input_range
    actual, _ = collect(data.batches("test", 5))
    np.testing.assert_allclose(actual, low + x / 255.0 * (high - low), rtol=1e-6, atol=1e-6)
    assert (actual.min(), actual.max()) == input_range
    samples = np.stack([sample.numpy() for sample, _ in data.test])
    np.testing.assert_array_equal(samples, actual)
    for part in (data.train, data.validation, data.test):
        assert part.element_spec == (tf.TensorSpec((4, 4, 1), tf.float32), tf.TensorSpec((), tf.int32))


def test_evaluation_batches_are_in_order_and_complete():
    data = images(input_range=(0.0, 255.0))
    for _ in range(2):
        x, y = collect(data.batches("train", 16))
        np.testing.assert_array_equal(x[:, 0, 0, 0], np.arange(103))
        np.testing.assert_array_equal(y, np.arange(103) % 4)
    assert [len(y) for _, y in data.batches("train", 16, limit=20)] == [16, 4]
    assert len(collect(data.batches("test", 16, limit=1000))[1]) == 8
    batches = data.batches("train", 16)
    assert batches.cardinality() == data.steps_per_epoch(16) == 7
    assert batches.element_spec == (tf.TensorSpec((None, 8, 8, 1), tf.float32), tf.TensorSpec((None,), tf.int32))
    assert data.train_batches(16, seed=0, first_epoch=1, epochs=4).cardinality() == 21
    assert data.train_batches(16, seed=0, epochs=1).element_spec == batches.element_spec


def counted(size):
    """A split of uint8 samples, and a counter of how many were read from it."""
    reads = tf.Variable(0)

    def read(index):
        with tf.control_dependencies([reads.assign_add(1)]):
            return tf.fill([4], tf.cast(index, tf.uint8)), tf.cast(index % 2, tf.int32)

    return Split(tf.data.Dataset.range(size).map(read), size=size), reads


def small(train):
    held = from_arrays(np.zeros((20, 4), np.uint8), np.arange(20) % 2).splits["test"]
    return Dataset(
        "counted", {"train": train, "validation": held, "test": held}, 2, ("a", "b"), stored_range=(0.0, 255.0)
    )


def test_is_read_once_while_it_fits_in_memory():
    train, reads = counted(50)
    data = small(train)
    collect(data.train_batches(8, seed=0, epochs=3))
    collect(data.train_batches(8, seed=1, first_epoch=1, epochs=2))
    collect(data.batches("train", 8))
    assert len(list(data.train)) == 50
    assert reads.numpy() == 50
    replaced = dataclasses.replace(data, input_range=(-1.0, 1.0))
    collect(replaced.batches("train", 8))
    assert reads.numpy() == 50


def test_is_read_anew_when_it_does_not_fit(monkeypatch):
    train, reads = counted(50)
    monkeypatch.setattr(split, "MEMORY_BYTES", 10 * 4)
    data = small(train)
    x, _ = collect(data.train_batches(8, seed=0, epochs=2))
    assert reads.numpy() == 100
    np.testing.assert_array_equal(np.sort(np.round(x[:50, 0] * 255)), np.arange(50))


def test_a_stopped_reader_does_not_spoil_the_cache():
    train, _ = counted(50)
    data = small(train)
    next(iter(data.train_batches(8, seed=0, epochs=1)))
    next(iter(data.batches("train", 8)))
    assert len(collect(data.batches("train", 8))[1]) == 50


def test_trains_in_fit_with_resume():
    data = load_dataset("digits", limit_train=200)

    def fit(initial_epoch, model):
        batches = data.train_batches(64, seed=0, first_epoch=initial_epoch, epochs=2)
        model.fit(
            batches, initial_epoch=initial_epoch, epochs=2, steps_per_epoch=data.steps_per_epoch(64), verbose=0,
            validation_data=data.batches("validation", 64),
        )  # fmt: skip

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input(data.input_shape), keras.layers.Flatten(), keras.layers.Dense(10)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    weights = model.get_weights()
    fit(0, model)
    uninterrupted = model.get_weights()
    model.set_weights(weights)
    model.fit(data.train_batches(64, seed=0, epochs=1), epochs=1, verbose=0)
    fit(1, model)
    for left, right in zip(uninterrupted, model.get_weights(), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-6, atol=1e-7)


def test_distributes_over_two_devices():
    batches = images().train_batches(32, seed=0, epochs=2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    distributed = strategy.experimental_distribute_dataset(batches)
    for (x, _), (parts, _) in zip(batches, distributed, strict=True):
        parts = [part.numpy() for part in strategy.experimental_local_results(parts)]
        np.testing.assert_array_equal(np.concatenate(parts), x)
        if len(x) == 32:
            assert [len(part) for part in parts] == [16, 16]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: d.batches("dev", 8), r"`split` must be one of train, validation, test. Received: 'dev'"),
        (lambda d: d.batches("test", 0), r"`batch_size` must be a whole number, at least 1. Received: 0"),
        (lambda d: d.batches("test", 8, limit=0), r"`limit` must be a whole number, at least 1"),
        (lambda d: d.steps_per_epoch(2.0), r"`batch_size` must be a whole number, at least 1. Received: 2.0"),
        (lambda d: d.train_batches(8, seed=0, epochs=0), r"`epochs` must be"),
        (lambda d: d.train_batches(8, seed=0, first_epoch=3, epochs=3), r"`first_epoch` must be .* epochs = 3"),
        (lambda d: d.train_batches(8, seed=0.5, epochs=1), r"`seed` must be a whole number of 64 bits"),
        (lambda d: dataclasses.replace(d, input_range=(1.0, 0.0)), r"`input_range` must be a pair \(low, high\)"),
        (lambda d: dataclasses.replace(d, class_names=("a",)), r"`class_names` must be 4 names"),
        (lambda d: dataclasses.replace(d, augmentation=Augmentation(shift=8)), r"less than 8 pixels"),
        (lambda d: dataclasses.replace(d, splits={"train": d.splits["train"]}), r"`splits` must be a mapping"),
    ],
)
def test_arguments_are_checked(call, message):
    with pytest.raises(InvalidArgumentError, match=message):
        call(images())
