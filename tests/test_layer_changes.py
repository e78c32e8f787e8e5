"""What a technique did, layer by layer: rows, text and picture."""

import keras
from keras import layers

import tfcompress as tfc
from tfcompress.report.layer_changes import changes_table, layer_changes
from tfcompress.report.plots import layer_sizes


def network(hidden, last="last"):
    return keras.Sequential(
        [keras.Input((4,)), layers.Dense(hidden, name="hidden"), layers.ReLU(), layers.Dense(2, name=last)]
    )


def test_rows_are_counted_on_both_models():
    before, after = network(8), network(3)
    rows = {change.layer: change for change in layer_changes(before, after)}
    assert list(rows) == ["hidden", "last"]
    hidden = rows["hidden"]
    assert (hidden.shape_before, hidden.shape_after) == ((4, 8), (4, 3))
    assert (hidden.params_before, hidden.params_after) == (40, 15)
    assert (hidden.macs_before, hidden.macs_after) == (32, 12)
    assert sum(change.params_after for change in rows.values()) == after.count_params()
    assert sum(change.macs_before for change in rows.values()) == tfc.count_macs(before)


def test_added_and_gone_layers():
    rows = {change.layer: change for change in layer_changes(network(8, "old"), network(8, "new"))}
    assert list(rows) == ["hidden", "old", "new"]
    assert rows["old"].params_after == rows["new"].params_before == 0
    assert rows["old"].shape_after == rows["new"].shape_before == ()


def test_text_and_picture():
    changes = layer_changes(network(8), network(3))
    assert "4x8 -> 4x3" in changes_table(changes) and "58 -> 23" in changes_table(changes)
    (axes,) = layer_sizes(changes).axes
    widths = [[bar.get_width() for bar in bars] for bars in axes.containers]
    assert widths == [[32, 16], [12, 6]]
    assert layer_sizes([]) is None
