"""TFMOT itself on Keras 3 models: over the bridge to tf_keras, through its wrappers, and back.

`prune.py`, `cluster.py` and `quantize.py` hold the three functions. What they share is in `arguments.py`,
`selection.py` (which layers), `callbacks.py` and `training.py` (tf_keras's own `fit` by our settings); for the last,
`quantizable.py` knows which layers TFMOT takes, and `ranges.py` carries its ranges. `stages.py` is what a recipe calls.

Invariant: what works on the weights is TFMOT 0.8, called as its guides call it; nothing of it is written again here.
Left out: TFMOT's experimental n-bit schemes, and distribution strategies.
"""
