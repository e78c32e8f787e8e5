"""What a model may cost once channels are gone: counted on the model, or measured on its file.

Invariant: a budget that exists is one budget, in range. Left out: how it is met (`selection.py` where the cost follows
from sizes, `measured.py` where it is measured), and what measures a file, which is given from above.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable

import keras

from tfcompress.errors import InvalidArgumentError
from tfcompress.graph.channels import ChannelGraph
from tfcompress.graph.macs import count_macs
from tfcompress.measure.size import num_params
from tfcompress.techniques.channels.cost import Cost, macs_cost, params_cost

# Kilobytes or milliseconds of a model's file.
Measure = Callable[[keras.Model], float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChannelBudget:
    """The most that a model may cost: one of the four. A value below 1 is always a share.

    Args:
        macs: Multiply-adds for one sample: a share of the model's, in (0, 1), or a number.
        params: Values of all weights, likewise.
        tflite_kb: Size of the `.tflite` file: a share of the file of the model, or kilobytes (1 kB = 1000 B).
        latency_ms: Time of one inference of that file: a share of that of the model, or milliseconds.
    """

    macs: float | int | None = None
    params: float | int | None = None
    tflite_kb: float | int | None = None
    latency_ms: float | int | None = None

    def __post_init__(self):
        given = {key: value for key, value in dataclasses.asdict(self).items() if value is not None}
        if len(given) != 1:
            raise InvalidArgumentError("budget", "one of `macs`, `params`, `tflite_kb` and `latency_ms`", given)
        is_number = isinstance(self.value, numbers.Real) and not isinstance(self.value, bool)
        in_range = is_number and 0 < self.value < math.inf
        if not in_range or (not self.is_measured and 1 <= self.value != int(self.value)):
            units = {"tflite_kb": "kilobytes, at least 1", "latency_ms": "milliseconds, at least 1"}
            expected = f"a share in (0, 1), or {units.get(self.name, 'a whole number')}"
            raise InvalidArgumentError(self.name, expected, self.value)

    @property
    def name(self) -> str:
        """Which of the four it is."""
        return next(key for key, value in dataclasses.asdict(self).items() if value is not None)

    @property
    def value(self) -> float:
        """The share or number that was given."""
        return getattr(self, self.name)

    @property
    def is_measured(self) -> bool:
        """Whether it is measured on a file, and not counted on the model."""
        return self.name in ("tflite_kb", "latency_ms")

    def limit(self, whole: float) -> float:
        """The most that it may be, of a model that itself has or takes `whole`."""
        # NumPy's small floats would round the product.
        return float(self.value) * whole if self.value < 1 else float(self.value)

    def count(self, model: keras.Model) -> int:
        """What a model has of it; for counted budgets."""
        return count_macs(model) if self.name == "macs" else num_params(model)

    def cost_and_limit(self, model: keras.Model, graph: ChannelGraph) -> tuple[Cost, float]:
        """What is to be paid for a model without some units, and the most that it may be; for counted budgets."""
        cost = macs_cost(model, graph) if self.name == "macs" else params_cost(model, graph)
        return cost, self.limit(self.count(model))

    def predictor(self, model: keras.Model, graph: ChannelGraph) -> Cost:
        """What a measured budget goes along with: bytes with parameters, time with multiply-adds."""
        return params_cost(model, graph) if self.name == "tflite_kb" else macs_cost(model, graph)

    def check_measure(self, measure: Measure | None) -> None:
        """Raises an `InvalidArgumentError` if what measures the file is missing, or has nothing to measure."""
        if self.is_measured and not callable(measure):
            raise InvalidArgumentError("measure", f"a function that gives the {self.name} of a model", measure)
        if not self.is_measured and measure is not None:
            raise InvalidArgumentError("measure", f"left out with `{self.name}`, which is counted", measure)
