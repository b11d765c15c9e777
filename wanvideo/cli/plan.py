"""`plan`: what a video will need and how long it will take, without loading a model."""

from __future__ import annotations

from .. import checks
from ..memory.planner import Device
from .generate import read_job
from .parser import Parser, real


def main(argv: list[str]) -> int:
    """Print the plan of the job that the same flags of `generate` describe."""
    from ..pipeline import TalkingVideoPipeline

    parser = Parser("python -m wanvideo plan", description=f"{__doc__} All other flags are those of `generate`.")
    parser.add_argument("--memory_gb", type=real, help="plan for a GPU with so many free GB, not for this one")
    parser.add_argument("--gpu", default="", help="its name, for the time it takes, e.g. H200")
    flags, rest = parser.parse_known_args(argv)
    device = None
    if flags.memory_gb is not None:
        checks.number("--memory_gb", flags.memory_gb, 0.1, 10_000)
        device = Device(flags.gpu or "a GPU", int(flags.memory_gb * 1e9))
    job = read_job(rest, "python -m wanvideo plan")
    print(TalkingVideoPipeline(job.files, job.options).plan(job.request, device).describe())
    return 0
