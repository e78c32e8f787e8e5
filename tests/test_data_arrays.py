"""`from_arrays`: what it makes, and what it refuses."""

import numpy as np
import pytest

from tfcompress.data import from_arrays
from tfcompress.data.holdout import hold_out
from tfcompress.errors import DataError, InvalidArgumentError

X = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
Y = np.arange(40) % 4


def values(data, split):
    (pair,) = list(data.batches(split, 1000))
    return pair[0].numpy(), pair[1].numpy()


def test_given_splits_keep_their_order_and_values():
    data = from_arrays(X, Y, validation=(X[:8] + 1, Y[:8]), test=(X[:4] - 1, Y[:4]), name="mine")
    assert (data.name, data.sizes) == ("mine", {"train": 40, "validation": 8, "test": 4})
    assert (data.input_shape, data.num_classes, data.class_names) == ((6,), 4, ("0", "1", "2", "3"))
    assert data.input_range == (X.min(), X.max())
    for split, x, y in (("train", X, Y), ("validation", X[:8] + 1, Y[:8]), ("test", X[:4] - 1, Y[:4])):
        np.testing.assert_array_equal(values(data, split)[0], x)
        np.testing.assert_array_equal(values(data, split)[1], y)


def test_fractions_are_stratified_disjoint_and_fixed():
    x = np.arange(100, dtype=np.float32)[:, None]
    y = np.repeat([0, 1, 2], [50, 30, 20])
    first, again = (from_arrays(x, y, validation=0.25, test=0.2) for _ in range(2))
    assert first.sizes == {"train": 60, "validation": 20, "test": 20}
    parts = {split: values(first, split) for split in first.sizes}
    np.testing.assert_array_equal(np.bincount(parts["test"][1]), [10, 6, 4])
    np.testing.assert_array_equal(np.bincount(parts["validation"][1]), [10, 6, 4])
    np.testing.assert_array_equal(np.sort(np.concatenate([part[0][:, 0] for part in parts.values()])), np.arange(100))
    for split, (x_part, y_part) in parts.items():
        np.testing.assert_array_equal(y_part, y[x_part[:, 0].astype(int)])
        np.testing.assert_array_equal(values(again, split)[0], x_part)


def test_held_out_samples_are_spread_over_the_order():
    kept, held = hold_out(np.zeros(100, int), 0.1)
    np.testing.assert_array_equal(held, np.arange(5, 100, 10))
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, held])), np.arange(100))


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64, bool])
def test_other_types_become_float32(dtype):
    x = (np.arange(80).reshape(40, 2) % 7).astype(dtype)
    actual, labels = values(from_arrays(x, Y, test=(x, Y)), "test")
    assert (actual.dtype, labels.dtype) == (np.float32, np.int32)
    np.testing.assert_array_equal(actual, x.astype(np.float32))


def test_labels_may_be_a_column_and_classes_may_be_named():
    data = from_arrays(X, Y[:, None].astype(np.uint8), class_names=["a", "b", "c", "d", "e"])
    assert (data.num_classes, data.class_names) == (5, ("a", "b", "c", "d", "e"))
    assert from_arrays(X, Y, num_classes=9).class_names == tuple("012345678")


def broken(position, value):
    x = X.copy()
    x[position] = value
    return x


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": broken((7, 3), np.nan)}, r"'arrays', train split: x holds NaN or infinity, first in sample 7\."),
        ({"x": broken((9, 0), -np.inf)}, r"train split: x holds NaN or infinity, first in sample 9\."),
        ({"x": X.astype(np.float64) * 1e300}, r"train split: x holds NaN or infinity, first in sample 0\."),
        ({"test": (broken((2, 0), np.nan), Y)}, r"test split: x holds NaN or infinity, first in sample 2\."),
        ({"x": X[:, 0]}, r"x must have the shape \(samples, \.\.\.\).* Received: \(40,\)"),
        ({"x": X.astype(str)}, r"x must hold integers or floating-point numbers\. Received: dtype <U"),
        ({"x": X[:0], "y": Y[:0]}, r"train split: the split is empty\. Give it"),
        ({"x": X[:, :0]}, r"each sample is empty\. Received: x of shape \(40, 0\)"),
        ({"test": (X[:0], Y[:0])}, r"test split: the split is empty"),
        ({"x": X[:5], "y": Y[:5] % 2, "test": 0.1}, r"the test split is empty.* larger fraction"),
        ({"y": Y[:-1]}, r"x and y must have the same length\. Received: 40 and 39"),
        ({"y": np.eye(4)[Y]}, r"one class number for each sample.*argmax.* Received: shape \(40, 4\)"),
        ({"y": Y.astype(float)}, r"y must hold whole numbers.* Received: dtype float64"),
        ({"y": Y - 1}, r"labels must be 0 or above\. Received: -1 in sample 0, 10 wrong labels in all"),
        ({"num_classes": 3}, r"labels must be in \[0, 2\]\. Received: 3 in sample 3, 10 wrong labels in all"),
        ({"class_names": ["a", "b"]}, r"labels must be in \[0, 1\]\. Received: 2 in sample 2"),
        ({"test": (X, Y + 1)}, r"test split: labels must be in \[0, 3\]\. Received: 4 in sample 3"),
        (
            {"validation": (X[:, :5], Y)},
            r"validation split: .*shape of the training samples, \(6,\)\. Received: \(5,\)",
        ),
        ({"test": (X.astype(np.uint8), Y)}, r"test split: .*use one type in all splits\. Received: uint8 .*float32"),
        ({"input_range": (0.0, 1.0)}, r"values must lie in input_range \(0.0, 1.0\).* Received: values from -"),
    ],
)
def test_unfit_data_is_refused(arguments, message):
    arguments = {"x": X, "y": Y, **arguments}
    with pytest.raises(DataError, match=message):
        from_arrays(arguments.pop("x"), arguments.pop("y"), **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"test": 1.0}, r"`test` must be a number in \(0, 1\)\. Received: 1.0"),
        ({"validation": 0}, r"`validation` must be a number in \(0, 1\)\. Received: 0"),
        ({"validation": None}, r"`validation` must be a number in \(0, 1\) or a pair \(x, y\)"),
        ({"num_classes": 1}, r"`num_classes` must be a whole number, at least 2"),
        ({"num_classes": 4, "class_names": ["a"]}, r"`class_names` must be 4 names"),
        ({"input_range": (1.0, 1.0)}, r"`input_range` must be a pair \(low, high\)"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        from_arrays(X, Y, **arguments)
