"""`batch`: many videos from one file of jobs, one a GPU or a group of GPUs, on this machine, a cluster or servers."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .. import checks
from ..errors import InputError, OutputError, TalkError
from ..fleet.jobs import Entry, read_entries
from .parser import Parser, whole

if TYPE_CHECKING:
    from ..fleet.comfy import ComfyPlace, GraphWork
    from ..fleet.dispatch import Kind, Place
    from ..fleet.local import VideoWork
    from ..pipeline import TalkingVideoPipeline
    from ..runs.find import Neighbors
    from .generate import Job

logger = logging.getLogger("wanvideo")
PROGRAM = "python -m wanvideo batch"
ENGINES = ("local", "ray", "comfy")
# Flags of `generate` that a batch has something else for, or that make no video.
OTHERWISE = {
    "--save_file": '"output" in the job, or --out,', "--input_json": "the file of jobs", "--help": "`generate --help`",
}  # fmt: skip


def build_parser() -> Parser:
    parser = Parser(
        PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='Every flag of `generate` may follow, for all jobs; a job has its own in "flags": {"base_seed": 7}.',
    )  # fmt: skip
    add = parser.add_argument
    add("jobs", type=Path, help="JSON lines, a list in one JSON, or a folder of JSON files")
    add("--out", type=Path, default=Path("videos"), help="folder of the videos whose job names no output, and of logs")
    add("--engine", default="local", choices=ENGINES, help="this machine, a Ray cluster, or ComfyUI servers")
    add("--gpus", help="numbers of the GPUs to use, 0,2,3; all if not given")
    add("--gpus_per_job", type=whole, default=1, help="GPUs that make a video together")
    add("--workers", type=whole, help="jobs at a time; as many as there are GPUs for if not given, 1 without any")
    add("--retries", type=whole, default=2, help="how often a job that failed is tried again, from where it was")
    add("--address", help="of the Ray cluster; the one that this machine belongs to, or a new one, if not given")
    add("--server", nargs="+", default=[], metavar="URL", help="ComfyUI servers, http://host:8188")
    add("--template", type=Path, help="graph in API format with $prompt, $image, $audio1, ... where a job's parts go")
    add("--json", action="store_true", help="one JSON object a line in place of words")
    return parser


def main(argv: list[str]) -> int:
    flags, rest = build_parser().parse_known_args(argv)
    _check(flags, rest)
    entries, problems = read_entries(flags.jobs, flags.out)
    if flags.engine == "comfy":
        return _run(flags, *_graphs(flags, entries, problems))
    works = _videos(flags, rest, entries, problems)
    return _run(flags, works, _places(flags, works))


def _check(flags: argparse.Namespace, rest: Sequence[str]) -> None:
    checks.number("--gpus_per_job", flags.gpus_per_job, 1, 1024, whole=True)
    checks.number("--retries", flags.retries, 0, 100, whole=True)
    if flags.workers is not None:
        checks.number("--workers", flags.workers, 1, 1024, whole=True)
    if (flags.engine == "comfy") != bool(flags.server):
        raise InputError("--engine comfy and --server URL belong together. Give both, or leave both out.")
    if flags.engine == "comfy" and flags.template is None:
        raise InputError(
            "--engine comfy needs a graph. Export one from ComfyUI in API format, and name it: --template."
        )
    _refuse_otherwise(rest)
    if flags.engine == "comfy" and rest:
        raise InputError(f"{rest[0]} is no flag of {PROGRAM} --engine comfy. Write it into the graph.")


def _refuse_otherwise(arguments: Sequence[str]) -> None:
    for name in (argument.partition("=")[0] for argument in arguments):
        if name in OTHERWISE:
            raise InputError(f"{name} is no flag of {PROGRAM}: {OTHERWISE[name]} is for that. Leave it out.")


def _run(flags: argparse.Namespace, works: Sequence[Kind], places: Sequence[Place[Kind]]) -> int:
    from ..fleet.dispatch import Dispatcher
    from ..fleet.report import Report, Stage

    say = partial(print, file=sys.stdout, flush=True)
    report = Report([work.name for work in works], flags.out / "logs", say, flags.json)
    left = []
    for work in works:
        if work.is_done():
            report.change(work.name, Stage.THERE, note=str(work.output))
        else:
            left.append(work)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what other libraries print is no line of a report
            Dispatcher(places, flags.retries, report).run(left)
    except KeyboardInterrupt:
        report.end()
        raise
    return report.end()


def _graphs(
    flags: argparse.Namespace, entries: Sequence[Entry], problems: list[str]
) -> tuple[list[GraphWork], list[ComfyPlace]]:  # fmt: skip
    from ..fleet.comfy import ComfyPlace, Template

    template = Template.read(flags.template)
    works = []
    for entry in entries:
        with _noting(problems, entry):
            works.append(template.work(entry))
    _refuse(problems)
    return works, [ComfyPlace(url) for url in flags.server]


def _videos(
    flags: argparse.Namespace, common: Sequence[str], entries: Sequence[Entry], problems: list[str]
) -> list[VideoWork]:
    from ..fleet.local import VideoWork
    from ..fleet.tasks import VideoTask
    from ..parallel.layout import WantedRanks
    from ..runs.find import Neighbors, last_writes
    from .generate import read_job

    works, pipelines = list[VideoWork](), dict[Hashable, "TalkingVideoPipeline"]()
    neighbors = Neighbors()
    for entry in entries:
        with _noting(problems, entry):
            _refuse_otherwise(entry.arguments)
            if "overwrite" in entry.flags:
                raise InputError("--overwrite is for all jobs of a batch. Add it to the command, not to a job.")
            job = read_job([*common, *entry.arguments, "--save_file", str(entry.output)], PROGRAM, entry.job)
            other = _check_job(job, pipelines, neighbors)
            wanted = WantedRanks(is_auto=flags.gpus_per_job > 1, shard=job.ranks.shard)
            before = last_writes(entry.output, neighbors)
            task = VideoTask(job.request, job.files, job.options, wanted, job.overwrite, job.resume, before)
            is_there = entry.output.exists() and not job.overwrite
            if is_there and other:
                raise OutputError(
                    f"{entry.output} exists and is of another request: {other}.\nName another, or --overwrite."
                )
            works.append(VideoWork(entry.name, task, is_made=is_there))
    _refuse(problems)
    return works


def _places(flags: argparse.Namespace, works: Sequence[VideoWork]) -> Sequence[Place[VideoWork]]:
    """Where videos are made."""
    import torch

    from ..fleet.local import local_places
    from ..fleet.ray import ray_places
    from ..parallel.launch import check_exchange

    if flags.engine == "ray":
        return ray_places(flags.address, flags.gpus_per_job, flags.workers)
    gpus = flags.gpus and flags.gpus.split(",")
    on_cpu = all(work.task.options.device == "cpu" for work in works)
    num_gpus = 0 if on_cpu else torch.cuda.device_count()
    if flags.gpus_per_job > 1:
        check_exchange(on_gpus=num_gpus > 0)
    return local_places(gpus, flags.gpus_per_job, flags.workers, num_gpus)


def _check_job(job: Job, pipelines: dict[Hashable, TalkingVideoPipeline], neighbors: Neighbors) -> str:
    """Open everything that a job names; models and media of which only headers are read.

    Returns: why what has the name of its video is another one (see runs.find.why_not_made). Raises: TalkError.
    """
    from ..pipeline import TalkingVideoPipeline
    from ..runs.find import why_not_made

    if job.options.device not in (None, "cpu", "cuda"):
        raise InputError(f"--device {job.options.device} names one device for all jobs. Use cuda or cpu, and --gpus.")
    options = replace(job.options, device="cpu")  # nothing is loaded here, and no GPU is touched
    key = job.files, options
    if key not in pipelines:
        pipelines[key] = TalkingVideoPipeline(job.files, options)
    inputs, output = pipelines[key].check(job.request), Path(job.request.output or "")
    if not output.is_file():
        return "it is no file"
    return why_not_made(output, pipelines[key].manifest(job.request, inputs), neighbors)


class _noting:
    """A TalkError inside is one more problem of the batch."""

    def __init__(self, problems: list[str], entry: Entry) -> None:
        self._problems, self._entry = problems, entry

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, TalkError):
            self._problems.append(f"{self._entry.where}: {error}")
            return True
        return False


def _refuse(problems: Sequence[str]) -> None:
    """Raises: InputError where anything is wrong, all of which is printed first."""
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        raise InputError(f"{len(problems)} things are wrong with the jobs, so none was begun. Mend the lines above.")
