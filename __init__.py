"""Talking videos with Wan2.1 and MultiTalk / InfiniteTalk, as nodes for ComfyUI."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from .nodes_all import NODES, REFUSED
from .nodes_base import Node, display_name
from .nodes_common import fill_emptied_inputs, register_folders, show_warnings
from .nodes_prefixed import serve_texts
from .nodes_replace import replace_other_names
from .nodes_samples import place_samples

WEB_DIRECTORY = "./wanvideo/web"
OWN_IDS = "WANVIDEO_OWN_IDS"
PREFIX = "Talk"
OTHER = "wanvideowrapper"
__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
_REGISTERED = getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {})


def _other_pack() -> str | None:
    """The pack that has these ids too, registered already or in the folder beside this one; packs load in any order."""
    registered = _REGISTERED.get("WanVideoSampler")
    if registered is not None and not registered.__module__.startswith(__name__):
        return registered.__module__
    folder = Path(__file__).resolve().parent
    beside = folder.parent.iterdir() if folder.parent.name == "custom_nodes" else ()
    names = (path.name for path in beside if path.is_dir() and path != folder)
    return next((name for name in names if OTHER in name.lower() and not name.endswith(".disabled")), None)


def _prefix(other: str | None) -> str:
    if other is None or os.environ.get(OWN_IDS) == "1":
        return ""
    logging.getLogger("wanvideo").warning(
        "%s has nodes with the names of these: ours are called %sWanVideoSampler and so on. "
        "Remove that pack, or set %s=1 to put ours in its place.", other, PREFIX, OWN_IDS,
    )  # fmt: skip
    return PREFIX


register_folders()
place_samples()
show_warnings()
_other = _other_pack()
_start = _prefix(_other)
_nodes: dict[str, type[Node]] = {_start + node.__name__: node for node in NODES}
_nodes |= {node.__name__: node for node in REFUSED if _other is None and node.__name__ not in _REGISTERED}
NODE_CLASS_MAPPINGS = dict(_nodes)
NODE_DISPLAY_NAME_MAPPINGS = {name: display_name(node) for name, node in _nodes.items()}
serve_texts(_start, (node.__name__ for node in NODES))
replace_other_names({("" if _start else PREFIX) + node.__name__: _start + node.__name__ for node in NODES})
fill_emptied_inputs({name: node.numbers() for name, node in _nodes.items()})
