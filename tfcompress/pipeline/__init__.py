"""Runs a recipe: `run` and `compress` (`execute.py`); stage folders are in `stage_store.py`, measurements in
`rows.py`."""

from tfcompress.pipeline.execute import RunResult, compress, run

__all__ = ["RunResult", "compress", "run"]
