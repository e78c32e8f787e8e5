"""What tfcompress raises: one base class to catch, and one error for each kind of mistake.

Invariant: every message names what was wrong, what is allowed, what came ("Received: ...") or what to do. Left out:
errors of the libraries below us, which pass through untouched unless we know their remedy.
"""

from __future__ import annotations

from collections.abc import Sequence


class TFCompressError(Exception):
    """Base of every error that tfcompress raises on purpose."""


class InvalidArgumentError(TFCompressError, ValueError):
    """An argument is outside what it may be.

    Args:
        name: The argument as its user writes it, such as `Prune.sparsity`.
        expected: What is allowed, as the rest of the sentence "must be ...".
        received: The value that came.
    """

    def __init__(self, name: str, expected: str, received: object):
        super().__init__(f"`{name}` must be {expected}. Received: {received!r}.")
        self.name = name
        self.expected = expected
        self.received = received

    def __reduce__(self):
        return (type(self), (self.name, self.expected, self.received))


class DataError(TFCompressError, ValueError):
    """A data set is missing, empty, or holds what a model cannot learn from."""


class RecipeError(TFCompressError, ValueError):
    """A recipe has an unknown key, a wrong type, or a value out of range; the message names the line or path."""


class ModelError(TFCompressError, ValueError):
    """A model or model file cannot be used for what was asked; the message says why and what would work."""


class TrainingError(TFCompressError, RuntimeError):
    """Training cannot start, cannot go on, or would miss its claim."""


class ExportError(TFCompressError, RuntimeError):
    """A file could not be made, or failed the gate.

    Args:
        message: What failed.
        causes: One line for each cause, with its remedy.
    """

    def __init__(self, message: str, causes: Sequence[str] = ()):
        super().__init__("\n  - ".join([message, *causes]))
        self.causes = tuple(causes)
