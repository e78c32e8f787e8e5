"""`from_folder`: real PNG, JPEG and BMP files in, and what it says about files that can't be used."""

import numpy as np
import pytest
import tensorflow as tf

from tfcompress.data import from_folder
from tfcompress.data import split as split_module
from tfcompress.data.images import resize
from tfcompress.errors import DataError, InvalidArgumentError


def write(path, image, encode=tf.io.encode_png):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(np.asarray(image, np.uint8)).numpy())


def write_classes(root, *, count=10, size=(6, 5), classes=("ant", "bee")):
    """Pictures of one value each, that tells class and number."""
    for number, class_name in enumerate(classes):
        for index in range(count):
            write(root / class_name / f"{index}.png", np.full((*size, 3), 100 * number + index))
    return root


def values(data, split):
    (pair,) = list(data.batches(split, 1000))
    return pair[0].numpy(), pair[1].numpy()


def test_one_folder_for_each_class(tmp_path):
    data = from_folder(write_classes(tmp_path / "insects"), image_size=(4, 3), input_range=(0.0, 255.0))
    assert (data.name, data.class_names, data.input_shape) == ("insects", ("ant", "bee"), (4, 3, 3))
    assert data.sizes == {"train": 14, "validation": 2, "test": 4}
    seen = []
    for split in data.sizes:
        x, y = values(data, split)
        assert (x == x[:, :1, :1, :1]).all()
        np.testing.assert_array_equal(y, x[:, 0, 0, 0] // 100)
        assert set(y) == {0, 1}
        seen += list(x[:, 0, 0, 0])
    assert sorted(seen) == sorted(100 * number + index for number in range(2) for index in range(10))
    again = from_folder(tmp_path / "insects", image_size=(4, 3), input_range=(0.0, 255.0))
    np.testing.assert_array_equal(values(again, "test")[0], values(data, "test")[0])


def test_folders_for_splits(tmp_path):
    write_classes(tmp_path / "train", count=10)
    write_classes(tmp_path / "test", count=3)
    (tmp_path / "train" / "ant" / ".DS_Store").write_bytes(b"clutter")
    assert from_folder(tmp_path, image_size=4).sizes == {"train": 18, "validation": 2, "test": 6}
    write_classes(tmp_path / "validation", count=5)
    data = from_folder(tmp_path, image_size=4, name="mine")
    assert (data.name, data.sizes) == ("mine", {"train": 20, "validation": 10, "test": 6})


def test_formats_and_channels(tmp_path):
    rng = np.random.default_rng(0)
    smooth = np.broadcast_to(np.linspace(0, 200, 8)[:, None, None], (8, 8, 3)).astype(np.uint8)
    for index in range(4):
        write(tmp_path / "a" / f"{index}.png", smooth)
        write(tmp_path / "b" / f"{index}.JPG", smooth, lambda image: tf.io.encode_jpeg(image, quality=100))
    write(tmp_path / "a" / "grey.png", smooth[..., :1])
    noise = rng.integers(0, 256, (8, 8, 4), dtype=np.uint8)
    write(tmp_path / "b" / "alpha.png", noise)
    colour = from_folder(tmp_path, image_size=8, validation=0.25, test=0.25, input_range=(0.0, 255.0))
    assert colour.input_shape == (8, 8, 3)
    x = np.concatenate([values(colour, split)[0] for split in colour.sizes])
    assert (np.abs(x - smooth).max(axis=(1, 2, 3)) <= 1).sum() == 9
    assert (np.abs(x - noise[..., :3]).max(axis=(1, 2, 3)) == 0).sum() == 1
    assert from_folder(tmp_path, image_size=8, channels=1, validation=0.25, test=0.25).input_shape == (8, 8, 1)


def test_resize_averages_and_stays_uint8():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    same = resize(tf.constant(image), (8, 8))
    np.testing.assert_array_equal(same, image)
    small = resize(tf.constant(image), (1, 1))
    assert (small.dtype, small.shape) == (tf.uint8, (1, 1, 3))
    # A triangle twice as wide as the pixel it makes: the middle of the image counts most.
    weights = np.maximum(0, 1 - np.abs((np.arange(8) + 0.5) / 8 - 0.5))
    weights /= weights.sum()
    expected = np.einsum("hwc,h,w->c", image.astype(float), weights, weights)
    np.testing.assert_allclose(small[0, 0], expected, atol=0.51)


@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize("damage", ["garbage", "truncated", "empty"])
def test_a_corrupt_image_is_named(tmp_path, monkeypatch, damage, fits):
    if not fits:
        monkeypatch.setattr(split_module, "MEMORY_BYTES", 1)
    write_classes(tmp_path)
    victim = tmp_path / "bee" / "7.png"
    write(victim, np.random.default_rng(0).integers(0, 256, (32, 32, 3)))
    content = victim.read_bytes()
    victim.write_bytes(
        {"garbage": b"not an image at all", "truncated": content[: len(content) // 2], "empty": b""}[damage]
    )
    with pytest.raises(
        DataError, match=r"The image '.*/bee/7\.png' can't be decoded; repair or remove it\. .* says: \S"
    ):
        from_folder(tmp_path, image_size=4)


def test_a_truncated_jpeg_is_named(tmp_path):
    write_classes(tmp_path)
    victim = tmp_path / "ant" / "x.jpeg"
    write(victim, np.random.default_rng(0).integers(0, 256, (64, 64, 3)), tf.io.encode_jpeg)
    victim.write_bytes(victim.read_bytes()[:1500])
    with pytest.raises(DataError, match=r"/ant/x\.jpeg' can't be decoded"):
        from_folder(tmp_path, image_size=4)


def test_files_are_decoded_once_while_they_fit_in_memory(tmp_path):
    data = from_folder(write_classes(tmp_path / "set"), image_size=4)
    for image in tmp_path.rglob("*.png"):
        image.unlink()
    assert sum(len(y) for _, y in data.train_batches(4, seed=0, epochs=2)) == 28
    assert sum(len(y) for _, y in data.batches("test", 4)) == 4


def empty_class(root):
    (root / "cow").mkdir()


def stray_file(root):
    (root / "ant" / "labels.txt").write_text("no image")


def no_test(root):
    (root / "train").mkdir()
    (root / "ant").rename(root / "train" / "ant")
    (root / "bee").rename(root / "train" / "bee")


def third_folder(root):
    (root / "train").mkdir()


def unknown_class(root):
    no_test(root)
    write_classes(root / "test", classes=("ant", "wasp"))


def empty_test(root):
    no_test(root)
    (root / "test" / "ant").mkdir(parents=True)


def one_class(root):
    for image in (root / "bee").iterdir():
        image.unlink()
    (root / "bee").rmdir()


def no_class(root):
    one_class(root)
    (root / "ant").rename(root.parent / "elsewhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (empty_class, r"The class 'cow' has no images in '.*set'"),
        (stray_file, r"'.*labels\.txt' is not an image file \(\.png, .*\)\. Move it elsewhere"),
        (no_test, r"there is no 'test' folder"),
        (third_folder, r"it holds 'ant' too"),
        (unknown_class, r"The class 'wasp' in '.*test' has no folder in '.*train'"),
        (empty_test, r"Data set 'set': the test split is empty"),
        (one_class, r"must hold the folders of at least two classes\. Received: \['ant'\]"),
        (no_class, r"holds no folders\. Put the images of each class in one of its own"),
    ],
)
def test_unfit_folders_are_refused(tmp_path, change, message):
    root = write_classes(tmp_path / "set")
    change(root)
    with pytest.raises(DataError, match=message):
        from_folder(root, image_size=4)


def test_arguments_are_checked(tmp_path):
    with pytest.raises(DataError, match=r"There is no folder '.*nowhere'"):
        from_folder(tmp_path / "nowhere", image_size=4)
    for wrong in (0, (4,), (4, 2.5), True, "4"):
        with pytest.raises(InvalidArgumentError, match=r"`image_size` must be a number of pixels or a pair"):
            from_folder(tmp_path, image_size=wrong)
    with pytest.raises(InvalidArgumentError, match=r"`channels` must be 3"):
        from_folder(tmp_path, image_size=4, channels=4)
    with pytest.raises(InvalidArgumentError, match=r"`test` must be a number in \(0, 1\)"):
        from_folder(write_classes(tmp_path / "set"), image_size=4, test=2)
