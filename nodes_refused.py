"""Nodes of WanVideoWrapper that only feed inputs which this pack refuses, so that a graph with them gets an answer.

They have no inputs, appear in no menu, and are there only where that pack is not.
"""

from __future__ import annotations

from .nodes_base import Node, checked
from .wanvideo.errors import UnsupportedError

# Their id -> (what they give, what to do instead).
LONG = "talking videos of any length need none: WanVideoImageToVideoMultiTalk continues window by window"
KINDS = {
    "WanVideoContextOptions": ("WANVIDCONTEXT", LONG),
    "WanVideoLoopArgs": ("LOOPARGS", "remove it, the video then does not loop"),
    "WanVideoFreeInitArgs": ("FREEINITARGS", "remove it and take more steps"),
    "WanVideoEnhanceAVideo": ("FETAARGS", "remove it and take more steps"),
    "WanVideoUni3C_ControlnetLoader": ("WANVIDEOCONTROLNET", "remove it and say in the prompt how the camera moves"),
    "WanVideoUni3C_embeds": ("UNI3C_EMBEDS", "remove it and say in the prompt how the camera moves"),
    "WanVideoUniAnimatePoseInput": ("UNIANIMATE_POSE", "for given movements link a video to source_video"),
    "FantasyTalkingModelLoader": ("FANTASYTALKINGMODEL", "for speech use MultiTalkModelLoader"),
    "FantasyTalkingWav2VecEmbeds": ("FANTASYTALKING_EMBEDS", "for speech use MultiTalkWav2VecEmbeds"),
    "FantasyPortraitModelLoader": ("FANTASYPORTRAITMODEL", "for speech use MultiTalkModelLoader"),
    "WanVideoVACEModelSelect": ("VACEPATH", "remove it, and use WanVideoImageToVideoMultiTalk for the picture"),
    "WanVideoExtraModelSelect": ("VACEPATH", "remove it, and use MultiTalkModelLoader for the audio adapter"),
    "WanVideoPromptExtenderSelect": ("WANVIDEOPROMPTEXTENDER_ARGS", "remove it and write the whole prompt"),
    "WanVideoLoraBlockEdit": ("SELECTEDBLOCKS", "remove it, the LoRA then changes all blocks"),
}


class RefusedNode(Node):
    """Refuses a graph when it is queued."""

    DEPRECATED = True
    HIDDEN = {"unique_id": "UNIQUE_ID"}
    FUNCTION = "refuse"

    @classmethod
    def VALIDATE_INPUTS(cls, unique_id=None):
        return checked(cls._refuse)

    @classmethod
    def _refuse(cls) -> None:
        raise UnsupportedError(f"{cls.__name__} is not supported by this pack: {KINDS[cls.__name__][1]}.")

    def refuse(self, unique_id=None):
        self._refuse()


def _refused(name: str) -> type[RefusedNode]:
    kind, instead = KINDS[name]
    refused = type(name, (RefusedNode,), {"RETURN_TYPES": (kind,), "RETURN_NAMES": (kind.lower(),)})
    assert issubclass(refused, RefusedNode)
    refused.DESCRIPTION = f"Not supported: {instead}."
    return refused


NODES = tuple(_refused(name) for name in KINDS)
