import dataclasses
import json

import numpy as np
import pytest

from tfcompress.errors import ExportError
from tfcompress.export.parity import GATES, Agreement, Grid, Parity, _judge, agree, snr_db


def compare(expected, actual, grid=None):
    return agree(np.array(expected, "float32"), np.array(actual, "float32"), grid, delegate="none", output="y")


def test_steps_equal_numpy():
    rng = np.random.default_rng(0)
    grid = Grid(scale=0.1, zero_point=-7)
    expected = rng.uniform(-11, 12, size=(50, 10)).astype("float32")
    quantized = np.clip(np.round(expected / 0.1) - 7, -128, 127) + rng.integers(-3, 4, size=expected.shape)
    quantized = np.clip(quantized, -128, 127)
    actual = ((quantized + 7) * 0.1).astype("float32")
    steps = np.abs(quantized - np.clip(np.round(expected / 0.1) - 7, -128, 127))
    found = compare(expected, actual, grid)
    assert (found.equal, found.within_1, found.within_2) == pytest.approx([np.mean(steps <= k) for k in (0, 1, 2)])
    assert found.max_difference == pytest.approx(np.abs(expected - actual).max())


def test_snr_equals_its_definition():
    signal = np.random.default_rng(0).normal(size=1000)
    assert snr_db(signal, signal + 0.01 * np.sign(signal)) == pytest.approx(
        10 * np.log10(np.mean(signal**2) / 1e-4), abs=1e-6
    )
    assert snr_db(signal, signal) == 200
    assert snr_db(signal, np.full(1000, np.nan)) == -200


def test_top_class_counts_ties_apart():
    found = compare([[1.0, 1.1, 0.0], [3.0, 0.0, 1.0]], [[1.0, 1.0, 0.0], [0.0, 0.0, 2.0]])
    assert (found.top1, found.top1_or_tied) == (0.0, 0.5)


def test_outputs_that_are_no_classes_have_no_top_class():
    assert compare([[1.0], [2.0]], [[1.0], [2.0]]).top1 is None
    assert compare(np.ones((2, 3, 3)), np.ones((2, 3, 3))).top1 is None


def test_saturation_counts_what_lies_beyond_the_range():
    grid = Grid(scale=1.0, zero_point=0)
    assert compare([[126.0, 127.0, 128.0, 200.0]], [[126.0, 127.0, 127.0, 127.0]], grid).saturation == 0.25


@pytest.mark.parametrize(
    "kind, measures, finding",
    [
        ("float32", {"snr_db": 59.0}, "SNR 59.0 dB, at least 60 needed"),
        ("qat", {"within_1": 0.89}, "89.0% of values within one step, at least 90.0% needed"),
        ("qat", {"snr_db": 14.0}, "SNR 14.0 dB, at least 15 needed"),
        ("qat", {"top1_or_tied": 0.9}, "same top class on 90.0% of samples"),
        ("ptq", {"snr_db": 9.0}, "SNR 9.0 dB"),
        ("ptq", {"top1_or_tied": 0.79}, "same top class"),
        ("ptq", {"saturation": 0.06}, "6.0% of values beyond the file's range"),
    ],
)
def test_gate_names_what_is_missed(kind, measures, finding):
    perfect = {"snr_db": 200.0, "within_1": 1.0, "within_2": 1.0, "top1_or_tied": 1.0, "saturation": 0.0}
    good = Agreement("none", "y", 0.0, **perfect)
    assert list(_judge(good, kind, real=True, kernels=good)) == []
    (found,) = _judge(Agreement("none", "y", 0.0, **{**perfect, **measures}), kind, real=True, kernels=good)
    assert "output 'y' with delegate 'none'" in found and finding in found and "remedy: " in found


def test_qat_is_measured_by_how_the_runtime_agrees_with_itself():
    def kernels(snr_db, within_1):
        return Agreement("default against none", "y", 0.0, snr_db, within_1=within_1)

    agreement = Agreement("none", "y", 0.0, 12.0, within_1=0.6)
    assert list(_judge(agreement, "qat", real=True, kernels=kernels(13.0, 0.75))) == []
    (found,) = _judge(agreement, "qat", real=True, kernels=kernels(13.0, 0.85))
    assert "60.0% of values within one step, at least 65.0% needed" in found
    (found,) = _judge(agreement, "qat", real=True, kernels=kernels(13.0, 0.95))
    assert "at least 80.0% needed" in found
    (found,) = _judge(agreement, "qat", real=True, kernels=kernels(15.0, 0.75))
    assert "SNR 12.0 dB, at least 13 needed" in found
    # Kernels that agree on nothing excuse nothing.
    (found,) = _judge(dataclasses.replace(agreement, snr_db=9.0), "qat", real=True, kernels=kernels(5.0, 0.75))
    assert "at least 10 needed" in found


def test_random_samples_are_not_judged_by_their_top_class():
    bad = Agreement("none", "y", 0.0, 200.0, top1=0.0, top1_or_tied=0.0)
    assert list(_judge(bad, "ptq", real=False, kernels=bad)) == []


def test_failed_parity_raises_with_all_causes():
    parity = Parity("ptq", 4, "calibration data", (), (), ("first; remedy: a", "second; remedy: b"))
    with pytest.raises(ExportError, match="does not agree with its Keras model") as caught:
        parity.raise_if_failed("model.tflite")
    assert caught.value.causes == parity.findings


def test_skipping_is_said_in_the_result():
    parity = Parity("qat", 0, "skipped: parity_samples is 0")
    content = json.loads(json.dumps(parity.to_dict(), allow_nan=False))
    assert content["samples"] == 0 and content["inputs"].startswith("skipped")
    assert content["gate"]["within_1"] == GATES["qat"].within_1
