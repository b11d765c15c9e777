"""`doctor`: what this machine has, what works on it, and which model files are there; for a report, without paths."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from .. import checks
from .parser import Parser


def build_parser() -> Parser:
    parser = Parser("python -m wanvideo doctor", description=__doc__)
    parser.add_argument("--dir", default="weights", help="folder of model files, e.g. weights or ComfyUI/models")
    parser.add_argument("--preset", help="say which files this preset lacks")
    parser.add_argument("--verify", action="store_true", help="read published files and compare their SHA-256")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    return parser


def main(argv: list[str]) -> int:
    """Print what was found; it is no error that something is missing."""
    flags = build_parser().parse_args(argv)

    from .examine import describe, examine  # here: flags are judged before PyTorch is loaded

    root = Path(checks.path("--dir", flags.dir)).expanduser()
    report = examine(root, flags.preset, flags.verify)
    print(json.dumps(asdict(report), indent=1) if flags.json else describe(report))
    return 0
