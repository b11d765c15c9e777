"""`generate` as one of the ranks that torchrun started: the first one writes and reports, all compute."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch

from ..fleet.ranks import join, layout_for
from ..parallel.launch import Place, joined
from ..pipeline import TalkingVideoPipeline
from ..text.cache import user_cache
from .generate import Job
from .progress import Progress

logger = logging.getLogger("wanvideo")


def generate_together(job: Job, place: Place) -> int:
    """Make a video on all ranks. Raises: InputError where the ranks cannot be split as they are wanted."""
    if place.rank:
        logger.setLevel(logging.WARNING)
    request, options = job.request, replace(job.options, device=place.device(job.options.device))
    pipeline = TalkingVideoPipeline(job.files, options, user_cache())
    pipeline.check(request)
    plan = layout_for(pipeline, request, job.ranks, place.world)
    with joined(plan.layout, torch.device(options.device or "cpu")) as team:
        logger.info("%d GPUs: %s, since %s.", place.world, plan.layout.describe(), plan.reason)
        join(pipeline, request, job.ranks, team)
        if team.index:
            pipeline.assist(request)
            return 0
        with Progress() as progress:
            path = pipeline.generate(
                request, overwrite=job.overwrite, on_step=progress.step, resume=job.resume, is_named=job.is_named
            )
        print(path)
    return 0
