"""The pack imported as ComfyUI imports it, under a name that is not its folder's, but without ComfyUI."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
NAME = "pack_under_test"


@cache
def load_pack() -> ModuleType:
    spec = importlib.util.spec_from_file_location(NAME, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
    return module


def node(name: str):
    """A new instance of a node."""
    return load_pack().NODE_CLASS_MAPPINGS[name]()
