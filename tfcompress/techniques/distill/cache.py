"""The cache of a teacher: what it says about every training sample, computed once and kept in files.

A folder with `index.json` and, for each view, shards of some thousand samples: `.npy` files of float16 logits, or of
the largest ones only. 50,000 samples of 10 logits in 4 views take 4 MB.

Invariant: a shard appears whole or not at all, and is computed once: a build that was interrupted goes on with the
first shard that is missing, and several workers may build side by side. Only the teacher, the data and the views that a
folder was made for can read it. Left out: reading the shards while training (`stored_outputs.py`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from rich.progress import track

from tfcompress import files
from tfcompress.data import Dataset
from tfcompress.errors import InvalidArgumentError, ModelError
from tfcompress.techniques.distill.data_key import data_key
from tfcompress.techniques.distill.several_teachers import as_teacher
from tfcompress.techniques.distill.stored_outputs import StoredOutputs, largest

# Samples that are shown to the teacher first, to see what it gives.
_FIRST = 64
# Samples in a file: of a teacher of 1 ms each, what an interruption costs is eight seconds.
SHARD = 8192
_LARGEST = float(np.finfo("float16").max)


def cache_teacher(
    teacher: Any,
    data: Dataset,
    folder: str | Path,
    *,
    top_k: int | None = None,
    batch_size: int = 256,
    progress: bool = False,
) -> StoredOutputs:
    """Computes a teacher's logits for all training samples, view by view, or reads those that are there.

    Args:
        teacher: Whatever `Teacher` takes, a `Teacher`, or an `Ensemble`; one that depends on labels
            is given those of the data.
        data: The data, not augmented or with a number of views.
        folder: Where the cache is, or comes to be. One folder holds the cache of one teacher on one set of data.
        top_k: Keep the largest logits of each sample only; what they leave of the probability is spread evenly over the
            other classes. Pays with hundreds of classes: each takes 4 bytes, or 6 of more than 65,536 classes, where
            every logit takes 2 without.
        batch_size: Samples that the teacher gets at a time.
        progress: Whether to show a bar with the time left.

    Returns:
        A teacher for `Distiller`, whose `train_batches` brings the logits along.

    Raises:
        InvalidArgumentError: If an argument is out of its range, the data makes new pictures in each epoch, or the
            folder holds the cache of another teacher, other data or other views.
        ModelError: If the teacher gives NaN or infinity.

    Example:
        >>> import tempfile
        >>> from tfcompress.data import load_dataset
        >>> data = load_dataset("digits")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     stored = cache_teacher(lambda x: tf.reduce_sum(x, 1)[..., 0], data, folder)
        ...     stored.size == data.sizes["train"], stored.views, stored.num_classes
        (True, 1, 8)

    Reference:
        Beyer et al., "Knowledge distillation: A good teacher is patient and consistent", 2021,
        https://arxiv.org/abs/2106.05237
    """
    teacher = as_teacher(teacher)
    folder, size, views = Path(folder), data.sizes["train"], data.require_views()
    if folder.exists() and not folder.is_dir():
        raise InvalidArgumentError("folder", "a folder, which may be new", f"the file {str(folder)!r}")
    probe, labels = next(iter(data.view(0, _FIRST, labels=True)))
    teacher.find_out_outputs(probe)
    first = np.asarray(teacher.logits(probe, labels))
    whole = isinstance(top_k, int) and not isinstance(top_k, bool)
    if top_k is not None and not (whole and 1 <= top_k < first.shape[-1]):
        raise InvalidArgumentError(
            "top_k", f"None or a whole number from 1 to {first.shape[-1] - 1}, below the classes", top_k
        )
    if top_k is not None and first.ndim != 2:
        raise InvalidArgumentError("top_k", "None for outputs of more than two axes", top_k)
    if getattr(teacher, "variables", ()):
        raise InvalidArgumentError(
            "teacher", "one whose outputs stay as they are; those of an AveragedTeacher change", teacher.name
        )
    about = {
        "teacher": teacher.key(),
        "data": data_key(data),
        "views": views,
        "samples": size,
        "shape": list(first.shape[1:]),
        "top_k": top_k,
        "shard": SHARD,
    }
    if teacher.needs_labels:
        about["labels"] = _labels_key(data)
    _claim(folder, about, first)
    count = math.ceil(size / SHARD)
    paths = [[folder / f"view-{view:03}" / f"{shard:05}.npy" for shard in range(count)] for view in range(views)]
    missing = [(view, shard) for view in range(views) for shard in range(count) if not paths[view][shard].exists()]
    # One function for all views, traced once.
    forward = tf.function(teacher.logits, reduce_retracing=True)
    computed = (
        (view, shard, logits)
        for view in range(views)
        for run in _runs([shard for at, shard in missing if at == view])
        for shard, logits in _computed(forward, data, view, run, min(batch_size, SHARD))
    )
    for view, shard, logits in track(computed, "teacher", total=len(missing), disable=not (progress and missing)):
        stored = logits.astype("float16") if top_k is None else largest(logits, top_k)
        with files.atomic_path(paths[view][shard]) as temporary, open(temporary, "wb") as file:
            np.save(file, stored, allow_pickle=False)
    shards = [[_read(path, min(SHARD, size - at * SHARD)) for at, path in enumerate(row)] for row in paths]
    found = StoredOutputs.of_shards(shards, first.shape[1:])
    found.note_data(data, about["data"])
    return found


def _claim(folder: Path, about: dict[str, Any], first: np.ndarray) -> None:
    """Writes the index, or checks that the one that is there is of the same."""
    index = folder / "index.json"
    if not index.exists():
        # Another worker may be writing it just now, or one was killed while it did.
        others = [] if not folder.exists() else [path.name for path in folder.iterdir() if not _is_index(path)]
        if others:
            raise InvalidArgumentError("folder", "a new or empty folder, or one that holds a cache", str(folder))
        files.write_json(index, {**about, "first": first[:4].astype("float64").tolist()})
        return
    try:
        found = dict(json.loads(index.read_text()))
        said = np.asarray(found["first"], "float64")
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidArgumentError(
            "folder",
            "one whose index.json is as it was written; delete the folder",
            f"{str(index)!r}, damaged: {error}",
        ) from error
    others = [name for name in about if found.get(name) != about[name]]
    # A function has no key, and equal weights may be of another structure.
    same = said.shape == first[:4].shape and np.allclose(said, first[:4], rtol=1e-3, atol=1e-3)
    if not others and not same:
        others = ["teacher"]
    if others:
        raise InvalidArgumentError(
            "folder",
            f"one that holds the cache of this teacher on this data, or a new one (what differs: {', '.join(others)})",
            str(folder),
        )


def _is_index(path: Path) -> bool:
    return path.name == "index.json" or path.name.startswith(files.UNFINISHED)


def _read(path: Path, samples: int) -> np.ndarray:
    """A shard, by memory map."""
    try:
        shard = np.load(path, mmap_mode="r", allow_pickle=False)
        if len(shard) != samples:
            raise ValueError(f"it holds {len(shard)} samples and not {samples}")
    except (ValueError, OSError, EOFError) as error:
        raise ModelError(f"The shard {str(path)!r} is damaged: {error}. Delete it, and it is computed anew.") from error
    return shard


def _computed(
    forward: Callable[[Any, Any], Any], data: Dataset, view: int, run: Sequence[int], batch_size: int
) -> Iterator[tuple[int, np.ndarray]]:
    """The logits of shards in a row, in one pass over their samples; a batch is at most a shard."""
    waiting: list[np.ndarray] = []
    shards = iter(run)
    shard = next(shards)
    for inputs, labels in data.view(view, batch_size, first=shard * SHARD, labels=True):
        logits = np.asarray(forward(inputs, labels))
        if not (np.abs(logits) <= _LARGEST).all():
            raise ModelError(
                f"The teacher must give finite outputs, at most {_LARGEST:g} in float16. Received: "
                f"{'NaN' if np.isnan(logits).any() else np.abs(logits).max()} in view {view}."
            )
        waiting.append(logits)
        if sum(map(len, waiting)) >= SHARD:
            joined = np.concatenate(waiting)
            yield shard, joined[:SHARD]
            if shard == run[-1]:
                return
            shard, waiting = next(shards), [joined[SHARD:]]
    # The last one of all is smaller.
    yield shard, np.concatenate(waiting)


def _labels_key(data: Dataset) -> str:
    """What the labels of the training samples are known by."""
    batches = data.splits["train"].samples.map(lambda x, y: y).batch(SHARD)
    return files.content_key(*(np.asarray(labels).tobytes() for labels in batches))


def _runs(numbers: Sequence[int]) -> list[list[int]]:
    """Ascending numbers in pieces without a gap.

    Example:
        >>> _runs([0, 1, 4, 5, 7])
        [[0, 1], [4, 5], [7]]
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs
