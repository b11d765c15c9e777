"""How `export` reads a node's values, and what both kinds of graph have: prompts, source options, what is left over."""

from __future__ import annotations

import contextlib
from typing import Any

from ... import checks
from ...errors import InputError
from ...keep import AUTO, DEFAULT_FEATHER
from ...prompts import PromptList
from ...request import NEGATIVE_PROMPT
from .counterparts import COUNTERPARTS
from .graph import GraphNode
from .media import PICTURES, Media
from .widgets import WIDGETS

# Inputs that are read, or change nothing of the frames, by node.
OPTIONS_READ = {*WIDGETS["WanVideoSourceOptions"], "mask_video", "keep_mask"}
NEUTRAL: dict[str, tuple[Any, ...]] = {  # what other inputs say where they change nothing
    "riflex_freq_index": (0,), "denoise_strength": (1,), "start_step": (0,), "end_step": (-1,),
    "add_noise_floor": (False,), "smooth_transients": (False,), "enhance_hf": (False,),
}  # fmt: skip


class Reader(Media):
    """Reads one graph, upwards from the node that makes the video."""

    def upward(self, node: GraphNode, name: str, *kinds: str) -> list[GraphNode]:
        return [found for found in self.graph.above(node, name) if found.kind in kinds]

    def wanted(self, node: GraphNode, name: str, *kinds: str) -> GraphNode:
        found = self.upward(node, name, *kinds)
        if not found:
            raise InputError(f"{name} of {node.kind} comes from no {' or '.join(kinds)}. Export a graph that has one.")
        return found[0]

    def value(self, node: GraphNode, name: str, default: Any) -> Any:
        """A value of its default's kind; the default where it was emptied, as the node itself takes it then.

        Raises: InputError for another kind of value.
        """
        found = self.graph.value(node, name, default)
        if not self.graph.is_held(node, name):
            source = self.graph.source(node, name)
            origin = source.kind if source else "nothing"
            self.notes.append(f"{name} of {node.kind} (from {origin}): {checks.brief(found)} is taken")
        if found is None or isinstance(default, bool) or default is None:
            return default if found is None else found
        if isinstance(default, str):
            checks.instance(f"{name} of {node.kind}", found, str, "text")
            return found
        return default if found == "" else _number(f"{name} of {node.kind}", found)

    def prompt_keys(self, prompt: object, negative: object) -> dict[str, Any]:
        """Of a job; the negative prompt where it is not the usual one."""
        keys: dict[str, Any] = {"prompt": PromptList.parse(str(prompt)).to_json()}
        return keys if negative in (NEGATIVE_PROMPT, None) else keys | {"negative_prompt": negative}

    def people(self, node: GraphNode, audios: list[str], masks: list[str], placement: str) -> dict[str, Any]:
        """Of a job: who speaks, and where they are; who has a mask and no sound only listens."""
        sounds = [self.sound(node, name) for name in audios if name in node.links]
        places = self.masks(node, [name for name in masks if name in node.links])
        if places and len(places) < len(sounds):
            raise InputError(
                f"{node.kind} has {len(places)} masks for {len(sounds)} sounds. Connect a mask for each, or none."
            )
        count = max(len(sounds), len(places)) if len(places) > 1 else len(sounds)
        names = [f"person{number}" for number in range(1, count + 1)]
        keys: dict[str, Any] = {"cond_audio": dict(zip(names, [*sounds, *["None"] * count], strict=False))}
        if count > 1:
            keys["audio_type"] = placement
        return keys | ({"mask": dict(zip(names, places, strict=True))} if count > 1 and places else {})

    def source_flags(self, image: GraphNode) -> list[object]:
        """How a picture or a source video is followed."""
        flags: list[object] = []
        for node in self.upward(image, "source_options", "WanVideoSourceOptions")[:1]:
            self.note_unread(node, OPTIONS_READ)
            flags += ["--source_end", self.value(node, "source_end", "hold")]
            if self.value(node, "scene_seg", False):
                flags += ["--scene_seg", "true"]
            if self.value(node, "mouth", "none") == AUTO:
                flags += ["--dub", AUTO]
            elif "mask_video" in node.links:
                flags += ["--dub", self._file(node, "mask_video", PICTURES)]
            elif "keep_mask" in node.links:
                flags += [part for path in self.masks(node, ["keep_mask"]) for part in ("--dub", path)]
            if "--dub" in flags:
                flags += ["--dub_feather", self.value(node, "feather", DEFAULT_FEATHER)]
            if (crf := self.value(node, "crf", -1)) >= 0:
                flags += ["--crf", crf]
            if (zoom := self.value(node, "camera_zoom", 1)) > 1:
                pan = (self.value(node, name, 0) for name in ("camera_right", "camera_down"))
                flags += ["--camera", zoom, "--camera_pan", *pan]
                flags += ["--camera_period", self.value(node, "camera_period", 30)]
            if (every := self.value(node, "reanchor", 0)) > 0:
                flags += ["--reanchor", every]
        return flags

    def note_unread(self, node: GraphNode, read: set[str]) -> None:
        """Inputs that neither job nor flags have."""
        for name, value in node.inputs.items():
            if name in read or value is None or value in NEUTRAL.get(name, ()):
                continue
            source = self.graph.source(node, name)
            self.notes.append(f"{name} of {node.kind} ({f'from {source.kind}' if source else checks.brief(value)})")

    def note_kinds(self, end: GraphNode) -> None:
        """Nodes that a video is made from and that have no counterpart as a whole."""
        used = {found.kind for name in end.links for found in self.graph.above(end, name)}
        self.notes += [f"{kind}: {why}" for kind in sorted(used) if (why := COUNTERPARTS.get(kind))]


def _number(name: str, found: Any) -> int | float:
    """A number, also where a graph has it as text."""
    if isinstance(found, int | float):
        return +found
    for kind in (int, float):
        with contextlib.suppress(TypeError, ValueError):
            return kind(found)
    raise InputError(f"{name} is {checks.brief(found)}, not a number. Set it in the graph.")
