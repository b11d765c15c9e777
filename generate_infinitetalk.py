"""Drop-in for the reference's script of this name: the same flags, read by `python -m wanvideo generate`."""

import sys

from wanvideo.cli.generate import main
from wanvideo.cli.main import run

if __name__ == "__main__":
    raise SystemExit(run(main, sys.argv[1:]))
