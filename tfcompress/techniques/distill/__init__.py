"""Distillation: training a small network on what a large one says.

`Distiller` (`distiller.py`) trains; `losses.py` says how far a student is from its teacher, `teacher.py` what can
teach, and `stage.py` is the recipe's `distill`.
"""

from tfcompress.techniques.distill.distiller import Distiller
from tfcompress.techniques.distill.losses import LOSSES, LogitMatching, SoftCrossEntropy, SoftTargets
from tfcompress.techniques.distill.stage import Distill
from tfcompress.techniques.distill.teacher import Teacher

__all__ = ["LOSSES", "Distill", "Distiller", "LogitMatching", "SoftCrossEntropy", "SoftTargets", "Teacher"]
