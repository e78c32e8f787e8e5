import sys

import numpy as np
import pytest

from tfcompress.report.plots import accuracy_against_bytes, kernel_values, layer_sparsity, training_curves


def row(stage, accuracy, file_bytes, gzip_bytes=None):
    return {"stage": stage, "accuracy": accuracy, "file_bytes": file_bytes, "gzip_bytes": gzip_bytes}


def texts(axes):
    return [text.get_text() for text in axes.texts]


def boxes(figure, axes):
    figure.draw_without_rendering()
    return [text.get_window_extent() for text in axes.texts]


ROWS = [
    row("teacher", 0.99, 260_000, 240_000),
    row("01-distill", 0.983, 20_000, 17_000),
    row("02-prune", 0.982, 20_000, 8_000),
    row("03-quantize", 0.9825, 20_100, 8_200),
    row("export-int8", 0.9825, 8_100, 4_300),
]


def test_every_stage_is_a_point_and_a_label():
    figure = accuracy_against_bytes(ROWS)
    axes = figure.axes[0]
    drawn = np.concatenate([points.get_offsets() for points in axes.collections])
    expected = [(row[key], 100 * row["accuracy"]) for row in ROWS for key in ("gzip_bytes", "file_bytes")]
    np.testing.assert_allclose(sorted(map(tuple, drawn)), sorted(expected))
    assert sorted(", ".join(texts(axes)).split(", ")) == sorted(row["stage"] for row in ROWS)


def test_labels_do_not_cover_each_other_and_stay_inside():
    figure = accuracy_against_bytes(ROWS)
    found = boxes(figure, figure.axes[0])
    for number, one in enumerate(found):
        assert figure.bbox.x0 <= one.x0 and one.x1 <= figure.bbox.x1
        assert not any(one.overlaps(other) for other in found[number + 1 :])


def test_stages_in_one_place_share_a_label():
    figure = accuracy_against_bytes([row("a", 0.9, 1000), row("b", 0.9, 1000), row("c", 0.8, 100)])
    assert sorted(texts(figure.axes[0])) == ["a, b", "c"]


def test_what_was_not_measured_is_left_out():
    assert accuracy_against_bytes([row("a", None, 1000), row("b", 0.5, None)]) is None
    assert texts(accuracy_against_bytes([row("a", 1.0, 1000), row("b", None, None)]).axes[0]) == ["a"]


def test_curves_of_all_stages_follow_each_other():
    figure = training_curves(
        {
            "teacher": {"loss": [3.0, 2.0, 1.0], "val_loss": [3.5, 2.5, 1.5], "accuracy": [0.1, 0.2, 0.3]},
            "01-prune": {"loss": [0.9, 0.8], "accuracy": [0.4, 0.5]},
            "untrained": {"loss": []},
        }
    )
    loss, accuracy = figure.axes
    curves = [line.get_xydata().tolist() for line in loss.lines]
    assert [[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]] in curves
    assert [[1.0, 3.5], [2.0, 2.5], [3.0, 1.5]] in curves
    assert [[4.0, 0.9], [5.0, 0.8]] in curves
    assert [[4.0, 0.4], [5.0, 0.5]] in [line.get_xydata().tolist() for line in accuracy.lines]
    assert texts(loss) == ["teacher", "01-prune"]
    assert [text.get_text() for text in accuracy.get_legend().get_texts()] == ["training", "validation"]


def test_curves_without_accuracy_or_without_anything():
    assert len(training_curves({"a": {"loss": [2.0, 1.0]}}).axes) == 1
    assert training_curves({}) is None
    assert training_curves({"a": {"loss": []}}) is None


@pytest.mark.parametrize("largest, scale", [(1.5, "linear"), (100.0, "log")])
def test_loss_over_decades_is_logarithmic(largest, scale):
    assert training_curves({"a": {"loss": [largest, 1.0]}}).axes[0].get_yscale() == scale


def test_sparsity_shows_the_last_stage_and_earlier_ones_with_zeros():
    pruned = {"first": 0.0, "second": 0.8}
    figure = layer_sparsity(
        {
            "teacher": {"other": 0.5},
            "01-distill": {"first": 0.0, "second": 0.0},
            "02-prune": pruned,
            "03-quantize": pruned,
        }
    )
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["02-prune", "03-quantize"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "second"]
    assert sorted(bar.get_width() for bar in axes.patches) == [0, 0, 80, 80]
    assert len(layer_sparsity({"only": {"first": 0.0}}).axes[0].patches) == 1
    assert layer_sparsity({}) is None


def test_drawing_leaves_pyplot_alone():
    before = "matplotlib.pyplot" in sys.modules
    accuracy_against_bytes(ROWS)
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_values_of_a_kernel_before_and_after():
    before = np.concatenate([np.zeros(500), np.random.default_rng(0).normal(size=500)])
    after = np.where(before == 0, 0.0, np.sign(before) * 0.5)
    above, below = kernel_values(before, after, "dense").axes
    assert sum(bar.get_height() for bar in above.patches) == 500
    (lines,) = below.collections
    drawn = {float(low[0]): float(high[1]) for low, high in lines.get_segments()}
    assert drawn == {0.0: 500, 0.5: (before > 0).sum(), -0.5: (before < 0).sum()}
    assert above.get_title("left") == "dense: 1,000 weights, then 3 values"
