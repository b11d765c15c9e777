"""`import`: a job and the flags of `generate` as a graph of ComfyUI that makes the same video."""

from __future__ import annotations

import json
from pathlib import Path

from .. import checks
from ..durable import write_atomically
from ..errors import OutputError
from ..job import read_object
from .generate import read_job
from .parser import Parser, keep_existing

TEMPLATE = Path(__file__).resolve().parents[2] / "example_workflows" / "api" / "01_talking_person.json"


def main(argv: list[str]) -> int:
    """Write the graph and say what has no counterpart."""
    program = "python -m wanvideo import"
    parser = Parser(program, description=f"{__doc__} All other flags are those of `generate`.")
    parser.add_argument("--out", required=True, help="graph to write, to be queued or dropped on the page")
    parser.add_argument("--template", default=str(TEMPLATE), help="graph of one person, as Export (API) writes it")
    flags, rest = parser.parse_known_args(argv)
    job, out = read_job(rest, program), Path(checks.path("--out", flags.out)).expanduser()
    keep_existing("--out", out, job.overwrite)
    from .graphs.of_job import build, without_counterpart  # here: flags are judged before PyTorch is loaded
    from .graphs.writer import inputs_of

    nodes = build(job, read_object(checks.path("--template", flags.template), "a template"))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, (json.dumps(nodes, indent=1, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise OutputError(f"{out} cannot be written ({error.strerror}). Choose another --out.") from None
    print(out)
    for path in inputs_of(job.request):
        print(f"copy into ComfyUI/input: {path}")
    for note in without_counterpart(job):
        print(f"no counterpart: {note}")
    return 0
