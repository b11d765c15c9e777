"""`presets`: list the presets and every number that they set."""

from __future__ import annotations

from ..presets import load_preset, preset_names
from .parser import Parser


def main(argv: list[str]) -> int:
    """Print all presets, or the named ones."""
    parser = Parser("python -m wanvideo presets", description=__doc__)
    parser.add_argument("names", nargs="*", help="only these")
    for name in parser.parse_args(argv).names or preset_names():
        print(load_preset(name).describe())
    return 0
