"""How every stage trains: one `fit` (`fit.py`), its settings, precision, checkpoints and progress."""
