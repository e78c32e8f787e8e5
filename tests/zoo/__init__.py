"""The zoo: proof over many models that every technique and every export works, or says why it cannot.

`python tests/zoo` runs the matrix of models (`models.py`) and columns (`columns.py`), each model in a process of its
own with a limit on memory and time, and writes the table in docs/coverage.md and docs/coverage.html. Invariant: the
process that runs the matrix and writes the table imports no TensorFlow; only its workers do. Left out: accuracy, since
the models have random weights.
"""
