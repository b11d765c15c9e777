"""Graphs as the page saves them, with the nodes of their subgraphs in the places of those that stand for them.

Bypassed nodes are left out as the page leaves them out of what it queues: what an output of theirs was linked to has
the input of that type instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ...errors import InputError

INPUTS, OUTPUTS = "-10", "-20"  # ids that links inside a subgraph have for its sides
MOST_NODES, MOST_LEVELS = 20_000, 30
BYPASSED = 4  # mode of a node
ANY = "*"  # a type that fits every other
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
    """All nodes that run or are muted and are no subgraphs, however deep; ids inside begin with those of the nodes
    around, as when queued (2:1).

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
    sources = _sources(data, prefix)
    for entry in data["nodes"]:
        if entry.get("mode") == BYPASSED:
            continue
        begins = ((item["name"], sources.get(item.get("link"))) for item in entry.get("inputs", ()))
        yield PageNode(
            f"{prefix}{entry['id']}", entry["type"], entry.get("mode", 0), entry.get("widgets_values") or (),
            {name: source for name, source in begins if source}, _promoted(entry),
        )  # fmt: skip


def _sources(data: dict[str, Any], prefix: str) -> dict[Any, Source | None]:
    """Where each link begins, by its id; None behind a bypassed node that has nothing to go on with."""
    links = dict(_links(data["links"]))
    wanted = {item.get("link"): item.get("type") for entry in data["nodes"] for item in entry.get("inputs", ())}
    bypassed = {str(entry["id"]): entry for entry in data["nodes"] if entry.get("mode") == BYPASSED}
    found: dict[Any, Source | None] = {}
    for number, (begin, first, kind) in links.items():
        node, slot = begin, first
        for _ in links:  # bypassed nodes may go in a circle
            if node not in bypassed:
                break
            link = _passed_on(bypassed[node], slot, wanted.get(number) or kind)
            node, slot, _ = links.get(link, ("", 0, ANY))
        found[number] = (f"{prefix}{node}", slot) if node and node not in bypassed else None
    return found


def _links(links: list[Any]) -> Iterator[tuple[Any, tuple[str, int, Any]]]:
    """Each link's id, and node, output and type of its beginning: a list in a graph, an object in a subgraph."""
    for link in links:
        if isinstance(link, dict):
            yield link["id"], (str(link["origin_id"]), link["origin_slot"], link.get("type"))
        else:
            yield link[0], (str(link[1]), link[2], link[5] if len(link) > 5 else ANY)


def _passed_on(entry: dict[str, Any], slot: int, kind: Any) -> Any:
    """The link that a bypassed node has in place of an output; None for none. Args: kind: the type that is wanted.

    Source: ComfyUI's page takes the input beside the output if its type fits, else the first one of the type.
    """
    inputs, outputs = entry.get("inputs") or (), entry.get("outputs") or ()
    own = outputs[slot].get("type") if slot < len(outputs) else kind
    found = [item for item in inputs[slot : slot + 1] if _fits(item.get("type"), own) and _fits(item.get("type"), kind)]
    found += [item for item in inputs if item.get("type") == kind]
    found += [item for item in inputs if _fits(item.get("type"), kind)]
    return found[0].get("link") if found else None


def _fits(kind: Any, other: Any) -> bool:
    """Whether two types can be linked; one may be several, with commas between them."""
    one, two = (set(str(item or ANY).upper().split(",")) for item in (kind, other))
    return bool(one & two) or ANY in one | two


def _promoted(entry: dict[str, Any]) -> dict[str, Any]:
    """Values of a subgraph's own widgets, by "id name" of those inside that they stand for."""
    names = (entry.get("properties") or {}).get("proxyWidgets") or ()
    values = entry.get("widgets_values") or ()
    return {f"{number} {name}": value for (number, name), value in zip(names, values, strict=False)}


def _opened(nodes: list[PageNode], outer: PageNode, definition: dict[str, Any]) -> Iterator[PageNode]:
    """`nodes` with those of a subgraph in place of the one that stands for it."""
    prefix = f"{outer.id}:"
    names = [item["name"] for item in definition.get("inputs", ())]
    sources = _sources(definition, prefix)
    ends = {
        link["target_slot"]: sources[link["id"]] for link in definition["links"] if str(link["target_id"]) == OUTPUTS
    }
    for node in nodes:
        if node is not outer:
            begins = ((name, _left(source, outer, ends)) for name, source in node.links.items())
            links = {name: _entered(source, prefix, outer, names) for name, source in begins if source}
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


def _left(source: Source, outer: PageNode, ends: dict[int, Source | None]) -> Source | None:
    """Where a link out of a subgraph begins inside it."""
    return ends.get(source[1]) if source[0] == outer.id else source


def _entered(source: Source, prefix: str, outer: PageNode, names: list[str]) -> Source | None:
    """Where a link from a subgraph's inputs begins outside of it."""
    return outer.links.get(names[source[1]]) if source[0] == f"{prefix}{INPUTS}" else source
