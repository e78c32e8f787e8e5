"""The report of a run: `report.md` with its pictures beside it, and `report.html`, which is one file with all in it.

Invariant: both pages say the same, and nothing in a name or a path is taken for markup in the HTML page. Left out:
pictures where a run has nothing to draw, such as training curves of a run that did not train.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfcompress import files
from tfcompress.report import layer_changes, plots, tables
from tfcompress.report.results import Results, is_export, read_results

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_report(run_dir: str | os.PathLike) -> Path:
    """Writes `report.md`, `report.html` and the pictures of a run into its folder.

    Args:
        run_dir: The folder that `tfcompress run` wrote, with `metrics.json` in it.

    Returns:
        The path of `report.md`.

    Raises:
        DataError: If the folder holds no results.
    """
    import jinja2

    run_dir = Path(run_dir)
    results = read_results(run_dir)
    pictures = _pictures(results)
    for picture in pictures:
        files.write_bytes(run_dir / picture["file"], picture["png"])
    context = {
        "title": f"Compression report: {results.recipe}" if results.recipe else "Compression report",
        "summary": tables.summary(results.rows),
        "headings": [heading for heading, *_ in tables.COLUMNS],
        "rows": [{"cells": tables.cells(row), "is_export": is_export(row)} for row in results.rows],
        "markdown_table": tables.markdown_table(results.rows),
        "exports": [_describe_export(mode, export) for mode, export in results.export.items()],
        "pictures": pictures,
        "layer_headings": layer_changes.HEADINGS,
        "layer_rows": {
            stage: [*(change.cells() for change in changes), layer_changes.sums(changes)]
            for stage, changes in layer_changes.compare_stages(results.layers).items()
        },
        "environment": results.environment,
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for name in ("report.html", "report.md"):
        files.write_text(run_dir / name, environment.get_template(name).render(context))
    return run_dir / "report.md"


def _pictures(results: Results) -> list[dict[str, Any]]:
    drawn = (
        (
            "accuracy_against_bytes",
            plots.accuracy_against_bytes(results.rows),
            "Test accuracy against bytes. A stage's file is its float32 TFLite file; gzip shows what zeros are worth.",
        ),
        (
            "training_curves",
            plots.training_curves(results.histories),
            "Loss and accuracy over the epochs of all stages. A stage's loss is that which it trained with.",
        ),
        (
            "layer_sparsity",
            plots.layer_sparsity(results.sparsity),
            "Share of zeros in the kernel of each layer.",
        ),
    )
    return [
        {"file": f"{name}.png", "caption": caption, **_encode(figure)}
        for name, figure, caption in drawn
        if figure is not None
    ]


def _encode(figure: Figure) -> dict[str, Any]:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return {"png": buffer.getvalue(), "base64": base64.b64encode(buffer.getvalue()).decode("ascii")}


def _describe_export(mode: str, export: Mapping[str, Any]) -> dict[str, str]:
    """What an exported file is, and what the gate found, in words."""
    audit, parity = export.get("audit") or {}, export.get("parity") or {}
    sizes = [f"{export[key]:,} B{note}" for key, note in (("file_bytes", ""), ("gzip_bytes", " gzip")) if key in export]
    return {
        "mode": mode,
        "path": str(export.get("path", "")),
        "size": ", ".join(sizes),
        "audit": _verdict(audit, _ops(audit)),
        "parity": _verdict(parity, _agreement(parity)),
    }


def _verdict(check: Mapping[str, Any], details: str) -> str:
    if not check:
        return "not done"
    return f"{'passed' if check.get('passed', True) else 'failed'}{f' ({details})' if details else ''}"


def _ops(audit: Mapping[str, Any]) -> str:
    return ", ".join(f"{count} {name}" for name, count in (audit.get("ops") or {}).items())


def _agreement(parity: Mapping[str, Any]) -> str:
    """The worst of all delegates and outputs."""
    agreements = parity.get("agreements") or []
    parts = [f"{parity['samples']:,} samples"] if parity.get("samples") else []
    for key, words in (
        ("equal", "outputs equal"),
        ("within_1", "within 1 step"),
        ("top1", "same top class"),
    ):
        values = [agreement[key] for agreement in agreements if agreement.get(key) is not None]
        if values:
            parts.append(f"{100 * min(values):.2f}% {words}")
    ratios = [agreement["snr_db"] for agreement in agreements if agreement.get("snr_db") is not None]
    if ratios:
        parts.append(f"{min(ratios):.0f} dB SNR")
    return ", ".join(parts)
