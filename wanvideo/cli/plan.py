"""`plan`: what a video will need and how long it will take, without loading a model."""

from __future__ import annotations

from pathlib import Path

from .. import checks
from ..memory.planner import Device
from .generate import read_job
from .parser import Parser, real


def main(argv: list[str]) -> int:
    """Print the plan of the job that the same flags of `generate` describe."""
    from ..engine.conditioning import workload_of_request
    from ..pipeline import TalkingVideoPipeline
    from ..video.overlay import draw_speakers, save_picture

    parser = Parser("python -m wanvideo plan", description=f"{__doc__} All other flags are those of `generate`.")
    parser.add_argument("--memory_gb", type=real, help="plan for a GPU with so many free GB, not for this one")
    parser.add_argument("--gpu", default="", help="its name, for the time it takes, e.g. H200")
    parser.add_argument("--preview", type=Path, metavar="PNG", help="draw here who speaks where and when")
    flags, rest = parser.parse_known_args(argv)
    device = None
    if flags.memory_gb is not None:
        checks.number("--memory_gb", flags.memory_gb, 0.1, 10_000)
        device = Device(flags.gpu or "a GPU", int(flags.memory_gb * 1e9))
    job = read_job(rest, "python -m wanvideo plan")
    pipeline = TalkingVideoPipeline(job.files, job.options)
    inputs = pipeline.check(job.request)
    print(pipeline.engine.plan(workload_of_request(job.request, inputs), device).describe())
    if flags.preview is not None:
        fps = job.request.fps
        drawn = draw_speakers(inputs.references[0], inputs.speaker_masks, inputs.tracks, inputs.plan, fps)
        print(f"Who speaks where and when: {save_picture(drawn, flags.preview)}")
    return 0
