"""The table of the zoo, as Markdown and as one HTML page that needs nothing else.

Invariant: both say the same of every cell: its status, its seconds, and its reason if it isn't a pass; a result of
other code than the present one is marked. Left out: running anything.
"""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tfcompress import files
from zoo.store import STATUSES, Result, Store, cell_key

SYMBOLS = {"pass": "✓", "stated": "○", "FAIL": "✗", "skipped": "·"}
GROUPS = {
    "applications": "keras.applications, the smallest member of each family",
    "large": "keras.applications, larger members",
    "ours": "Small models of other kinds",
    "tf_keras": "tf_keras.applications, over the bridge",
    "hub": "keras-hub",
}
_TEMPLATE = Path(__file__).with_name("coverage.html")


@dataclasses.dataclass(frozen=True)
class Page:
    """What the table shows.

    Args:
        columns: Names of the columns.
        groups: For each group of models its heading, and its rows: the model's name and its cells, None where nothing
            was run.
        reasons: Each reason once, with the cells it is of.
        stale: Cells whose result is of other code, as (model, column).
        environment: Versions and machine.
        command: What was typed.
        code: Key of the present code.
        day: When the table was made.
    """

    columns: tuple[str, ...]
    groups: tuple[tuple[str, tuple[tuple[str, tuple[Result | None, ...]], ...]], ...]
    reasons: dict[str, list[Result]]
    stale: frozenset[tuple[str, str]]
    environment: dict[str, Any]
    command: str
    code: str
    day: str

    @property
    def results(self) -> list[Result | None]:
        """All cells."""
        return [result for _, rows in self.groups for _, cells in rows for result in cells]

    def number(self, result: Result) -> int:
        """The number of a result's reason in the list."""
        return 1 + list(self.reasons).index(result.text)

    def is_stale(self, result: Result) -> bool:
        return (result.model, result.column) in self.stale


def make(store: Store, entries: Mapping[str, Any], columns: Mapping[str, Any], *, code: str, command: str) -> Page:
    """Collects the table of `entries` and `columns` from the stored results."""
    groups: dict[str, list[tuple[str, tuple[Result | None, ...]]]] = {}
    reasons: dict[str, list[Result]] = {}
    stale = set()
    for model, entry in entries.items():
        cells = tuple(store.load(model, column) for column in columns)
        groups.setdefault(GROUPS.get(entry.group, entry.group), []).append((model, cells))
        for result in cells:
            if result is not None and result.status != "pass":
                reasons.setdefault(result.text, []).append(result)
            current = result is None or result.key == cell_key(code, entry, columns[result.column])
            if not current and result.status != "skipped":
                stale.add((model, result.column))
    return Page(
        columns=tuple(columns),
        groups=tuple((heading, tuple(rows)) for heading, rows in groups.items()),
        reasons=reasons,
        stale=frozenset(stale),
        environment=store.load_environment(),
        command=command,
        code=code,
        day=datetime.date.today().isoformat(),
    )


def write(page: Page, folder: Path) -> None:
    """Writes `coverage.md` and `coverage.html` into `folder`."""
    files.write_text(folder / "coverage.md", markdown(page))
    files.write_text(folder / "coverage.html", html(page))


def markdown(page: Page) -> str:
    """The table as Markdown: symbols and seconds, and the reasons as a numbered list below."""
    lines = [
        "# Coverage",
        "",
        "What each technique and each export does with each model, and why where it does not. Written by",
        "",
        "```",
        page.command,
        "```",
        "",
        f"{summary(page.results)} A cell shows its seconds; ✓ passed, ○ cannot, for the stated reason with that number "
        "below, ✗ failed, · was skipped, and an empty one has not been run.",
        "",
    ]
    for heading, rows in page.groups:
        lines += [f"## {heading}", "", _row(["model", *page.columns]), _row(["---"] * (1 + len(page.columns)))]
        lines += [_row([model, *(_markdown_cell(page, result) for result in cells)]) for model, cells in rows]
        lines += [""]
    lines += ["## Totals", "", _row(["", *page.columns]), _row(["---"] * (1 + len(page.columns)))]
    lines += [_row([name, *map(str, counts)]) for name, counts in totals(page)]
    if page.reasons:
        lines += ["", "## Reasons", ""]
        lines += [
            f"{number}. {SYMBOLS[found[0].status]} {_escaped(text)} ({_where(found)})"
            for number, (text, found) in enumerate(page.reasons.items(), 1)
        ]
    lines += ["", "## Environment", ""]
    lines += [f"- {name}: {value}" for name, value in page.environment.items()]
    lines += [f"- code: {page.code}, {page.day}"]
    if page.stale:
        lines += [f"- {len(page.stale)} cells, marked \\*, are of an earlier version of the code"]
    return "\n".join(lines) + "\n"


def html(page: Page) -> str:
    """The table as one HTML page; figures and reasons open under their cells."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        page=page,
        symbols=SYMBOLS,
        seconds=_seconds,
        summary=summary(page.results),
        totals=totals(page),
    )


def totals(page: Page) -> list[tuple[str, list[str]]]:
    """For each status its number in every column; then what the column took."""
    columns = [[row[1][index] for _, rows in page.groups for row in rows] for index in range(len(page.columns))]
    counted = [
        (status, [str(sum(result is not None and result.status == status for result in cells)) for cells in columns])
        for status in STATUSES
    ]
    counted.append(("not run", [str(sum(result is None for result in cells)) for cells in columns]))
    counted.append(("time", [duration(sum(r.seconds for r in cells if r is not None)) for cells in columns]))
    return counted


def summary(results: Iterable[Result | None]) -> str:
    """One line: how many cells passed, could not, failed, were skipped, and what they took."""
    results = list(results)
    known = [result for result in results if result is not None]
    counts = ", ".join(f"{sum(r.status == status for r in known)} {status}" for status in STATUSES)
    peak = max((result.peak_gb for result in known), default=0.0)
    took = duration(sum(result.seconds for result in known))
    return f"{len(results)} cells: {counts}, {len(results) - len(known)} not run; {took}, at most {peak:.1f} GB."


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _markdown_cell(page: Page, result: Result | None) -> str:
    if result is None:
        return ""
    number = "" if result.status == "pass" else f" [{page.number(result)}]"
    stale = "\\*" if page.is_stale(result) else ""
    return f"{SYMBOLS[result.status]}{number}{_seconds(result)}{stale}"


def _seconds(result: Result) -> str:
    return "" if result.status == "skipped" else f" {max(result.seconds, 0.1):.{0 if result.seconds >= 10 else 1}f} s"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _where(found: list[Result]) -> str:
    return ", ".join(f"{result.model} {result.column}".replace("_", "\\_") for result in found)


def _escaped(text: str) -> str:
    """Text as Markdown shows it unchanged; what is in backticks is left alone."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") and len(p) > 1 else re.sub(r"([\\*_<\[\]|#`])", r"\\\1", p) for p in parts)
