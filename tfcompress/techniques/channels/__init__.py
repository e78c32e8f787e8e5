"""Channel pruning: a smaller plain Keras model, by removing whole channels."""

from tfcompress.techniques.channels.importance import CRITERIA, Evidence
from tfcompress.techniques.channels.prune_channels import prune_channels
from tfcompress.techniques.channels.remove_blocks import remove_blocks
from tfcompress.techniques.channels.sparsity import ChannelSparsity
from tfcompress.techniques.channels.stage import PruneChannels
from tfcompress.techniques.channels.statistics import reestimate_batch_norm

__all__ = [
    "CRITERIA",
    "ChannelSparsity",
    "Evidence",
    "PruneChannels",
    "prune_channels",
    "reestimate_batch_norm",
    "remove_blocks",
]
