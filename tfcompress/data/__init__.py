"""Data: one `Dataset` of train, validation and test samples, and where it comes from.

Invariant: every source gives samples that have passed the same checks, in a fixed order. Left out: models and training,
which know a `Dataset` only by its public fields.
"""

from tfcompress.data.arrays import from_arrays as from_arrays
from tfcompress.data.augment import Augmentation as Augmentation
from tfcompress.data.dataset import Dataset as Dataset
from tfcompress.data.folder import from_folder as from_folder
from tfcompress.data.load import load_dataset as load_dataset
