"""What is converted in the place of a model: simplified, with recurrent layers in a form that the converter takes.

Invariant: it computes what the model computes, which the gate holds the file against; what was done is said in words.
Left out: models with fake quantization, which are converted as they are.
"""

from __future__ import annotations

import dataclasses

import keras

from tfcompress.errors import ModelError
from tfcompress.export.recurrent import Prepared, prepare_recurrent
from tfcompress.graph.simplify import simplify_with_certificate


def prepare(model: keras.Model, mode: str, *, simplify: bool) -> Prepared:
    """A model of the same function for the converter.

    Args:
        model: A functional or Sequential model without fake quantization.
        mode: A key of `MODES`.
        simplify: Whether to simplify it first. One that cannot be is converted as it is, and `notes` say why.

    Raises:
        ModelError: If it has recurrent layers that cannot be converted.
    """
    notes: tuple[str, ...] = ()
    if simplify:
        model, notes = _simplified(model)
    prepared = prepare_recurrent(model, mode)
    return dataclasses.replace(prepared, notes=(*notes, *prepared.notes))


def _simplified(model: keras.Model) -> tuple[keras.Model, tuple[str, ...]]:
    try:
        simplified, certificate = simplify_with_certificate(model)
    except ModelError as error:
        return model, (f"the model was converted without simplification: {error}",)
    if not certificate.steps:
        return model, ()
    before, after = certificate.num_params
    layers = len({step.layer for step in certificate.steps})
    return simplified, (f"{layers} layers were simplified first: {before:,} parameters became {after:,}",)
