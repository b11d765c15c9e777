"""What a request shows: a still picture, or a source video that is followed, cut into scenes, or dubbed.

Legend: H W pixel rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import InputError
from ..geometry import WindowPlan
from ..keep import check_reanchor
from ..protocols import References, SourceFrames
from ..request import TalkRequest
from ..video.mask import DubSource, Region, open_region
from ..video.picture import fit, load_picture
from ..video.reader import is_video
from ..video.scenes import find_cuts
from ..video.source import CameraReferences, SourceReferences, SourceVideo


@dataclass(frozen=True)
class Pictures:
    """What a video begins from. references: [3, H, W] in -1..1 for each window, read when asked for, or one for all.
    source: a video of which parts are kept, or None. plan: all windows, with its cuts."""

    references: References
    source: SourceFrames | None
    plan: WindowPlan


def open_source(request: TalkRequest, width: int, height: int) -> SourceVideo | None:
    """The source video of a request, for a result of width x height; None for a still picture.

    Raises: InputError when it cannot be read, or for what a video alone or a picture alone can do.
    """
    if not is_video(request.reference):
        _only_with_video(request)
        return None
    if request.camera is not None:
        raise InputError(f"camera moves over a still picture, and {request.reference} is a video. Leave camera out.")
    check_reanchor(request.settings.reanchor, {"a source video": True})
    return SourceVideo(request.reference, width, height, request.fps, request.source_end)


def open_pictures(
    request: TalkRequest, video: SourceVideo | None, width: int, height: int, plan: WindowPlan
) -> Pictures:
    """What a request shows. Args: video: its source. plan: as long as the result, without cuts.

    Raises: InputError when it cannot be read.
    """
    if video is None:
        picture = load_picture(request.reference)
        if request.camera is None:
            return Pictures([fit(picture, width, height)], None, plan)
        return Pictures(CameraReferences(picture, request.camera, width, height, plan, request.fps), None, plan)
    keep = request.keep
    region = None if keep is None else open_region(keep, video)
    return follow(video, plan, request.fps, request.scene_seg, region)


def follow(
    video: SourceVideo, plan: WindowPlan, fps: float, scene_seg: bool, region: Region | None
) -> Pictures:  # fmt: skip
    """A source video as what a result is made after.

    Args: plan: as long as the result, without cuts; scene_seg: whether the source's are put in.
        region: what is made anew, while the rest of the source is kept; None: all is.
    """
    if scene_seg:
        plan = replace(plan, cuts=find_cuts(video, plan.total_frames or 0, fps))
    return Pictures(SourceReferences(video, plan), None if region is None else DubSource(video, region), plan)


def _only_with_video(request: TalkRequest) -> None:
    given = {
        "keep": request.keep is not None,
        "scene_seg": request.scene_seg,
        "source_end": request.source_end != "hold",
    }
    for name, is_given in given.items():
        if is_given:
            raise InputError(
                f"{name} is for a source video, and {request.reference} is a still picture. "
                f"Name a video as the reference, or leave {name} out."
            )
