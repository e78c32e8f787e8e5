"""Every test starts from the same seed, on two logical CPU devices, and finds `helpers`."""

import gc
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent))

import pytest


def pytest_configure(config):
    if not hasattr(config, "workerinput") and config.getoption("numprocesses", None):
        return  # Two other processes run the tests.
    import tensorflow as tf

    # Tracing makes objects by the million, nearly all of which live on: looking for garbage among them took a fifth of
    # all time. What is left of a module is collected after it, by `clear_session`.
    gc.set_threshold(100_000, 20, 20)
    # Devices can be split only before TensorFlow first uses them.
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


@pytest.fixture(autouse=True)
def seed():
    import keras

    keras.utils.set_random_seed(0)


@pytest.fixture(autouse=True, scope="module")
def fresh_keras():
    # After each test it would cost seconds, and hardly any name is used twice in a module.
    import keras

    yield
    keras.utils.clear_session()
