"""A graph, ours or WanVideoWrapper's, as a job and the flags of `generate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...errors import InputError
from ..shell import command_line
from .graph import Graph
from .media import Derived
from .sampler import SAMPLERS, SamplerReader
from .talk import TalkReader

TALK = "WanVideoTalk"


@dataclass(frozen=True)
class Exported:
    """A job file's content, the flags of `generate` that go with it, the pictures that it names and that are made of
    others, and what of the graph none of these can say."""

    job: dict[str, Any]
    flags: tuple[str, ...]
    derived: tuple[Derived, ...]
    notes: tuple[str, ...]

    def command(self, job_file: str) -> str:
        return command_line(["python", "-m", "wanvideo", "generate", "--input_json", job_file, *self.flags])

    def save_pictures(self) -> None:
        """Raises: InputError for a picture that cannot be read."""
        for picture in self.derived:
            picture.save()


def export(graph: Graph, models: str = "models", inputs: str = "input", prefix: str = "") -> Exported:
    """A graph as a job and flags.

    Args: models, inputs: ComfyUI's folders. prefix: how paths of pictures that are made begin.
    Raises: InputError for other graphs.
    """
    found = graph.of_kind(TALK, *SAMPLERS)
    if len(found) != 1:
        raise InputError(
            f"The graph has {len(found)} nodes of the kind {' or '.join((TALK, *SAMPLERS))}, one is needed. "
            "Export the graph of one talking video."
        )
    kind = TalkReader if found[0].kind == TALK else SamplerReader
    reader: TalkReader | SamplerReader = kind(graph, found[0], models, inputs, prefix)
    job, flags = reader.job(), reader.flags()
    reader.note_rest()
    # Sliders leave 1.0000000000000002, which would cost a pass of guidance that nobody sees.
    texts = (f"{flag:.15g}" if isinstance(flag, float) else str(flag) for flag in flags)
    return Exported(job, tuple(texts), tuple(reader.derived), tuple(dict.fromkeys(reader.notes)))
