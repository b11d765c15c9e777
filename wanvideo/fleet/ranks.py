"""How the ranks of a group share a video: their layout, and whether each keeps a part of the weights."""

from __future__ import annotations

import logging

from ..engine.conditioning import workload_of_request
from ..models.transformer import HEAD_WIDTH
from ..parallel.layout import Plan, WantedRanks, choose_layout
from ..parallel.team import Team
from ..pipeline import TalkingVideoPipeline
from ..request import TalkRequest
from ..sampling.setup import SamplingSetup

logger = logging.getLogger("wanvideo")


def layout_for(pipeline: TalkingVideoPipeline, request: TalkRequest, wanted: WantedRanks, world: int) -> Plan:
    """The layout of a request's video. Raises: InputError where so many ranks cannot be split as they are wanted."""
    num_passes = len(SamplingSetup.of(request.settings, request.has_speech).passes)
    return choose_layout(wanted, world, pipeline.engine.weights.dim // HEAD_WIDTH, num_passes)


def join(pipeline: TalkingVideoPipeline, request: TalkRequest, wanted: WantedRanks, team: Team) -> None:
    """Have a pipeline make videos with the other ranks from now on; the first one says whether weights are sharded."""
    shard = wanted.shard
    if wanted.is_auto and not shard:
        workload, size = workload_of_request(request, pipeline.check(request)), team.mesh.sequence.size
        shard = team.agree(pipeline.engine.prefers_shards(workload, size))
        if shard and team.index == 0:
            logger.info("Each of %d GPUs keeps a part of every block, since whole ones would have to stream.", size)
    pipeline.engine.join(team, shard)
