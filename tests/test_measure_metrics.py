import dataclasses
import json

import pytest
import tensorflow as tf

from tfcompress.errors import InvalidArgumentError
from tfcompress.measure import Metrics, describe_environment


def test_round_trip_through_json():
    row = Metrics("02-prune", 0.5, 100, 20, 300, 4000, 500, 0.25, 0.5, 12.5)
    assert Metrics.from_dict(json.loads(json.dumps(row.to_dict()))) == row
    assert list(row.to_dict()) == [field.name for field in dataclasses.fields(Metrics)]


def test_further_keys_are_left_out_and_missing_ones_are_not_measured():
    row = Metrics.from_dict({"stage": "teacher", "kind": "keras", "macs": 3})
    assert row == Metrics(stage="teacher", macs=3)
    assert row.accuracy is None


def test_stage_is_needed():
    with pytest.raises(InvalidArgumentError, match="`row` must be a mapping with the key 'stage'"):
        Metrics.from_dict({"accuracy": 0.5})


def test_environment():
    found = describe_environment()
    assert found["tensorflow"] == tf.__version__
    assert found["threads"] >= 1
    assert found["cpu"]
    assert json.loads(json.dumps(found)) == found
