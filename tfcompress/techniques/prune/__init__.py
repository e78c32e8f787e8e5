"""Weight pruning: weights become zero, by criterion, pattern and budget, at once or while a network trains."""

from tfcompress.techniques.prune.callback import MagnitudePruning, WeightPruning
from tfcompress.techniques.prune.criteria import CRITERIA, Criterion
from tfcompress.techniques.prune.hard_concrete import HardConcretePruning
from tfcompress.techniques.prune.kernels import prunable_kernels
from tfcompress.techniques.prune.one_shot import prune_weights
from tfcompress.techniques.prune.patterns import Pattern
from tfcompress.techniques.prune.penalty import SparsityPenalty
from tfcompress.techniques.prune.ranking import choose_masks
from tfcompress.techniques.prune.sensitivity import SensitivityBudget
from tfcompress.techniques.prune.stage import Prune

__all__ = [
    "CRITERIA",
    "Criterion",
    "HardConcretePruning",
    "MagnitudePruning",
    "Pattern",
    "Prune",
    "SensitivityBudget",
    "SparsityPenalty",
    "WeightPruning",
    "choose_masks",
    "prunable_kernels",
    "prune_weights",
]
