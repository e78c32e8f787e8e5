"""The command line of the zoo: which cells to run, what is already known, progress, and the table at the end.

Invariant: a cell whose result is current and no failure is not run again, unless `--fresh` asks for it. Left out: how
a cell runs (`run.py`), and how the table looks (`table.py`).
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import progress

from zoo import memory, models, table
from zoo.columns import COLUMNS
from zoo.run import Limits, run_matrix
from zoo.store import Result, Store, cell_key, code_key

ROOT = Path(__file__).resolve().parents[2]
# The results behind the table in docs/, which a new machine has, too.
_DOCUMENTED = ROOT / "docs" / "coverage.json"
# Until a cell of its column has run.
_GUESS_SECONDS = 20.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the zoo; returns 1 if any cell of those asked for is a failure, else 0."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(arguments)
    entries = choose_models(options.models, [group for group in models.OPTIONAL_GROUPS if getattr(options, group)])
    columns = _matching(COLUMNS, options.columns, "column")
    memory.require_proc()
    store, code = Store(options.out), code_key()
    if options.docs:
        store.fill(_DOCUMENTED)
    keys = {(m, c): cell_key(code, entry, column) for m, entry in entries.items() for c, column in columns.items()}
    if not options.table_only:
        cells = plan(store, entries, columns, {} if options.keep else keys, fresh=options.fresh)
        _run(cells, store, keys, options)
    command = shlex.join(["python", "tests/zoo", *arguments])
    folders = [options.out, *([_DOCUMENTED.parent] if options.docs else [])]
    page = table.make(store, _rows(store), COLUMNS, code=code, command=command)
    for folder in folders:
        table.write(page, folder)
        print(f"Wrote {folder / 'coverage.md'} and coverage.html")
    if options.docs:
        store.save_all(_DOCUMENTED)
    results = [store.load(model, column) for model, column in keys]
    print(table.summary(results))
    return int(any(result is not None and result.status == "FAIL" for result in results))


def choose_models(patterns: Sequence[str], optional_groups: Sequence[str]) -> dict[str, models.Entry]:
    """The entries of the default groups and of `optional_groups` whose names match a pattern; all without patterns."""
    groups = (*models.DEFAULT_GROUPS, *optional_groups)
    chosen = {name: entry for name, entry in models.MODELS.items() if entry.group in groups}
    return _matching(chosen, patterns, "model")


def plan(
    store: Store,
    entries: Mapping[str, Any],
    columns: Mapping[str, Any],
    keys: Mapping[tuple[str, str], str],
    *,
    fresh: bool = False,
) -> dict[str, list[str]]:
    """The cells to run, by model: those without a result, with a failure, or with a result of other code.

    Args:
        store: The results so far. A model whose package is missing gets its cells `skipped` here.
        entries: The models.
        columns: The columns.
        keys: Key that each cell's result must have; a cell that is not in it may have any.
        fresh: Whether to run all cells in any case.
    """
    cells: dict[str, list[str]] = {}
    for model, entry in entries.items():
        missing = entry.missing() if hasattr(entry, "missing") else None
        for column in columns:
            if missing is not None:
                store.save(Result(model, column, "skipped", missing))
                continue
            result = store.load(model, column)
            key = keys.get((model, column))
            done = result is not None and result.status in ("pass", "stated") and key in (None, result.key)
            if fresh or not done:
                cells.setdefault(model, []).append(column)
    return cells


class Estimate:
    """The seconds that are left, from earlier results and from the cells of the same column so far.

    Args:
        store: Earlier results.
        cells: The cells to run.
        jobs: Models at a time.
    """

    def __init__(self, store: Store, cells: Mapping[str, Sequence[str]], jobs: int):
        pairs = [(model, column) for model, columns in cells.items() for column in columns]
        earlier = {pair: store.load(*pair) for pair in pairs}
        self._left = {pair: None if result is None else result.seconds for pair, result in earlier.items()}
        self._seen: dict[str, list[float]] = {}
        self._jobs = jobs

    def note(self, result: Result) -> None:
        self._left.pop((result.model, result.column), None)
        self._seen.setdefault(result.column, []).append(result.seconds)

    @property
    def seconds(self) -> float:
        def expected(column: str, known: float | None) -> float:
            if known is not None:
                return known
            seen = self._seen.get(column)
            return statistics.mean(seen) if seen else _GUESS_SECONDS

        total = sum(expected(column, known) for (_, column), known in self._left.items())
        # Models run one after the other in each job; at the end only one may be left.
        return total / min(self._jobs, max(1, len({model for model, _ in self._left})))


def _run(cells: dict[str, list[str]], store: Store, keys: Mapping[tuple[str, str], str], options: Any) -> None:
    total = sum(map(len, cells.values()))
    print(f"{total} of {len(keys)} cells to run")
    if not total:
        return
    estimate = Estimate(store, cells, options.jobs)
    bar = progress.Progress(
        progress.BarColumn(bar_width=24),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("about {task.fields[left]} left"),
    )
    task = bar.add_task("", total=total, left=table.duration(estimate.seconds))

    def on_result(result: Result) -> None:
        store.save(dataclasses.replace(result, key=keys[result.model, result.column]))
        estimate.note(result)
        figures = f"{result.seconds:5.0f} s {result.peak_gb:4.1f} GB"
        line = f"{result.model:18} {result.column:16} {result.status:6} {figures}  {result.text[:160]}"
        bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        bar.update(task, advance=1, left=table.duration(estimate.seconds))

    with bar:
        run_matrix(
            cells,
            on_result,
            limits=Limits(options.memory_gb, options.timeout),
            jobs=options.jobs,
            on_environment=store.save_environment,
        )


def _rows(store: Store) -> dict[str, models.Entry]:
    """The models of the table: those that run by default, and those of other groups that have a result."""
    return {
        name: entry
        for name, entry in models.MODELS.items()
        if entry.group in models.DEFAULT_GROUPS or any(store.load(name, column) for column in COLUMNS)
    }


def _matching(table_: Mapping[str, Any], patterns: Sequence[str], kind: str) -> dict[str, Any]:
    for pattern in patterns:
        if not fnmatch.filter(table_, pattern):
            sys.exit(f"No {kind} matches {pattern!r}. There are: {', '.join(table_)}.")
    return {
        name: value
        for name, value in table_.items()
        if not patterns or any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python tests/zoo", description="Runs every check on every model.")
    add = parser.add_argument
    add("--models", nargs="+", default=[], metavar="PATTERN", help="only models with such names, such as 'ResNet*'")
    add("--columns", nargs="+", default=[], metavar="PATTERN", help="only such columns, such as 'export_*'")
    add("--large", action="store_true", help="also all larger members of the families")
    add("--hub", action="store_true", help="also models of keras-hub, if it is installed")
    add("--jobs", type=int, default=1, help="models at a time (%(default)s)")
    add("--memory-gb", type=float, default=Limits.memory_gb, help="limit of one worker in GB (%(default)s)")
    add("--timeout", type=float, default=Limits.timeout, help="limit of one cell in seconds (%(default)s)")
    add("--fresh", action="store_true", help="run cells that have a current result, too")
    add("--keep", action="store_true", help="results of other versions of the code count as current")
    add("--out", type=Path, default=ROOT / "runs" / "zoo", help="where results are kept (%(default)s)")
    add("--docs", action="store_true", help="also write the table to docs/, and keep what it has")
    add("--table-only", action="store_true", help="run nothing, only write the table")
    return parser
