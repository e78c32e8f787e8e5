"""What a recipe says of its data reaches the data."""

import pytest

from tfcompress.errors import InvalidArgumentError
from tfcompress.pipeline.inputs import load_data
from tfcompress.recipe import AugmentSpec, DataSpec


def test_keys_reach_the_data():
    spec = DataSpec(
        name="digits", input_range=(-1.0, 1.0), augment=AugmentSpec(shift=1), validation_fraction=0.2, limit_train=50
    )
    data = load_data(spec)
    assert data.sizes["train"] == 50
    assert data.sizes["validation"] == pytest.approx(0.2 * (1797 - 359), abs=5)  # rounded for each of ten classes
    assert data.input_range == (-1.0, 1.0) and data.augmentation.shift == 1


def test_a_size_that_the_data_cannot_have_is_an_error():
    with pytest.raises(InvalidArgumentError, match="`image_size` must be None for 'digits'"):
        load_data(DataSpec(name="digits", image_size=(16, 16)))
