"""Ranges chosen from values: against NumPy on the values themselves, for any order, for each number of bits."""

import numpy as np
import pytest
from helpers import blobs, tiny_mlp

from tfcompress.errors import InvalidArgumentError
from tfcompress.techniques.quantize import quantize_aware
from tfcompress.techniques.quantize.ranges import METHODS, RangeMethod, ValueCounts, choose_range


def heavy_tailed(size=50_000, seed=0):
    return np.random.default_rng(seed).standard_t(3, size).astype("float32")


def chosen(values, name, bits=8, parts=1, **options):
    counts = ValueCounts()
    for part in np.array_split(values, parts):
        counts.add(part)
    return choose_range(counts, RangeMethod(name=name, **options), bits)


def squared_error(values, low, high, bits):
    steps = 2**bits - 1
    scale = (high - low) / steps
    zero = np.round(-low / scale)
    rounded = (np.clip(np.round(values / scale) + zero, 0, steps) - zero) * scale
    return float(np.square(rounded - values, dtype=np.float64).sum())


@pytest.mark.parametrize("name", METHODS)
def test_order_and_batches_change_nothing(name):
    # Sizes that grow by a million while they are counted.
    values = heavy_tailed() * np.geomspace(1e-3, 1e3, 50_000).astype("float32")
    expected = chosen(values, name, parts=7)
    for seed in range(3):
        shuffled = np.random.default_rng(seed).permutation(values)
        assert chosen(shuffled, name, parts=1 + 20 * seed) == expected
    assert chosen(values[::-1], name) == expected


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9])
def test_percentile_is_that_of_the_values(percentile):
    values = heavy_tailed()
    low, high = chosen(values, "percentile", percentile=percentile)
    width = float(2 * np.abs(values).max() / 4096)
    outside = 1 - percentile / 100
    assert np.mean(values < low - width) <= outside <= np.mean(values < low + width)
    assert np.mean(values > high + width) <= outside <= np.mean(values > high - width)
    assert chosen(values, "percentile", percentile=100) == pytest.approx((values.min(), values.max()), abs=width)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("positive", [False, True])
def test_mse_range_is_as_good_as_the_best_of_many(bits, positive):
    values = heavy_tailed()
    if positive:
        values = np.maximum(values, 0)
    low, high = chosen(values, "mse", bits)
    candidates = [
        squared_error(values, a, b, bits)
        for a in ([0.0] if positive else np.linspace(0.03, 1, 25) * values.min())
        for b in np.linspace(0.01, 1, 100 if positive else 25) * values.max()
    ]
    best, widest = min(candidates), squared_error(values, min(values.min(), 0), values.max(), bits)
    error = squared_error(values, low, high, bits)
    assert error <= 1.02 * best
    assert error < (0.8 if bits == 4 else 1.0) * widest


def test_more_bits_clip_less():
    values = heavy_tailed()
    widths = [np.ptp(chosen(values, "mse", bits)) for bits in (4, 6, 8, 16)]
    assert sorted(widths) == widths and widths[0] < 0.5 * widths[2]
    # With 16 bits nothing is clipped, and the range is symmetric.
    assert widths[3] == pytest.approx(2 * np.abs(chosen(values, "min_max")).max(), rel=0.02)


@pytest.mark.parametrize("name", METHODS)
def test_values_of_one_kind(name):
    assert chosen(np.zeros(10), name) == (0.0, 0.0)
    low, high = chosen(np.full(10, 3.0), name)
    assert low == 0 and high == pytest.approx(3.0, rel=1e-3)
    low, high = chosen(np.full(10, -1e-20), name)
    assert high == 0 and low == pytest.approx(-1e-20, rel=1e-3)


def test_ranges_of_a_model_are_those_of_its_values():
    x = np.concatenate([blobs(400, shape=(8,))[0], np.full((1, 8), 50, "float32")])
    ranges = {}
    for options in (
        {},
        {"calibration_method": "percentile", "percentile": 99.0},
        {"calibration_method": "mse"},
    ):
        layer = quantize_aware(tiny_mlp(), x, **options).get_layer("features_range")
        ranges[options.get("calibration_method")] = (float(layer.minimum), float(layer.maximum))
    assert ranges[None] == (0.0, 50.0)
    assert ranges["percentile"][1] == pytest.approx(np.percentile(x, 99), abs=50 / 2048)
    assert squared_error(x, *ranges["mse"], 8) <= squared_error(x, *ranges[None], 8)


def test_unknown_methods_are_refused():
    with pytest.raises(InvalidArgumentError, match="`calibration_method` must be one of .*mse.*Received: 'entropy'"):
        quantize_aware(tiny_mlp(), blobs(4, shape=(8,))[0], calibration_method="entropy")
    with pytest.raises(InvalidArgumentError, match=r"`percentile` must be a number in \(50, 100\]. Received: 0.99"):
        quantize_aware(tiny_mlp(), blobs(4, shape=(8,))[0], calibration_method="percentile", percentile=0.99)
