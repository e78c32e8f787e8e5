"""TFDS by name: on a tiny set that the test itself prepares, offline, and on the shared MNIST and CIFAR-10."""

import socket

import numpy as np
import pytest
import tensorflow as tf
from helpers import shared_path

from tfcompress.data import Augmentation, load_dataset
from tfcompress.data.checks import check_labels_in_stream
from tfcompress.errors import DataError, InvalidArgumentError

tfds = pytest.importorskip("tensorflow_datasets")


def pixels(split, index, shape=(6, 5, 3)):
    return np.full(shape, index + (200 if split == "test" else 0), np.uint8)


class TinyImages(tfds.core.GeneratorBasedBuilder):
    """40 training and 10 test pictures of one value each."""

    VERSION = tfds.core.Version("1.2.0")
    SUPPORTED_VERSIONS = [tfds.core.Version("1.10.0")]
    SHAPE, KEYS, SPLITS = (6, 5, 3), ("image", "label"), {"train": 40, "test": 10}
    OTHER: dict = {}

    def _info(self):
        label = tfds.features.ClassLabel(names=["ant", "bee", "cow", "dog"])
        features = {"image": tfds.features.Image(shape=self.SHAPE), "label": label, **self.OTHER}
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=self.KEYS,
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split, count) for split, count in self.SPLITS.items()}

    def _generate_examples(self, split, count):
        for index in range(count):
            height = 6 if self.SHAPE[0] else 4 + index % 3
            picture = pixels(split, index, (height, 5, 3))
            yield index, {"image": picture, "label": index % 4, **dict.fromkeys(self.OTHER, 1.0)}


class TinySizes(TinyImages):
    SHAPE = (None, None, 3)


class TinyMore(TinyImages):
    SPLITS = {"train": 40, "test": 10, "more": 12}


class TinyTrainOnly(TinyImages):
    SPLITS = {"train": 40}


class TinyRegression(TinyImages):
    KEYS, OTHER = ("image", "score"), {"score": np.float32}


def prepare(data_dir, cls=TinyImages, **arguments):
    cls(data_dir=str(data_dir), **arguments).download_and_prepare()
    return data_dir


@pytest.fixture
def offline(monkeypatch):
    """Every attempt to reach the network from Python fails the test at once."""

    def refuse(*_, **__):
        raise AssertionError("the network was touched")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def tiny(tmp_path, offline):
    return prepare(tmp_path)


def values(data, split):
    (pair,) = list(data.batches(split, 1000))
    return pair[0].numpy(), pair[1].numpy()


def test_splits_come_from_the_official_ones(tiny):
    data = load_dataset("tiny_images", data_dir=tiny, download=False, input_range=(0.0, 255.0))
    assert data.sizes == {"train": 36, "validation": 4, "test": 10}
    assert (data.input_shape, data.num_classes) == ((6, 5, 3), 4)
    assert data.class_names == ("ant", "bee", "cow", "dog")
    for split, numbers in (("train", range(36)), ("validation", range(36, 40)), ("test", range(200, 210))):
        x, y = values(data, split)
        np.testing.assert_array_equal(x[:, 0, 0, 0], list(numbers))
        np.testing.assert_array_equal(y, np.array(numbers) % 200 % 4)
        assert (x.dtype, y.dtype) == (np.float32, np.int32)


def test_validation_fraction_and_limit(tiny):
    data = load_dataset(
        "tiny_images", data_dir=tiny, download=False, validation_fraction=0.25, limit_train=7, input_range=(-1.0, 1.0)
    )
    assert data.sizes == {"train": 7, "validation": 10, "test": 10}
    np.testing.assert_allclose(values(data, "train")[0][:, 0, 0, 0], np.arange(7) / 255 * 2 - 1, rtol=1e-6)
    with pytest.raises(InvalidArgumentError, match=r"`limit_train` must be None or a whole number from 1 to 36"):
        load_dataset("tiny_images", data_dir=tiny, download=False, limit_train=37)
    with pytest.raises(DataError, match=r"'tiny_images': the validation split is empty"):
        load_dataset("tiny_images", data_dir=tiny, download=False, validation_fraction=0.001)


def test_resumes_bit_identical_and_reads_the_files_once(tiny):
    data = load_dataset("tiny_images", data_dir=tiny, download=False, augmentation=Augmentation(flip=True, shift=2))
    whole = list(data.train_batches(8, seed=0, epochs=3))
    for record in tiny.rglob("*train.tfrecord*"):
        record.unlink()
    third = list(data.train_batches(8, seed=0, first_epoch=2, epochs=3))
    assert len(third) == 5
    for (x, y), (expected_x, expected_y) in zip(third, whole[10:], strict=True):
        np.testing.assert_array_equal(x, expected_x)
        np.testing.assert_array_equal(y, expected_y)


def test_prepared_data_is_found_even_if_download_is_allowed(tiny):
    assert load_dataset("tiny_images", data_dir=tiny).sizes["test"] == 10


def test_newest_version_wins_unless_one_is_named(tmp_path, offline):
    prepare(tmp_path)
    prepare(tmp_path, version="1.10.0")
    (tmp_path / "tiny_images" / "1.2.0" / "features.json").unlink()
    assert load_dataset("tiny_images", data_dir=tmp_path, download=False).sizes["test"] == 10
    assert load_dataset("tiny_images:1.10.0", data_dir=tmp_path, download=False).sizes["test"] == 10
    with pytest.raises(DataError, match=r"no '.*tiny_images/2\.0\.0/dataset_info\.json'"):
        load_dataset("tiny_images:2.0.0", data_dir=tmp_path, download=False)


def test_missing_data_says_what_to_do(tiny):
    message = r"'mnist' is not prepared: there is no '.*mnist/VERSION/dataset_info\.json', and download is off\. "
    with pytest.raises(DataError, match=message + r"That folder has: tiny_images\. Set data_dir .* download=True"):
        load_dataset("mnist", data_dir=tiny, download=False)
    with pytest.raises(DataError, match=message + r"Set data_dir"):
        load_dataset("mnist", data_dir=tiny / "nowhere", download=False)


def test_data_dir_defaults_to_that_of_tfds(tiny, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tiny))
    assert load_dataset("tiny_images", download=False).sizes["test"] == 10


def test_unknown_names_are_explained(tmp_path):
    with pytest.raises(DataError, match=r"TFDS has no data set 'cifar11'\. Did you mean .*'cifar10'"):
        load_dataset("cifar11", data_dir=tmp_path)
    with pytest.raises(InvalidArgumentError, match=r"`name` must be 'digits' or a TFDS name .* Received: 'a b'"):
        load_dataset("a b", data_dir=tmp_path)


def test_a_failed_download_is_explained(tmp_path, monkeypatch):
    def fail(self, *_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(TinyImages, "download_and_prepare", fail)
    with pytest.raises(
        DataError, match=r"'tiny_images' could not be downloaded .*no route to host\. Check the network"
    ):
        load_dataset("tiny_images", data_dir=tmp_path)


def test_downloads_where_allowed(tmp_path, offline):
    assert load_dataset("tiny_images", data_dir=tmp_path).sizes["test"] == 10
    assert (tmp_path / "tiny_images" / "1.2.0" / "dataset_info.json").exists()


def test_images_of_varying_size(tmp_path, offline):
    prepare(tmp_path, TinySizes)
    with pytest.raises(DataError, match=r"images vary in size\. Pass .* image_size=\(96, 96\)"):
        load_dataset("tiny_sizes", data_dir=tmp_path, download=False)
    data = load_dataset("tiny_sizes", data_dir=tmp_path, download=False, image_size=4, input_range=(0.0, 255.0))
    assert data.input_shape == (4, 4, 3)
    np.testing.assert_array_equal(values(data, "test")[0], np.stack([pixels("test", i, (4, 4, 3)) for i in range(10)]))


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (TinyTrainOnly, r"'tiny_train_only' has no official 'test' split; it has train\."),
        (TinyRegression, r"'tiny_regression' is not supervised image classification .*\('image', 'score'\)"),
    ],
)
def test_unfit_sets_are_refused(tmp_path, offline, cls, message):
    prepare(tmp_path, cls)
    with pytest.raises(DataError, match=message):
        load_dataset(cls.name, data_dir=tmp_path, download=False)


@pytest.mark.parametrize("damage", ["missing", "corrupt"])
def test_unreadable_files_are_refused(tiny, damage):
    (record,) = tiny.rglob("*test.tfrecord*")
    record.unlink() if damage == "missing" else record.write_bytes(b"x" * 200)
    with pytest.raises(DataError, match=r"'tiny_images', test split: the first sample can't be read"):
        load_dataset("tiny_images", data_dir=tiny, download=False)


def test_wrong_labels_stop_the_stream():
    stream = tf.data.Dataset.from_tensor_slices((np.zeros((5, 2)), np.array([0, 1, 2, -1, 0])))
    assert [int(y) for _, y in check_labels_in_stream(stream.take(3), 3, "here")] == [0, 1, 2]
    for classes in (3, 2):
        with pytest.raises(tf.errors.InvalidArgumentError, match=rf"here: labels must be in \[0, {classes - 1}\]"):
            list(check_labels_in_stream(stream, classes, "here"))


@pytest.mark.parametrize(
    ("name", "sizes", "shape"),
    [
        ("mnist", {"train": 54000, "validation": 6000, "test": 10000}, (28, 28, 1)),
        ("cifar10", {"train": 45000, "validation": 5000, "test": 10000}, (32, 32, 3)),
    ],
)
def test_shared_sets(name, sizes, shape, offline):
    data = load_dataset(name, data_dir=shared_path("tfds"), download=False)
    assert (data.sizes, data.input_shape, data.num_classes) == (sizes, shape, 10)
    x, y = next(iter(data.batches("test", 500, limit=500)))
    assert x.shape == (500, *shape)
    assert (float(tf.reduce_min(x)), float(tf.reduce_max(x))) == (0.0, 1.0)
    assert set(y.numpy()) == set(range(10))


def test_samples_without_labels(tmp_path, offline):
    prepare(tmp_path, TinyMore)
    options = {"data_dir": tmp_path, "download": False, "input_range": (0.0, 255.0)}
    data = load_dataset("tiny_more", unlabelled="more", limit_train=7, **options)
    assert (data.sizes, data.unlabelled.size) == ({"train": 7, "validation": 4, "test": 10}, 12)
    x, y = values(data.taught, "train")
    np.testing.assert_array_equal(x[y == -1][:, 0, 0, 0], range(12))
    np.testing.assert_array_equal(y[y >= 0], np.arange(7) % 4)
    # A share: the last ones of those that it trains on.
    data = load_dataset("tiny_more", unlabelled=0.75, limit_train=20, **options)
    assert (data.sizes["train"], data.unlabelled.size, data.sizes["validation"]) == (5, 15, 4)
    x, y = values(data.taught, "train")
    np.testing.assert_array_equal(x[y == -1][:, 0, 0, 0], range(5, 20))
    np.testing.assert_array_equal(values(data, "train")[0][:, 0, 0, 0], range(5))
    for wrong in ("test", "less"):
        with pytest.raises(InvalidArgumentError, match=f"`unlabelled` must be None, one of the splits more, .*{wrong}"):
            load_dataset("tiny_more", unlabelled=wrong, **options)
    with pytest.raises(InvalidArgumentError, match=r"`unlabelled` must be None, the name of a split, or a share"):
        load_dataset("tiny_more", unlabelled=1.5, **options)
    with pytest.raises(DataError, match="some must have labels, and some none"):
        load_dataset("tiny_more", unlabelled=0.99, **options)
