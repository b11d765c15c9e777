"""Graphs as the page saves them, with the nodes of their subgraphs in the places of those that stand for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ...errors import InputError

INPUTS, OUTPUTS = "-10", "-20"  # ids that links inside a subgraph have for its sides
MOST_NODES, MOST_LEVELS = 20_000, 30
Source = tuple[str, int]


@dataclass(frozen=True)
class PageNode:
    """A node as the page saves it.

    Args: values: of its widgets, by position or by name. links: (id, output) that its inputs come from, by name.
        set: values that a subgraph around it sets, by name.
    """

    id: str
    kind: str
    mode: int
    values: Any
    links: dict[str, Source]
    set: dict[str, Any] = field(default_factory=dict)


def expanded(data: dict[str, Any]) -> list[PageNode]:
    """All nodes that are no subgraphs, however deep; ids inside are those of the nodes around, as when queued (2:1).

    Raises: InputError for subgraphs that hold themselves.
    """
    definitions = {item["id"]: item for item in (data.get("definitions") or {}).get("subgraphs", ())}
    pending = list(_nodes(data, ""))
    while inside := next((node for node in pending if node.kind in definitions), None):
        pending = list(_opened(pending, inside, definitions[inside.kind]))
        if len(pending) > MOST_NODES or inside.id.count(":") > MOST_LEVELS:
            raise InputError(
                f"The graph's subgraphs are more than {MOST_LEVELS} levels deep, or hold more than {MOST_NODES} nodes. "
                "Name another graph."
            )
    return pending


def _nodes(data: dict[str, Any], prefix: str) -> Iterator[PageNode]:
    links = dict(_links(data["links"], prefix))
    for entry in data["nodes"]:
        inputs = {item["name"]: links[item["link"]] for item in entry.get("inputs", ()) if item.get("link") in links}
        yield PageNode(
            f"{prefix}{entry['id']}", entry["type"], entry.get("mode", 0), entry.get("widgets_values") or (), inputs,
            _promoted(entry),
        )  # fmt: skip


def _links(links: list[Any], prefix: str) -> Iterator[tuple[Any, Source]]:
    """Each link's id and where it begins: a list in a graph, an object in a subgraph."""
    for link in links:
        number, origin, slot = (
            (link["id"], link["origin_id"], link["origin_slot"]) if isinstance(link, dict) else link[:3]
        )
        yield number, (f"{prefix}{origin}", slot)


def _promoted(entry: dict[str, Any]) -> dict[str, Any]:
    """Values of a subgraph's own widgets, by "id name" of those inside that they stand for."""
    names = (entry.get("properties") or {}).get("proxyWidgets") or ()
    values = entry.get("widgets_values") or ()
    return {f"{number} {name}": value for (number, name), value in zip(names, values, strict=False)}


def _opened(nodes: list[PageNode], outer: PageNode, definition: dict[str, Any]) -> Iterator[PageNode]:
    """`nodes` with those of a subgraph in place of the one that stands for it."""
    prefix = f"{outer.id}:"
    names = [item["name"] for item in definition.get("inputs", ())]
    ends = {
        link["target_slot"]: (f"{prefix}{link['origin_id']}", link["origin_slot"])
        for link in definition["links"]
        if str(link["target_id"]) == OUTPUTS
    }
    for node in nodes:
        if node is not outer:
            links = {name: _left(source, outer, ends) for name, source in node.links.items()}
            yield PageNode(
                node.id, node.kind, node.mode, node.values,
                {name: source for name, source in links.items() if source}, node.set,
            )  # fmt: skip
    for inner in _nodes(definition, prefix):
        links = {name: _entered(source, prefix, outer, names) for name, source in inner.links.items()}
        own = f"{inner.id.removeprefix(prefix)} "
        values = {name.removeprefix(own): value for name, value in outer.set.items() if name.startswith(own)}
        yield PageNode(
            inner.id, inner.kind, max(inner.mode, outer.mode), inner.values,
            {name: source for name, source in links.items() if source}, inner.set | values,
        )  # fmt: skip


def _left(source: Source, outer: PageNode, ends: dict[int, Source]) -> Source | None:
    """Where a link out of a subgraph begins inside it."""
    return ends.get(source[1]) if source[0] == outer.id else source


def _entered(source: Source, prefix: str, outer: PageNode, names: list[str]) -> Source | None:
    """Where a link from a subgraph's inputs begins outside of it."""
    return outer.links.get(names[source[1]]) if source[0] == f"{prefix}{INPUTS}" else source
