"""Graphs saved where our nodes had their other names: with the prefix beside WanVideoWrapper, without it alone.

A queued graph is taken as it is, and the page offers to replace what an opened one has (ComfyUI's node replacement).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

from .nodes_common import offer_replacements, prompt_server

logger = logging.getLogger("wanvideo")


def replace_other_names(names: Mapping[str, str]) -> None:
    """Let our nodes stand for nodes that nobody has. Args: names: the other name of each node -> its name here."""
    server = prompt_server()
    if server is None:
        return

    def rename(request: dict[str, Any]) -> dict[str, Any]:
        graph, registered = request.get("prompt"), getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {})
        for item in graph.values() if isinstance(graph, dict) else ():
            kind = item.get("class_type") if isinstance(item, dict) else None
            if isinstance(kind, str) and kind in names and kind not in registered:
                logger.info("%s is called %s here.", kind, names[kind])
                item["class_type"] = names[kind]
        return request

    server.add_on_prompt_handler(rename)
    offer_replacements(names)
