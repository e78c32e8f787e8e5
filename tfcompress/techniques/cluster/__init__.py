"""Weight sharing: kernels of few values, chosen by k-means and trained.

Invariant: each kernel holds at most as many values as asked for, in the Keras model and in its integer file. Left out:
keeping them few in later trainings (`shared_values.py`).
"""

from tfcompress.techniques.cluster.callback import WeightClustering as WeightClustering
from tfcompress.techniques.cluster.one_shot import cluster as cluster
from tfcompress.techniques.cluster.table import cluster_table as cluster_table
