"""`export`: a graph of ComfyUI, ours or WanVideoWrapper's, as a job file and the command that makes the same video."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import checks
from ..durable import write_atomically
from ..errors import InputError, OutputError
from .graphs import Graph, read_graph
from .parser import Parser

if TYPE_CHECKING:
    from .export_media import Derived

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
        return shlex.join(["python", "-m", "wanvideo", "generate", "--input_json", job_file, *self.flags])

    def save_pictures(self) -> None:
        """Raises: InputError for a picture that cannot be read."""
        for picture in self.derived:
            picture.save()


def export(graph: Graph, models: str = "models", inputs: str = "input", prefix: str = "") -> Exported:
    """A graph as a job and flags.

    Args: models, inputs: ComfyUI's folders. prefix: how paths of pictures that are made begin.
    Raises: InputError for other graphs.
    """
    from .export_sampler import SAMPLERS, SamplerReader  # here: flags are judged before PyTorch is loaded
    from .export_talk import TalkReader

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


def main(argv: list[str]) -> int:
    """Write NAME.job.json and NAME.sh beside the graph, and say what has no counterpart."""
    parser = Parser("python -m wanvideo export", description=__doc__)
    parser.add_argument("graph", help="file of Workflow > Export or Export (API)")
    parser.add_argument("--models", default="models", help="ComfyUI's folder of models")
    parser.add_argument("--inputs", default="input", help="ComfyUI's folder of pictures and sounds")
    parser.add_argument("--out", help="folder to write to; that of the graph if not given")
    flags = parser.parse_args(argv)
    file = Path(checks.path("GRAPH", flags.graph)).expanduser()
    folder = file.parent if flags.out is None else Path(checks.path("--out", flags.out)).expanduser()
    job, script = folder / f"{file.stem}.job.json", folder / f"{file.stem}.sh"
    exported = export(read_graph(file), flags.models, flags.inputs, str(folder / f"{file.stem}."))
    command = exported.command(str(job))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        exported.save_pictures()
        write_atomically(job, (json.dumps(exported.job, indent=1, ensure_ascii=False) + "\n").encode())
        write_atomically(script, f"#!/bin/sh\n{command}\n".encode())
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror}). Name another folder with --out.") from None
    print("\n".join([*(picture.path for picture in exported.derived), str(job), str(script), command]))
    for note in exported.notes:
        print(f"no counterpart: {note}")
    return 0
