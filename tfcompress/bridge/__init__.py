"""The bridge: Keras 3 models to tf_keras ones and back, with proof that they compute the same.

Invariant: importing this package imports neither Keras; its functions do. Left out: what is done on the other side
(`techniques/tfmot`).
"""
