"""`python -m wanvideo`; or `python PATH/wanvideo`, as for a portable Python, which looks for modules at home only."""

import sys
from importlib import import_module
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # in place of this folder, whose files are no modules of all

raise SystemExit(import_module("wanvideo.cli.main").main())
