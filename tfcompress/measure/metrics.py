"""One row of results: what a stage of a recipe gave.

Invariant: units are in the names, ratios are in [0, 1], and None means "not measured", never zero. Left out: how each
is measured (see the other modules of this folder).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tfcompress.errors import InvalidArgumentError


@dataclasses.dataclass(frozen=True)
class Metrics:
    """What was measured after a stage.

    Args:
        stage: Name of the stage, such as `02-prune` or `export-int8`.
        accuracy: On the test split, in [0, 1].
        num_params: Values of all weights.
        num_nonzero: Those that are not zero.
        macs: Multiply-adds of one inference, each counted once.
        file_bytes: Bytes of the float32 `.tflite` of a Keras stage, or of the exported file.
        gzip_bytes: The same file after gzip.
        latency_ms_median: Median time of one inference, in milliseconds.
        latency_ms_p90: 90th percentile of that time.
        seconds: How long the stage took.

    Example:
        >>> row = Metrics(stage="teacher", accuracy=0.99, num_params=100)
        >>> Metrics.from_dict(row.to_dict()) == row
        True
    """

    stage: str
    accuracy: float | None = None
    num_params: int | None = None
    num_nonzero: int | None = None
    macs: int | None = None
    file_bytes: int | None = None
    gzip_bytes: int | None = None
    latency_ms_median: float | None = None
    latency_ms_p90: float | None = None
    seconds: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON can hold them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Metrics:
        """The row that `to_dict` gave; further keys, such as `kind` in `metrics.json`, are no part of it.

        Raises:
            InvalidArgumentError: If `stage` is missing.
        """
        if "stage" not in row:
            raise InvalidArgumentError("row", "a mapping with the key 'stage'", dict(row))
        return cls(**{field.name: row[field.name] for field in dataclasses.fields(cls) if field.name in row})
