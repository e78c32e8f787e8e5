"""The examples in the docstrings run as they are written."""

import doctest
import importlib
import pkgutil

import pytest

import tfcompress

# A worker process speaks a protocol on its standard input; importing it as a module is not how it is used.
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(tfcompress.__path__, "tfcompress.")
    if not module.name.endswith(("__main__", ".worker"))
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    examples = [
        example for name in MODULES for test in finder.find(importlib.import_module(name)) for example in test.examples
    ]
    assert len(examples) > 60
