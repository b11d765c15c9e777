"""Drop-in for the reference's script of this name: the app in a browser, `python -m wanvideo app`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # which a Python that is isolated, as portable ones are, lacks

from wanvideo.cli.app import main  # noqa: E402
from wanvideo.cli.main import run  # noqa: E402

if __name__ == "__main__":
    raise SystemExit(run(main, sys.argv[1:]))
