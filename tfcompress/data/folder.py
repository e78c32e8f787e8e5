"""A `Dataset` from a folder of image files, one folder for each class.

Invariant: every file has been decoded once before the data is handed out, so that a broken image is an error that names
the file, and not the end of a training run; the order of the files depends on their names only. Left out: labels in
any other form than folder names.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfcompress.data.augment import Augmentation
from tfcompress.data.checks import check_sizes
from tfcompress.data.dataset import SPLITS, Dataset
from tfcompress.data.holdout import hold_out, leave_out_labels
from tfcompress.data.images import check_image_size, resize
from tfcompress.data.split import UNLABELLED, Split
from tfcompress.errors import DataError, InvalidArgumentError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif")
_CLUTTER = ("Thumbs.db", "desktop.ini")  # left by file browsers, as hidden files are

Files = tuple[np.ndarray, np.ndarray]  # paths, and the class number of each


def from_folder(
    path: str | os.PathLike,
    *,
    image_size: int | tuple[int, int],
    channels: int = 3,
    validation: float = 0.1,
    test: float = 0.2,
    name: str | None = None,
    input_range: tuple[float, float] = (0.0, 1.0),
    augmentation: Augmentation | None = None,
    unlabelled: float | str | os.PathLike | None = None,
) -> Dataset:
    """Makes a `Dataset` of image files (PNG, JPEG, BMP, GIF: its first frame).

    Decodes every file once before it returns, which takes about as long as an epoch of reading. Sets of up to 256 MB
    (at `image_size`) stay in memory from then on; larger ones are read anew in each epoch.

    Args:
        path: Folder with `CLASS/IMAGE` files, or with `train/CLASS/IMAGE`, `test/CLASS/IMAGE` and, if you have one,
            `validation/CLASS/IMAGE`. Classes are numbered in the order of their names.
        image_size: (height, width) in pixels that images are resized to, or one number for squares.
        channels: 3 for colour, 1 for grey; images are converted.
        validation: Share of each class's training images to hold out where there is no `validation` folder, in
            (0, 1). The choice is fixed: no seed changes it.
        test: The same for testing; held out first.
        name: What reports call the data. None takes the folder's name.
        input_range: The (low, high) that pixels are mapped to.
        augmentation: Random changes of training images, or None.
        unlabelled: Training images without labels, which only a student under a teacher sees (`Dataset.taught`): a
            folder of image files, which may lie in `path`, or the share of each class's training images whose labels
            are left out, in (0, 1). None has none.

    Returns:
        The data.

    Raises:
        DataError: If there is no such folder, no class, no image, an empty split, a file that isn't an image, an image
            that can't be decoded, or a class that training images don't have.
        InvalidArgumentError: If an argument is out of its range.

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp()) / "shapes"
        >>> for number in range(20):
        ...     file = root / ["dark", "light"][number % 2] / f"{number}.png"
        ...     file.parent.mkdir(parents=True, exist_ok=True)
        ...     image = np.full((6, 6, 3), number, np.uint8)
        ...     _ = file.write_bytes(tf.io.encode_png(image).numpy())
        >>> data = from_folder(root, image_size=4)
        >>> data.class_names, data.sizes, data.input_shape
        (('dark', 'light'), {'train': 14, 'validation': 2, 'test': 4}, (4, 4, 3))
    """
    root = Path(path)
    size = check_image_size(image_size)
    if channels not in (1, 3):
        raise InvalidArgumentError("channels", "3 (colour) or 1 (grey)", channels)
    if not root.is_dir():
        raise DataError(f"There is no folder {str(root)!r}. Pass the folder that holds one folder for each class.")
    name = name or root.resolve().name
    extra = None if unlabelled is None or isinstance(unlabelled, (int, float)) else Path(unlabelled)
    class_names, files = _find(root, extra)
    for split, fraction in (("test", test), ("validation", validation)):
        if split not in files:
            files["train"], files[split] = _hold_out(files["train"], fraction, split)
    check_sizes(name, {split: len(paths) for split, (paths, _) in files.items()})
    if extra is not None:
        files["unlabelled"] = _list_unlabelled(extra)
    elif isinstance(unlabelled, (int, float)):
        files["train"], files["unlabelled"] = leave_out_labels(name, *files["train"], unlabelled)
    splits = {split: _split(listed, size, channels) for split, listed in files.items()}
    for split in splits:
        _read_once(splits[split], files[split][0], channels)
    return Dataset(
        name=name,
        unlabelled=splits.pop("unlabelled", None),
        splits=splits,
        num_classes=len(class_names),
        class_names=class_names,
        input_range=input_range,
        stored_range=(0.0, 255.0),
        augmentation=augmentation,
    )


def _find(root: Path, unlabelled: Path | None) -> tuple[tuple[str, ...], dict[str, Files]]:
    """The class names, and the files of each split that has a folder ("train" if none has)."""
    apart = None if unlabelled is None else unlabelled.resolve()
    inside = [name for name in _folders(root) if (root / name).resolve() != apart]
    if not inside:
        raise DataError(f"The folder {str(root)!r} holds no folders. Put the images of each class in one of its own.")
    if "train" not in inside:
        return tuple(inside), {"train": _list_files(root, root, inside)}
    unknown = sorted(set(inside) - set(SPLITS))
    if unknown or "test" not in inside:
        wrong = f"it holds {unknown[0]!r} too" if unknown else "there is no 'test' folder"
        raise DataError(
            f"The folder {str(root)!r} holds 'train', so its folders must be train, test and, at choice, validation; "
            f"{wrong}. For a single set of classes that is split here, point at the folder that holds the classes."
        )
    class_names = _folders(root / "train")
    files = {}
    for split in inside:
        extra = sorted(set(_folders(root / split)) - set(class_names))
        if extra:
            raise DataError(
                f"The class {extra[0]!r} in {str(root / split)!r} has no folder in {str(root / 'train')!r}."
            )
        files[split] = _list_files(root, root / split, class_names)
    return tuple(class_names), files


def _folders(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _list_files(root: Path, folder: Path, class_names: list[str]) -> Files:
    """The images in each class's folder, in an order that mixes the classes."""
    if len(class_names) < 2:
        raise DataError(f"{str(folder)!r} must hold the folders of at least two classes. Received: {class_names}.")
    found = []
    for number, class_name in enumerate(class_names):
        images = _images(folder / class_name) if (folder / class_name).is_dir() else []
        if not images and folder.name != "validation" and folder.name != "test":
            raise DataError(f"The class {class_name!r} has no images in {str(folder)!r}.")
        found += [(image, number) for image in images]
    # By a hash of the name: the same on each machine, and the first samples are of all classes.
    found.sort(key=lambda item: _place(item[0], root))
    return _paths([image for image, _ in found]), np.array([number for _, number in found], np.int32)


def _list_unlabelled(folder: Path) -> Files:
    """The images that lie in a folder, of no class."""
    if not folder.is_dir():
        raise DataError(f"There is no folder {str(folder)!r}. Pass the folder that holds images without labels.")
    images = sorted(_images(folder), key=lambda image: _place(image, folder))
    if not images:
        raise DataError(f"The folder {str(folder)!r} holds no images. Leave out `unlabelled` where there are none.")
    return _paths(images), np.full(len(images), UNLABELLED, np.int32)


def _images(folder: Path) -> list[Path]:
    images = [e for e in folder.iterdir() if not e.name.startswith(".") and e.name not in _CLUTTER]
    for image in images:
        if not image.is_file() or image.suffix.lower() not in SUFFIXES:
            raise DataError(f"{str(image)!r} is not an image file ({', '.join(SUFFIXES)}). Move it elsewhere.")
    return images


def _place(image: Path, root: Path) -> bytes:
    return hashlib.sha256(image.relative_to(root).as_posix().encode()).digest()


def _paths(images: list[Path]) -> np.ndarray:
    return np.array([str(image) for image in images], object)


def _hold_out(files: Files, fraction: float, name: str) -> tuple[Files, Files]:
    paths, labels = files
    kept, held = hold_out(labels, fraction, name=name)
    return (paths[kept], labels[kept]), (paths[held], labels[held])


def _split(files: Files, size: tuple[int, int], channels: int) -> Split:
    def read(path, label):
        return resize(_decode(path, channels), size), label

    paths, labels = files
    stream = tf.data.Dataset.from_tensor_slices((paths, labels)).map(read, num_parallel_calls=tf.data.AUTOTUNE)
    return Split(stream, size=len(paths), labelled=bool((labels != UNLABELLED).all()))


def _decode(path: tf.Tensor, channels: int) -> tf.Tensor:
    content = tf.io.read_file(path)
    # TensorFlow's default for JPEG is a coarse transform, some levels off what other programs, and phones, decode.
    image = tf.cond(
        tf.io.is_jpeg(content),
        lambda: tf.io.decode_jpeg(content, channels=channels, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_image(content, channels=channels, expand_animations=False),
    )
    return tf.ensure_shape(image, (None, None, channels))


def _read_once(split: Split, paths: np.ndarray, channels: int) -> None:
    """Decodes every image, which also fills the cache of a split that is kept in memory."""
    try:
        split.samples.reduce(np.int64(0), lambda count, _: count + 1)
    except tf.errors.OpError as error:
        raise _unreadable(paths, channels, error) from error


def _unreadable(paths: np.ndarray, channels: int, error: tf.errors.OpError) -> DataError:
    """Finds the file that `error` is about: TensorFlow doesn't name it."""
    for path in paths:
        try:
            _decode(tf.constant(path), channels)
        except (tf.errors.OpError, ValueError) as cause:
            reason = str(getattr(cause, "message", cause)).splitlines()[0]
            return DataError(f"The image {path!r} can't be decoded; repair or remove it. TensorFlow says: {reason}")
    return DataError(f"Reading the images failed, but each can be read alone. TensorFlow says: {error.message}")
