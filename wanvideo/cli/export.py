"""`export`: a graph of ComfyUI, ours or WanVideoWrapper's, as a job file and the command that makes the same video."""

from __future__ import annotations

import json
from pathlib import Path

from .. import checks
from ..durable import write_atomically
from ..errors import OutputError
from .parser import Parser, keep_existing
from .shell import SUFFIX
from .shell import script as script_of


def main(argv: list[str]) -> int:
    """Write NAME.job.json and NAME.sh (.bat on Windows) beside the graph, and say what has no counterpart."""
    parser = Parser("python -m wanvideo export", description=__doc__)
    parser.add_argument("graph", help="file of Workflow > Export or Export (API)")
    parser.add_argument("--models", default="models", help="ComfyUI's folder of models")
    parser.add_argument("--inputs", default="input", help="ComfyUI's folder of pictures and sounds")
    parser.add_argument("--out", help="folder to write to; that of the graph if not given")
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier export wrote there")
    flags = parser.parse_args(argv)
    from .graphs.graph import read_graph  # here: flags are judged before PyTorch is loaded
    from .graphs.to_job import export

    file = Path(checks.path("GRAPH", flags.graph)).expanduser()
    folder = file.parent if flags.out is None else Path(checks.path("--out", flags.out)).expanduser()
    job, script = folder / f"{file.stem}.job.json", folder / f"{file.stem}{SUFFIX}"
    exported = export(read_graph(file), flags.models, flags.inputs, str(folder / f"{file.stem}."))
    pictures = [Path(picture.path) for picture in exported.derived]
    for path in (*pictures, job, script):
        keep_existing("--out", path, flags.overwrite)
    command = exported.command(str(job))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        exported.save_pictures()
        write_atomically(job, (json.dumps(exported.job, indent=1, ensure_ascii=False) + "\n").encode())
        write_atomically(script, script_of(command).encode())
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror}). Name another folder with --out.") from None
    print("\n".join([*map(str, pictures), str(job), str(script), command]))
    for note in exported.notes:
        print(f"no counterpart: {note}")
    return 0
