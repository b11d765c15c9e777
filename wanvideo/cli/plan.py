"""`plan`: what a video will need, how long it will take, and whether its picture can speak; no model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .. import checks
from ..errors import InputError, UnsupportedError
from ..memory.planner import Device
from .generate import read_job
from .parser import Parser, keep_existing, real

if TYPE_CHECKING:
    from ..engine.inputs import Inputs


def main(argv: list[str]) -> int:
    """Print the plan of the job that the same flags of `generate` describe."""
    parser = Parser("python -m wanvideo plan", description=f"{__doc__} All other flags are those of `generate`.")
    parser.add_argument("--memory_gb", type=real, help="plan for a GPU with so many free GB, not for this one")
    parser.add_argument("--gpu", default="", help="its name, for the time it takes, e.g. H200")
    parser.add_argument("--preview", type=Path, metavar="PNG", help="draw here who speaks where and when")
    flags, rest = parser.parse_known_args(argv)
    device = None
    if flags.memory_gb is not None:
        checks.number("--memory_gb", flags.memory_gb, 0.1, 10_000)
        device = Device(flags.gpu or "a GPU", int(flags.memory_gb * 1e9))
    elif flags.gpu:
        raise InputError("--gpu names the GPU that --memory_gb is of. Give both, or leave both out.")
    job = read_job(rest, "python -m wanvideo plan", free_bytes=None if device is None else device.free_bytes)
    if flags.preview is not None:
        keep_existing("--preview", flags.preview, job.overwrite)

    from ..engine.conditioning import workload_of_request  # here: flags are judged before PyTorch is loaded
    from ..pipeline import TalkingVideoPipeline
    from ..video.overlay import draw_speakers, save_picture

    pipeline = TalkingVideoPipeline(job.files, job.options)
    inputs = pipeline.check(job.request)
    print(pipeline.engine.plan(workload_of_request(job.request, inputs), device).describe())
    print("\n".join(face_lines(inputs, len(job.request.speakers) if job.request.has_speech else 0)))
    if flags.preview is not None:
        fps = job.request.fps
        drawn = draw_speakers(inputs.references[0], inputs.speaker_masks, inputs.tracks, inputs.plan, fps)
        print(f"Who speaks where and when: {save_picture(drawn, flags.preview)}")
    return 0


def face_lines(inputs: Inputs, num_speakers: int) -> list[str]:
    """What speaks against the first picture, as it is fitted to the video."""
    import numpy as np

    from ..quality.faces import FaceMesh, doubts

    if not num_speakers:
        return ["Faces: nobody speaks."]
    try:
        mesh = FaceMesh()
    except UnsupportedError as error:
        return [f"Faces: not looked at: {error}"]
    picture = inputs.references[0].permute(1, 2, 0).float()
    levels = ((picture + 1) * 127.5).round().clamp(0, 255).byte().cpu().numpy()
    masks = None if inputs.speaker_masks is None else inputs.speaker_masks[:-1].cpu().numpy() > 0.5
    found = mesh.search(np.ascontiguousarray(levels))
    said = doubts(found, levels.shape[:2], masks, num_speakers)
    return [f"Faces: {line}" for line in said] or [f"Faces: {len(found)}, seen well."]
