"""Entry point of `python tests/zoo`."""

import sys
from pathlib import Path

# The folder itself would put `table` and `models` among the modules of every library; the package is `zoo`.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from zoo.command import main

if __name__ == "__main__":
    sys.exit(main())
