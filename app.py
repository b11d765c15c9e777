"""Drop-in for the reference's script of this name: the app in a browser, `python -m wanvideo app`."""

import sys

from wanvideo.cli.app import main
from wanvideo.cli.main import run

if __name__ == "__main__":
    raise SystemExit(run(main, sys.argv[1:]))
