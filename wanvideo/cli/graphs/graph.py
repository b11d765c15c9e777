"""Graphs of ComfyUI, as its page saves them or as they are queued: nodes with named inputs in either form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...job import read_object
from .subgraphs import expanded
from .widgets import WIDGETS

CUSTOM = "custom"  # size of a node whose width and height count
MOST_HOPS = 100
MUTED = 2  # mode of a node
SIZED = ("GetImageSizeAndCount", "GetImageSize")  # they have the numbers of the node that made the picture


@dataclass(frozen=True)
class Link:
    """Where an input comes from: a node, by its id, and which of its outputs."""

    node: str
    slot: int = 0


@dataclass(frozen=True)
class GraphNode:
    """A node. inputs: values, and Links to others."""

    id: str
    kind: str
    inputs: dict[str, Any] = field(default_factory=dict)

    @property
    def links(self) -> dict[str, Link]:
        return {name: value for name, value in self.inputs.items() if isinstance(value, Link)}


@dataclass(frozen=True)
class Graph:
    """All nodes that run, by id."""

    nodes: dict[str, GraphNode]

    def source(self, node: GraphNode, name: str) -> GraphNode | None:
        """The node that an input comes from, through nodes that only pass it on; None where nothing is linked."""
        for _ in range(MOST_HOPS):
            link = node.inputs.get(name)
            if not isinstance(link, Link) or link.node not in self.nodes:
                return None
            found = self.nodes[link.node]
            if found.kind == "GetNode":
                wanted = found.inputs.get("name")
                setters = (item for item in self.of_kind("SetNode") if item.inputs.get("name") == wanted)
                found = next(setters, found)
            if found.kind not in ("SetNode", "Reroute") or not found.links:
                return found
            node, name = found, next(iter(found.links))
        raise InputError("The graph goes in a circle. Open it in ComfyUI and mend it there.")

    def of_kind(self, *kinds: str) -> list[GraphNode]:
        return [node for node in self.nodes.values() if node.kind in kinds]

    def above(self, node: GraphNode, name: str) -> Iterator[GraphNode]:
        """What an input is made from: its source, that one's sources, and so on, each once."""
        waiting, seen = [self.source(node, name)], set()
        while waiting:
            found = waiting.pop(0)
            if found is not None and found.id not in seen:
                seen.add(found.id)
                yield found
                waiting += [self.source(found, inner) for inner in found.links]

    def value(self, node: GraphNode, name: str, default: Any) -> Any:
        """A value, also where it is linked to a node that holds it, or to one that is told the same by name."""
        found = node.inputs.get(name, default)
        if not isinstance(found, Link):
            return found
        for source in self.above(node, name):
            for inner in ("value", name):
                if inner in source.inputs and not isinstance(source.inputs[inner], Link):
                    return source.inputs[inner]
        return default

    def is_held(self, node: GraphNode, name: str) -> bool:
        """Whether a value is the node's own, or comes from one that holds it, not one that computes it."""
        for _ in range(MOST_HOPS):
            if not isinstance(node.inputs.get(name), Link):
                return True
            source = next((item for item in self.above(node, name) if item.kind not in SIZED), None)
            inner = None if source is None else next((key for key in ("value", name) if key in source.inputs), None)
            if source is None or inner is None:
                return False
            node, name = source, inner
        return False


def read_graph(path: str | Path) -> Graph:
    """Raises: InputError when the file is missing, or holds no graph."""
    data = read_object(path, "a graph of ComfyUI")
    try:
        nodes = _from_page(data) if "nodes" in data else _from_queue(data.get("prompt", data))
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(
            f"{path} is not a graph of ComfyUI ({type(error).__name__}: {error}). "
            "Save one with Workflow > Export or Export (API)."
        ) from None
    if not nodes:
        raise InputError(f"{path} has no nodes. Save a graph with Workflow > Export or Export (API).")
    return Graph({node.id: node for node in nodes})


def _from_queue(data: dict[str, Any]) -> list[GraphNode]:
    return [
        GraphNode(str(key), str(entry["class_type"]), {name: _linked(value) for name, value in entry["inputs"].items()})
        for key, entry in data.items()
    ]


def _linked(value: Any) -> Any:
    is_link = isinstance(value, list) and len(value) == 2 and isinstance(value[1], int) and isinstance(value[0], str)
    return Link(*value) if is_link else value


def _from_page(data: dict[str, Any]) -> list[GraphNode]:
    """Nodes that are muted do not run, and what they gave is linked to nothing."""
    nodes, running = [], [entry for entry in expanded(data) if entry.mode != MUTED]
    there = {entry.id for entry in running}
    for entry in running:
        values = entry.values
        named = values if isinstance(values, dict) else dict(zip(WIDGETS.get(entry.kind, ()), values, strict=False))
        linked = {name: Link(*source) for name, source in entry.links.items() if source[0] in there}
        nodes.append(GraphNode(entry.id, str(entry.kind), {**named, **linked, **entry.set}))
    return nodes
