"""One table, a row for each stage, for the terminal and for Markdown.

Invariant: both have the same columns and the same text in each cell; what was not measured is a dash. Left out:
comparison of several runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tfcompress.report.results import Results, Row, is_export, read_results

if TYPE_CHECKING:
    import rich.table

DASH = "-"


def _percent(value: float) -> str:
    return f"{100 * value:.2f}%"


def _count(value: int) -> str:
    return f"{value:,}"


def _milliseconds(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _seconds(value: float) -> str:
    return f"{value:.1f}"


def _short_count(value: int) -> str:
    for unit, factor in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if value >= 10 * factor or (value >= factor and unit != "k"):
            return f"{value / factor:.3g}{unit}" if value < 999.5 * factor else f"{value / factor:,.0f}{unit}"
    return f"{value:,}"


# Heading, key of the row, and how its value is written.
COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("stage", "stage", str),
    ("accuracy", "accuracy", _percent),
    ("params", "num_params", _count),
    ("non-zeros", "num_nonzero", _count),
    ("MACs", "macs", _short_count),
    ("bytes", "file_bytes", _count),
    ("gzip bytes", "gzip_bytes", _count),
    ("median ms", "latency_ms_median", _milliseconds),
    ("seconds", "seconds", _seconds),
)


def cells(row: Row) -> list[str]:
    """The text of each column.

    Example:
        >>> cells({"stage": "teacher", "accuracy": 0.98765, "num_params": 431080})
        ['teacher', '98.77%', '431,080', '-', '-', '-', '-', '-', '-']
    """
    return [DASH if row.get(key) is None else write(row[key]) for _, key, write in COLUMNS]


def stage_table(rows: Sequence[Row], *, title: str | None = None) -> rich.table.Table:
    """The table for a terminal; exported files stand out, below a line.

    Args:
        rows: Mappings with the keys of `tfcompress.measure.Metrics`.
        title: Stands above the table.
    """
    import rich.box
    import rich.table
    import rich.text

    table = rich.table.Table(
        title=title,
        box=rich.box.SIMPLE_HEAD,
        title_justify="left",
        collapse_padding=True,
        pad_edge=False,
        show_edge=False,
    )
    for heading, key, _ in COLUMNS:
        # Two words above each other keep the table within 80 columns.
        justify: Literal["left", "right"] = "left" if key == "stage" else "right"
        table.add_column(
            heading.replace(" ", "\n").replace("-", "-\n"), justify=justify, vertical="bottom", no_wrap=True
        )
    for index, row in enumerate(rows):
        if index and is_export(row) and not is_export(rows[index - 1]):
            table.add_section()
        # Text, not markup: a name may hold square brackets.
        texts = [rich.text.Text(cell) for cell in cells(row)]
        table.add_row(*texts, style="bold green" if is_export(row) else None)
    return table


def markdown_table(rows: Sequence[Row]) -> str:
    """The table in Markdown.

    Example:
        >>> print(markdown_table([{"stage": "teacher", "accuracy": 0.5}]).splitlines()[2])
        | teacher | 50.00% | - | - | - | - | - | - | - |
    """
    lines = [[heading for heading, *_ in COLUMNS], ["---", *["---:"] * (len(COLUMNS) - 1)]]
    lines += [[cell.replace("|", "\\|") for cell in cells(row)] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def summary(rows: Sequence[Row]) -> str:
    """The last row against the first, in a sentence; empty where one of them has no size or accuracy.

    Example:
        >>> summary([{"stage": "big", "accuracy": 0.99, "file_bytes": 2000},
        ...          {"stage": "small", "accuracy": 0.985, "file_bytes": 100}])
        'small is 20.0 times smaller than big (100 B instead of 2,000 B); its accuracy is 98.50% (-0.50 points).'
    """
    first, last = rows[0], rows[-1]
    if len(rows) < 2 or any(row.get(key) is None for row in (first, last) for key in ("accuracy", "file_bytes")):
        return ""
    small, large = sorted((last["file_bytes"], first["file_bytes"]))
    change = "smaller" if small == last["file_bytes"] else "larger"
    points = 100 * (last["accuracy"] - first["accuracy"])
    return (
        f"{last['stage']} is {large / max(1, small):.1f} times {change} than {first['stage']} "
        f"({_count(last['file_bytes'])} B instead of {_count(first['file_bytes'])} B); "
        f"its accuracy is {_percent(last['accuracy'])} ({points:+.2f} points)."
    )


def print_table(run_dir: str | os.PathLike) -> None:
    """Prints the table of a run, what came of it in a sentence, and where its files are.

    Args:
        run_dir: The folder that `tfcompress run` wrote.

    Raises:
        DataError: If the folder holds no results.
    """
    import rich.console
    import rich.measure

    results = read_results(run_dir)
    table = stage_table(results.rows, title=results.recipe or None)
    console = rich.console.Console()
    # Where the table is too wide, broken lines are better than numbers that are cut off.
    unlimited = console.options.update(max_width=1000)
    console.width = max(console.width, rich.measure.Measurement.get(console, unlimited, table).maximum)
    console.print(table)
    console.print()
    lines = [f"{label:<12} {path}" for label, path in _files(Path(run_dir), results).items()]
    for line in filter(None, [summary(results.rows), *lines]):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _files(run_dir: Path, results: Results) -> Mapping[str, Path]:
    exported = {mode: run_dir / export["path"] for mode, export in results.export.items() if "path" in export}
    return {**exported, **{name: run_dir / name for name in ("report.md", "report.html") if (run_dir / name).exists()}}
