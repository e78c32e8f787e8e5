"""Runs a recipe: `run` (`run.py`) and `compress`; stage folders are in `stage_store.py`, measurements in `rows.py`."""

from tfcompress.pipeline.run import RunResult, compress, run

__all__ = ["RunResult", "compress", "run"]
