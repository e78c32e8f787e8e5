"""Pictures of a run: accuracy against bytes, training curves, sparsity per layer.

Invariant: drawing touches no global state of Matplotlib, so a notebook's own figures stay as they are; each function
returns a figure, or None where there is nothing to draw. Left out: writing files (see `page`).
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tfcompress.report.results import Row, is_export

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _PALE, _GRID = "#22303c", "#8a97a3", "#e4e9ed"
_BLUE, _ORANGE, _GREEN = "#2f6db3", "#e07b2a", "#2a8c5a"
_BARS = ("#2f6db3", "#e07b2a", "#2a8c5a", "#8a5fb0", "#b04a5f", "#5f8ab0")
_WIDTH = 8.4  # inches
_DPI = 150


def accuracy_against_bytes(rows: Sequence[Row]) -> Figure | None:
    """Each stage as a point: bytes of its file (filled) and after gzip (hollow), against its accuracy.

    Args:
        rows: Mappings with the keys of `tfcompress.measure.Metrics`.
    """
    rows = [row for row in rows if row.get("accuracy") is not None and row.get("file_bytes")]
    if not rows:
        return None
    from matplotlib.lines import Line2D

    figure, (axes,) = _figure(1, height=4.4)
    accuracies = [100 * row["accuracy"] for row in rows]
    for row, accuracy in zip(rows, accuracies, strict=True):
        color = _GREEN if is_export(row) else _BLUE
        if row.get("gzip_bytes"):
            ends = [row["gzip_bytes"], row["file_bytes"]]
            axes.plot(ends, [accuracy] * 2, color=color, linewidth=1, linestyle=":", zorder=2)
            axes.scatter(ends[0], accuracy, s=44, facecolor="white", edgecolor=color, linewidth=1.4, zorder=3)
        axes.scatter(row["file_bytes"], accuracy, s=64, color=color, edgecolor="white", linewidth=0.8, zorder=4)
    _bytes_axis(axes, [size for row in rows for size in (row["file_bytes"], row.get("gzip_bytes")) if size])
    spread = max(max(accuracies) - min(accuracies), 0.5)
    axes.set_ylim(min(accuracies) - 0.25 * spread, min(max(accuracies) + 0.4 * spread, 100 + 0.1 * spread))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}%" if value <= 100 else "")
    axes.set_xlabel("size")
    axes.set_ylabel("test accuracy")
    _title(axes, "Accuracy against size")
    points: list[Any] = [Line2D([], [], marker="o", linestyle="", color=_BLUE, label="stage, as float32 file")]
    if any(is_export(row) for row in rows):
        points.append(Line2D([], [], marker="o", linestyle="", color=_GREEN, label="exported file"))
    hollow = Line2D([], [], marker="o", linestyle="", markeredgecolor=_INK, label="the same after gzip")
    hollow.set_markerfacecolor("white")
    points.append(hollow)
    _legend(axes, handles=points)
    _label_points(figure, axes, rows)
    return figure


def training_curves(histories: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure | None:
    """Loss and accuracy over all epochs of all stages, one after the other, in training and validation.

    Args:
        histories: Stage to quantity (`loss`, `accuracy`, `val_loss`, `val_accuracy`) to its value after each epoch.
    """
    histories = {stage: history for stage, history in histories.items() if history.get("loss")}
    if not histories:
        return None
    shown = [
        (quantity, label)
        for quantity, label in (("loss", "loss"), ("accuracy", "accuracy"))
        if any(history.get(quantity) or history.get(f"val_{quantity}") for history in histories.values())
    ]
    from matplotlib.ticker import LogLocator, MaxNLocator

    figure, panels = _figure(len(shown), height=2.5 * len(shown) + 0.5, share_x=True)
    ends = [0]
    for history in histories.values():
        ends.append(ends[-1] + len(history["loss"]))
    for axes, (quantity, label) in zip(panels, shown, strict=True):
        for number, (start, history) in enumerate(zip(ends, histories.values(), strict=False)):
            for prefix, color, name in (("", _BLUE, "training"), ("val_", _ORANGE, "validation")):
                _curve(axes, start, history.get(prefix + quantity, ()), color, name if number == 0 else None)
            if number % 2 == 0:
                axes.axvspan(start, ends[number + 1], color="#f3f6f8", zorder=0)
        axes.set_ylabel(label)
        axes.set_xlim(0, ends[-1])
        axes.margins(y=0.08)
        if quantity == "loss" and _spans_decades(histories):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.set_yticks([], minor=True)
        if quantity == "accuracy":
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%" if value <= 1 else "")
    panels[-1].set_xlabel("epoch, all stages")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    _legend(panels[-1], loc="lower right" if shown[-1][0] == "accuracy" else "upper right")
    _name_bands(panels[0], list(histories), ends)
    _title(panels[0], "Training", pad=46 if _too_narrow(list(histories), ends) else 22)
    return figure


def layer_sparsity(sparsity: Mapping[str, Mapping[str, float]]) -> Figure | None:
    """Share of zeros in each kernel of the last stage, and of earlier stages with the same layers that have zeros.

    Args:
        sparsity: Stage to layer name to a share in [0, 1].
    """
    if not sparsity or not list(sparsity.values())[-1]:
        return None
    last_stage, last = list(sparsity.items())[-1]
    shown = {
        stage: shares
        for stage, shares in sparsity.items()
        if stage == last_stage or (list(shares) == list(last) and max(shares.values()) >= 0.01)
    }
    thickness = 0.8 / len(shown)
    figure, (axes,) = _figure(1, height=1.5 + len(last) * (0.16 + 0.15 * len(shown)))
    for number, (stage, shares) in enumerate(shown.items()):
        places = [index + (number - (len(shown) - 1) / 2) * thickness for index in range(len(last))]
        values = [100 * share for share in shares.values()]
        axes.barh(places, values, height=0.86 * thickness, color=_BARS[number % len(_BARS)], label=stage, zorder=2)
        for place, value in zip(places, values, strict=True):
            axes.text(value + 0.8, place, f"{value:.0f}%", va="center", color=_INK, fontsize=7.5, zorder=3)
    axes.set_yticks(range(len(last)), list(last))
    axes.set_ylim(len(last) - 0.4, -0.6)
    axes.set_xlim(0, 108)
    axes.set_xticks(range(0, 101, 20), [f"{share}%" for share in range(0, 101, 20)])
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("zeros in the kernel")
    if len(shown) == 1:
        _title(axes, f"Sparsity of each layer after {last_stage}")
    else:
        _title(axes, "Sparsity of each layer", pad=26)
        _legend(axes, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=len(shown), borderaxespad=0.2)
    return figure


def layer_sensitivity(
    rows: Sequence[Mapping[str, Any]], int8_snr_db: float, float_layers: Collection[str] = ()
) -> Figure | None:
    """A bar for each layer: the signal-to-noise ratio of the outputs with that layer alone in int8.

    Args:
        rows: Mappings with `layer` and `snr_db`, as `Sensitivity.rows()` gives them.
        int8_snr_db: The ratio with all layers in int8, in dB.
        float_layers: Names of layers that a file keeps in float, which stand out.
    """
    if not rows:
        return None
    figure, (axes,) = _figure(1, height=1.4 + 0.24 * len(rows))
    for kept, color, label in ((False, _BLUE, "one layer in int8"), (True, _GREEN, "the same, kept in float")):
        shown = {at: row["snr_db"] for at, row in enumerate(rows) if (row["layer"] in float_layers) == kept}
        if shown:
            axes.barh(list(shown), list(shown.values()), color=color, height=0.7, label=label)
    axes.set_yticks(range(len(rows)), [row["layer"] for row in rows])
    axes.axvline(int8_snr_db, color=_ORANGE, linewidth=1.6, label="all layers in int8")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("signal-to-noise ratio of the outputs (dB), less is more sensitive")
    _title(axes, "Each layer alone in int8", pad=26)
    _legend(axes, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, borderaxespad=0.2)
    return figure


def layer_sizes(changes: Sequence[Any]) -> Figure | None:
    """Two bars for each layer: its multiply-adds before and after, and the share that is left.

    Args:
        changes: What `tfcompress.report.layer_changes.layer_changes` gives.
    """
    changes = [change for change in changes if change.before.macs or change.after.macs]
    if not changes:
        return None
    from matplotlib.ticker import EngFormatter

    figure, (axes,) = _figure(1, height=1.4 + 0.24 * len(changes))
    rows = range(len(changes))
    axes.barh(rows, [change.before.macs for change in changes], color=_GRID, height=0.8, label="before")
    axes.barh(rows, [change.after.macs for change in changes], color=_BLUE, height=0.5, label="after")
    longest = max(max(change.before.macs, change.after.macs) for change in changes)
    for row, change in zip(rows, changes, strict=True):
        left = f"{100 * change.after.macs / change.before.macs:.0f}%" if change.before.macs else "new"
        end = max(change.before.macs, change.after.macs) + longest / 120
        axes.text(end, row, left, va="center", color=_INK, fontsize=7.5, zorder=3)
    axes.set_xlim(0, 1.07 * longest)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_yticks(rows, [change.layer for change in changes])
    axes.set_ylim(len(changes) - 0.4, -0.6)
    axes.set_xlabel("multiply-adds for one sample")
    _title(axes, "What is left of each layer", pad=26)
    _legend(axes, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0.2)
    return figure


def kept_energy(rows: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Two bars for each factorized layer: the share of its kernel's energy and that of its parameters that is kept.

    Args:
        rows: Mappings as `FactorizationPlan.rows()` gives them; layers that were left alone are left out.
    """
    rows = [row for row in rows if row["method"] is not None]
    if not rows:
        return None
    figure, (axes,) = _figure(1, height=1.5 + 0.5 * len(rows))
    for offset, color, label, shares in (
        (-0.2, _BLUE, "energy", [100 * row["kept_energy"] for row in rows]),
        (0.2, _ORANGE, "parameters", [100 * row["num_params_after"] / row["num_params_before"] for row in rows]),
    ):
        places = [at + offset for at in range(len(rows))]
        axes.barh(places, shares, height=0.36, color=color, label=label, zorder=2)
        for place, share in zip(places, shares, strict=True):
            axes.text(share + 0.8, place, f"{share:.0f}%", va="center", color=_INK, fontsize=7.5, zorder=3)
    names = [f"{row['layer']}\n{row['method']}, rank {' x '.join(map(str, row['rank']))}" for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 108)
    axes.set_xticks(range(0, 101, 20), [f"{share}%" for share in range(0, 101, 20)])
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("kept of the layer before")
    _title(axes, "What factorization kept of each kernel", pad=26)
    _legend(axes, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0.2)
    return figure


def kernel_values(before: Any, after: Any, layer: str) -> Figure:
    """How often each value occurs in a kernel before and after its weights share values.

    Args:
        before: The kernel before, an array of any shape.
        after: The kernel after, with few values.
        layer: Name of its layer.
    """
    figure, (above, below) = _figure(2, height=4.6, share_x=True)
    counts = collections.Counter(after.ravel().tolist())
    # A zero among the weights before was pruned; its bar would hide all others.
    nonzero = before[before != 0]
    above.hist(nonzero, bins=120, color=_BLUE)
    above.set_ylabel("weights")
    zeros = before.size - nonzero.size
    above.set_xlabel(f"without {zeros:,} zeros" if zeros else "")
    below.vlines(list(counts), 0, list(counts.values()), color=_ORANGE, linewidth=2.5)
    below.set_yscale("log")
    below.set_ylim(0.7, 2 * max(counts.values()))
    below.set_ylabel("weights (log)")
    below.set_xlabel("value")
    _title(above, f"{layer}: {before.size:,} weights, then {len(counts)} values")
    return figure


def _figure(count: int, *, height: float, share_x: bool = False) -> tuple[Figure, list[Axes]]:
    """Panels one above the other in this report's style, on the file-writing canvas."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(
        figsize=(_WIDTH, height), dpi=_DPI, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08), facecolor="white"
    )
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(count, 1, sharex=share_x, squeeze=False)[:, 0])
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_PALE)
        axes.tick_params(colors=_INK, labelsize=8.5, length=3, color=_PALE, which="both")
        axes.grid(color=_GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.xaxis.label.set(color=_INK, fontsize=9.5)
        axes.yaxis.label.set(color=_INK, fontsize=9.5)
    return figure, panels


def _title(axes: Axes, text: str, pad: float = 8) -> None:
    axes.set_title(text, loc="left", color=_INK, fontsize=12, fontweight="bold", pad=pad)


def _legend(axes: Axes, **options: Any) -> None:
    axes.legend(frameon=False, fontsize=8.5, labelcolor=_INK, **options)


def _bytes_axis(axes: Axes, sizes: Sequence[int]) -> None:
    """A logarithmic axis with marks at 1, 2 and 5 times each power of ten, and room for labels at the right."""
    axes.set_xscale("log")
    low, high = min(sizes) / 1.4, max(sizes) * (max(sizes) / min(sizes)) ** 0.22 * 1.3
    axes.set_xlim(low, high)
    factors = (1, 2, 5) if high / low < 2000 else (1,)
    marks = [factor * 10**power for power in range(13) for factor in factors]
    marks = [mark for mark in marks if low <= mark <= high]
    axes.set_xticks(marks, [_short_bytes(mark) for mark in marks])
    axes.set_xticks([], minor=True)


def _short_bytes(size: float) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:g} {unit}"
    return f"{size:g} B"


def _label_points(figure: Figure, axes: Axes, rows: Sequence[Row]) -> None:
    """Names at the right of their points; points in one place share a label, and none covers a label or a point."""
    figure.draw_without_rendering()  # Where the axes are is not known before.
    places = [(row["file_bytes"], 100 * row["accuracy"]) for row in rows]
    after_gzip = [(row["gzip_bytes"], 100 * row["accuracy"]) for row in rows if row.get("gzip_bytes")]
    unit = figure.dpi / 72  # Pixels of a typographic point, which fonts are measured in.
    labels: list[tuple[float, float, int, str]] = []  # Place in pixels, index of the point, text.
    for index, (x, y) in enumerate(axes.transData.transform(places).tolist()):
        same = [at for at, label in enumerate(labels) if max(abs(label[0] - x), abs(label[1] - y)) < 5 * unit]
        if same:
            labels[same[0]] = (*labels[same[0]][:3], f"{labels[same[0]][3]}, {rows[index]['stage']}")
        else:
            labels.append((x, y, index, str(rows[index]["stage"])))
    # Left, right and middle height of what is there already.
    taken = [(x - 4 * unit, x + 4 * unit, y) for x, y in axes.transData.transform(places + after_gzip).tolist()]
    for x, y, index, text in sorted(labels, key=lambda label: label[1]):
        left, right, height = x + 9 * unit, x + (9 + 5.6 * len(text)) * unit, y
        for other_left, other_right, other_height in sorted(taken, key=lambda each: each[2]):
            if left < other_right and other_left < right and abs(height - other_height) < 12 * unit:
                height = other_height + 12 * unit
        taken.append((left, right, height))
        axes.annotate(
            text,
            places[index],
            xytext=(9, (height - y) / unit),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=_INK,
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
            arrowprops={"arrowstyle": "-", "color": _PALE, "linewidth": 0.6} if height - y > 4 * unit else None,
            zorder=3.5,
        )


def _curve(axes: Axes, start: int, values: Sequence[float], color: str, name: str | None) -> None:
    # An epoch's value stands at the epoch's end; a stage of one epoch is a point.
    epochs = [start + index + 1 for index in range(len(values))]
    marker = "o" if len(values) < 3 else ""
    axes.plot(epochs, list(values), marker=marker, markersize=3.5, color=color, linewidth=1.6, zorder=3, label=name)


def _spans_decades(histories: Mapping[str, Mapping[str, Sequence[float]]]) -> bool:
    values = [v for history in histories.values() for key in ("loss", "val_loss") for v in history.get(key, ())]
    return min(values) > 0 and max(values) / min(values) > 20


def _too_narrow(stages: Sequence[str], ends: Sequence[int]) -> bool:
    """Whether a stage's name is wider than its band."""
    inches = [(end - start) / ends[-1] * 0.88 * _WIDTH for start, end in itertools.pairwise(ends)]
    return any(0.078 * len(stage) > width for stage, width in zip(stages, inches, strict=True))


def _name_bands(axes: Axes, stages: Sequence[str], ends: Sequence[int]) -> None:
    slanted = _too_narrow(stages, ends)
    for stage, (start, end) in zip(stages, itertools.pairwise(ends), strict=True):
        axes.annotate(
            stage,
            ((start + end) / 2, 1.0),
            xycoords=axes.get_xaxis_transform(),
            xytext=(0, 4),
            textcoords="offset points",
            ha="left" if slanted else "center",
            va="bottom",
            rotation=20 if slanted else 0,
            rotation_mode="anchor",
            fontsize=8.5,
            color=_INK,
        )
