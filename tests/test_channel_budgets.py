"""Budgets of channel pruning that are measured on the exported file: met on a file made anew, or refused."""

import json

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.errors import DataError, InvalidArgumentError, ModelError
from tfcompress.measure.latency import Latency
from tfcompress.measure.size import num_params
from tfcompress.pipeline import file_figures
from tfcompress.techniques import channels
from tfcompress.techniques.channels.measured import ROUNDS


def network():
    """Three convolutions of 24 channels, about 11,000 parameters, weights random."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = inputs
    for name in "abc":
        x = layers.Conv2D(24, 3, padding="same", name=name)(x)
        x = layers.ReLU()(layers.BatchNormalization(name=f"{name}_norm")(x))
    model = keras.Model(inputs, layers.Dense(4, name="classes")(layers.GlobalAveragePooling2D()(x)), name="network")
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if len(weight.shape) == 1:
            weight.assign(rng.uniform(0.5, 1.5, size=weight.shape))
    return model


def samples(count=60):
    rng = np.random.default_rng(1)
    return rng.normal(size=(count, 8, 8, 3)).astype("float32"), rng.integers(0, 4, size=count)


class Counted:
    """A measure that says how often it was asked, and what it gave."""

    def __init__(self, measure):
        self._measure = measure
        self.given = []

    def __call__(self, model, **arguments):
        self.given.append(self._measure(model, **arguments))
        return self.given[-1]


def file_bytes(model, folder):
    return (
        tfc.export_tflite(model, folder / "model.tflite", calibration=samples()[0], parity_samples=0)
        .path.stat()
        .st_size
    )


def test_the_file_has_at_most_so_many_bytes(tmp_path, monkeypatch):
    exports = Counted(file_figures.file_figure)
    monkeypatch.setattr(file_figures, "file_figure", exports)
    model = network()
    before = [weight.copy() for weight in model.get_weights()]
    small = tfc.prune_channels(model, tflite_kb=0.6, data=samples())
    whole, left = file_bytes(model, tmp_path), file_bytes(small, tmp_path)
    limit = 0.6 * whole
    # Near to it, too: one channel of this network is about 2% of its bytes.
    assert 0.95 * limit < left <= limit < whole
    assert len(exports.given) <= 1 + ROUNDS
    for expected, actual in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(actual, expected)


def affine(model):
    """Kilobytes of a file with 4 kB that no parameter explains, and 1 B for each."""
    return 4 + num_params(model) / 1000


def root(model):
    """Milliseconds that fall more slowly than the multiply-adds."""
    return 0.001 * tfc.count_macs(model) ** 0.7


@pytest.mark.parametrize(
    "budget, measure",
    [({"tflite_kb": 0.6}, affine), ({"tflite_kb": 7}, affine), ({"latency_ms": 0.5}, root), ({"latency_ms": 5}, root)],
)
def test_few_measurements_find_the_limit(budget, measure):
    (value,) = budget.values()
    model, counted = network(), Counted(measure)
    small = tfc.prune_channels(model, measure=counted, **budget)
    limit = value * measure(model) if value < 1 else value
    assert 0.95 * limit < measure(small) <= limit
    # The model that comes out is one that was measured itself.
    assert measure(small) in counted.given[1:]
    assert 2 <= len(counted.given) <= 4


def test_the_guess_with_two_points_is_on_their_line():
    """By hand: with `affine`, the second guess of a line through two measured points is exact."""
    model, counted = network(), Counted(affine)
    tfc.prune_channels(model, tflite_kb=0.6, measure=counted)
    whole, first, second = counted.given[:3]
    limit = 0.6 * whole
    # A share of the parameters leaves more bytes than the same share of the file.
    assert first > limit
    # What one channel makes is the step of `second`.
    assert 0.97 * limit < second <= limit


def test_a_clock_that_lies_is_no_success():
    ticks = iter([10.0, *[9.0] * ROUNDS])
    with pytest.raises(
        ModelError, match=r"`latency_ms` is 9 .*and 10 of the whole model.*Received: 5, .* 0.5 of the whole"
    ):
        tfc.prune_channels(network(), latency_ms=0.5, measure=lambda model: next(ticks))


def test_latency_is_the_median_of_the_int8_file(monkeypatch):
    timed = []

    def measure_latency(path):
        timed.append(tfc.audit_tflite(path.read_bytes()).float_ops)
        return Latency(median_ms=[8.0, 3.0][len(timed) - 1], p90_ms=9.0, repeats=50)

    monkeypatch.setattr(file_figures, "measure_latency", measure_latency)
    small = tfc.prune_channels(network(), latency_ms=3, data=samples())
    assert timed == [(), ()]
    # The first guess: time goes along with multiply-adds.
    assert tfc.count_macs(small) <= 3 / 8 * tfc.count_macs(network())


def test_a_budget_that_the_model_is_within_removes_nothing():
    small = tfc.prune_channels(network(), tflite_kb=100, measure=affine)
    assert num_params(small) == num_params(network())


def test_a_budget_that_no_removal_meets():
    counted = Counted(affine)
    with pytest.raises(
        ModelError, match=r"`tflite_kb` is 4.\d+ when all goes that may, and 15.* of the whole.*Received: 3\."
    ):
        tfc.prune_channels(network(), tflite_kb=3, measure=counted)
    assert len(counted.given) <= 1 + ROUNDS


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"tflite_kb": 0}, r"`tflite_kb` must be a share in \(0, 1\), or kilobytes, at least 1"),
        ({"tflite_kb": float("inf")}, "kilobytes"),
        ({"latency_ms": -1}, "milliseconds, at least 1"),
        ({"latency_ms": float("nan")}, "milliseconds"),
        ({"latency_ms": True}, "milliseconds"),
        ({"macs": float("inf")}, "a whole number"),
        ({"macs": float("nan")}, "a whole number"),
        ({"macs": 0.5, "tflite_kb": 0.5}, "one of `macs`, `params`, `tflite_kb` and `latency_ms`"),
        ({"macs": 0.5, "measure": affine}, "`measure` must be left out with `macs`"),
        ({"tflite_kb": 0.5, "measure": lambda model: float("nan")}, "finite number above 0"),
        ({"tflite_kb": 0.5, "measure": lambda model: 0}, "finite number above 0"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        tfc.prune_channels(network(), **arguments)


def test_without_data_or_export_it_says_what_is_missing():
    with pytest.raises(DataError, match="`tflite_kb` is measured on an int8 file.*Pass `data`"):
        tfc.prune_channels(network(), tflite_kb=0.5)
    with pytest.raises(InvalidArgumentError, match="`measure` must be a function that gives the latency_ms"):
        channels.prune_channels(network(), latency_ms=0.5, data=samples())


def test_a_recipe_meets_its_budget(tmp_path):
    recipe = tfc.parse_recipe("""
        data: {name: digits, batch_size: 64, limit_train: 64}
        student: {model: cnn, widths: [16, 16], train: {epochs: 1}}
        stages: [{prune_channels: {tflite_kb: 4, train: {epochs: 1}}}]
        export: [tflite]
    """)
    result = tfc.run(recipe, tmp_path, progress=False)
    record = json.loads((tmp_path / "stages" / "01-prune_channels" / "measured.json").read_text())
    kilobytes = [entry["tflite_kb"] for entry in record]
    assert kilobytes[0] > 4
    found = max(value for value in kilobytes if value <= 4)
    # Training changes a few bytes: constants that were equal are no longer, or are now.
    assert result.exports["int8"].stat().st_size == pytest.approx(1000 * found, abs=64)


def test_a_stage_that_goes_on_is_answered_as_before(tmp_path, monkeypatch):
    """Times differ from run to run, and a checkpoint belongs to the channels that the first ones chose."""
    calls = []

    def file_figure(model, figure, calibration):
        calls.append((model.name, figure, calibration))
        return float(len(calls))

    monkeypatch.setattr(file_figures, "file_figure", file_figure)
    first = file_figures.RecordedFigures("data", tmp_path / "measured.json")
    assert [first(network(), figure="latency_ms") for _ in range(2)] == [1.0, 2.0]
    again = file_figures.RecordedFigures("data", tmp_path / "measured.json")
    assert [again(network(), figure="latency_ms") for _ in range(3)] == [1.0, 2.0, 3.0]
    assert calls == 3 * [("network", "latency_ms", "data")]
