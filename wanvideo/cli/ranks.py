"""`generate` as one of the ranks that torchrun started: the first one writes and reports, all compute."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch

from ..fleet.ranks import join, layout_for
from ..parallel.launch import Place, joined
from ..parallel.layout import WantedRanks
from ..pipeline import TalkingVideoPipeline
from ..request import EngineOptions, ModelFiles, TalkRequest
from ..text.cache import user_cache
from .progress import Progress

logger = logging.getLogger("wanvideo")


def generate_together(
    request: TalkRequest, files: ModelFiles, options: EngineOptions, wanted: WantedRanks, place: Place,
    overwrite: bool, resume: str, is_named: bool,
) -> int:  # fmt: skip
    """Make a video on all ranks. Raises: InputError where the ranks cannot be split as they are wanted."""
    if place.rank:
        logger.setLevel(logging.WARNING)
    options = replace(options, device=place.device(options.device))
    pipeline = TalkingVideoPipeline(files, options, user_cache())
    pipeline.check(request)
    plan = layout_for(pipeline, request, wanted, place.world)
    with joined(plan.layout, torch.device(options.device or "cpu")) as team:
        logger.info("%d GPUs: %s, since %s.", place.world, plan.layout.describe(), plan.reason)
        join(pipeline, request, wanted, team)
        if team.index:
            pipeline.assist(request)
            return 0
        with Progress() as progress:
            path = pipeline.generate(
                request, overwrite=overwrite, on_step=progress.step, resume=resume, is_named=is_named
            )  # fmt: skip
        print(path)
    return 0
