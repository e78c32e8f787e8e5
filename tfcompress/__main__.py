"""Makes `python -m tfcompress` the same as the command `tfcompress`."""

from tfcompress.cli import main

if __name__ == "__main__":
    main()
