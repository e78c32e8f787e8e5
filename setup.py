"""Packaging: what `pip install` needs to know. The tools' settings are in pyproject.toml."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "tfcompress" / "__init__.py").read_text(), re.MULTILINE)[1]

INSTALL_REQUIRES = [
    "absl-py>=1.2",
    "ai-edge-litert>=2.1,<3",
    # TFDS asks for any etils; releases from 1.14 on need Python 3.11, and pip does not find its way back by itself.
    'etils<1.14; python_version < "3.11"',
    "importlib_resources>=5",  # TFDS imports it without declaring it
    "jinja2>=3.1",
    "keras>=3.12,<4",
    "matplotlib>=3.8",
    "numpy>=1.26",
    "PyYAML>=6",
    "rich>=13",
    "tensorflow>=2.21,<2.22",
    "tensorflow-datasets>=4.9.9,<5",
    "tensorflow-model-optimization>=0.8,<0.9",
    "tf_keras>=2.21,<2.22",  # TFMOT runs on it, and it must be TensorFlow's own version
]

# What runs a notebook and checks it; a user's own Jupyter is the extra `notebooks`.
NOTEBOOK_RUNNER = ["ipykernel>=6", "nbclient>=0.8", "nbformat>=5"]

EXTRAS_REQUIRE = {
    "gpu": ["tensorflow[and-cuda]>=2.21,<2.22"],
    "notebooks": ["jupyter>=1", *NOTEBOOK_RUNNER],
    "search": ["optuna>=4,<5"],
    "test": [
        "mypy>=1.10",
        "pytest>=8",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.6",
        "ruff>=0.9",
        "types-PyYAML>=6",
        *NOTEBOOK_RUNNER,
    ],
}

setup(
    name="tfcompress",
    version=VERSION,
    description="Any Keras model to a smaller, faster one that runs on a phone or a microcontroller",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["tfcompress", "tfcompress.*"]),
    package_data={
        "tfcompress": ["py.typed"],
        "tfcompress.data": ["*.npz", "*.md"],
        "tfcompress.report": ["*.html", "*.md", "*.j2", "templates/*"],
    },
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    entry_points={"console_scripts": ["tfcompress = tfcompress.cli:main"]},
    classifiers=[
        "Intended Audience :: Developers",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
