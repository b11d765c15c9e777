"""Talking videos with Wan2.1 and MultiTalk / InfiniteTalk, as nodes for ComfyUI."""

from __future__ import annotations

import logging
import os
import sys

from .nodes_audio import NODES as AUDIO_NODES
from .nodes_common import display_name, register_folders
from .nodes_model_loading import NODES as LOADING_NODES
from .nodes_sampler import NODES as SAMPLER_NODES

WEB_DIRECTORY = "./wanvideo/web"
OWN_IDS = "WANVIDEO_OWN_IDS"
PREFIX = "Talk"
__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]


def _is_taken() -> bool:
    """Whether another pack has these ids, and the user has not asked for ours by setting WANVIDEO_OWN_IDS=1."""
    registered = getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {})
    other = registered.get("WanVideoSampler")
    taken = other is not None and not other.__module__.startswith(__name__)
    if taken and os.environ.get(OWN_IDS) != "1":
        logging.getLogger("wanvideo").warning(
            "Another pack (%s) has nodes with the names of these: ours are called %sWanVideoSampler and so on. "
            "Remove that pack, or set %s=1 to put ours in its place.", other.__module__, PREFIX, OWN_IDS,
        )  # fmt: skip
        return True
    return False


register_folders()
_prefix = PREFIX if _is_taken() else ""
_nodes = {_prefix + node.__name__: node for node in (*LOADING_NODES, *AUDIO_NODES, *SAMPLER_NODES)}
NODE_CLASS_MAPPINGS = dict(_nodes)
NODE_DISPLAY_NAME_MAPPINGS = {name: display_name(node) for name, node in _nodes.items()}
