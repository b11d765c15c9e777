"""The node that says how what a video begins from is followed: dubbed, cut into scenes, continued, or moved over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .nodes_base import CATEGORY, Node, advanced, checked, choice, flag, number, socket, whole
from .nodes_media import masks_of
from .nodes_video import VideoFile, video_file
from .wanvideo.errors import InputError
from .wanvideo.keep import (
    AUTO,
    DEFAULT_FEATHER,
    MAX_CRF,
    MAX_FEATHER,
    MAX_WINDOWS,
    SOURCE_ENDS,
    WHOLE,
    Camera,
    Keep,
    check_reanchor,
    crf_of,
)
from .wanvideo.runs.identity import digest_of
from .wanvideo.video.mask import Region, open_region, region_of
from .wanvideo.video.mouth import open_mesh
from .wanvideo.video.scenes import open_detector
from .wanvideo.video.source import SourceVideo

NOT_FOUND = "none"  # mouth: nobody looks for it


@dataclass(frozen=True)
class SourceOptions:
    """How a picture or a source video is followed (see request.TalkRequest).

    Args:
        keep_mask: [n, H, W] of the source video, one or one a frame: what is made anew, while the rest stays.
        keep: the same by mouths that are found, or by `mask_video`. Without any of them all is made anew.
        reanchor: of request.LoopSettings.
    """

    source_end: str = "hold"
    keep_mask: Tensor | None = None
    keep: Keep | None = None
    feather: int = DEFAULT_FEATHER
    scene_seg: bool = False
    camera: Camera | None = None
    crf: int | None = None
    reanchor: int = 0
    mask_video: VideoFile | None = None

    @property
    def is_dub(self) -> bool:
        return self.keep is not None or self.keep_mask is not None

    @property
    def file_crf(self) -> int:
        """x264's quality of the file."""
        return crf_of(self.crf, self.is_dub)

    def region(self, video: SourceVideo) -> Region | None:
        """Of a source video what is made anew; None: all of it."""
        if self.keep_mask is not None:
            return region_of(self.keep_mask, video, self.feather)
        trim = WHOLE if self.mask_video is None else self.mask_video.trim
        return None if self.keep is None else open_region(self.keep, video, trim)

    def check(self, has_video: bool, num_pictures: int) -> None:
        """Raises: InputError for what only a source video, or only a picture, can do."""
        changing = {
            "source_video": has_video, "camera_zoom": self.camera is not None,
            "several pictures in start_image": num_pictures > 1,
        }  # fmt: skip
        check_reanchor(self.reanchor, changing)
        for_videos = {
            "keep_mask": self.keep_mask is not None, "mask_video": self.mask_video is not None,
            "mouth": self.keep is not None and self.keep.mouth is not None, "scene_seg": self.scene_seg,
            "source_end": self.source_end != SOURCE_ENDS[0],
        }  # fmt: skip
        name = next((name for name, is_given in for_videos.items() if is_given), None)
        if name is not None and not has_video:
            raise InputError(
                f"{name} is for a source video, and a picture is connected. Connect source_video, or leave {name} out."
            )
        if self.camera is not None and has_video:
            raise InputError("camera_zoom moves over a still picture, and a video is connected. Set it to 1.")

    def identity(self) -> dict[str, str]:
        """What of it decides the frames, by name."""
        found = {name: str(getattr(self, name)) for name in ("source_end", "feather", "camera")}
        mouth = "" if self.keep is None else str(self.keep.mouth)
        found["keep"] = mouth if self.mask_video is None else self.mask_video.identity()
        return found | {"keep mask": digest_of(self.keep_mask)}


class WanVideoSourceOptions(Node):
    CATEGORY = f"{CATEGORY}/image"
    SEARCH_ALIASES = ["dub", "keep mask", "mouth", "scene detection", "loop", "ping pong", "camera", "crf"]
    REQUIRED = {
        "source_end": choice("hold", *SOURCE_ENDS),
        "mouth": choice(NOT_FOUND, NOT_FOUND, AUTO),
        "feather": whole(DEFAULT_FEATHER, 0, MAX_FEATHER),
        "scene_seg": flag(False),
        "crf": whole(-1, -1, MAX_CRF),
        "camera_zoom": advanced(number(1.0, 1.0, 2.0)),
        "camera_right": advanced(number(0.0, -1.0, 1.0)),
        "camera_down": advanced(number(0.0, -1.0, 1.0)),
        "camera_period": advanced(number(30.0, 1.0, 3600.0, 0.1)),
        "reanchor": advanced(whole(0, 0, MAX_WINDOWS)),
    }
    OPTIONAL = {"keep_mask": socket("MASK"), "mask_video": socket("VIDEO")}
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("WANVIDSOURCEOPTIONS",), ("source_options",), "process"

    @classmethod
    def VALIDATE_INPUTS(cls, mouth=None, scene_seg=None, keep_mask=False, mask_video=False):
        def check() -> None:
            known = cls.known(mouth=mouth)
            _check_region(known.get("mouth", NOT_FOUND), keep_mask is not False, mask_video is not False)
            _check_packages(known.get("mouth", NOT_FOUND), scene_seg is True)

        return checked(check)

    def process(
        self, source_end="hold", mouth=NOT_FOUND, feather=DEFAULT_FEATHER, scene_seg=False, crf=-1, camera_zoom=1.0,
        camera_right=0.0, camera_down=0.0, camera_period=30.0, reanchor=0, keep_mask=None, mask_video=None,
    ):  # fmt: skip
        _check_region(mouth, keep_mask is not None, mask_video is not None)
        _check_packages(mouth, scene_seg)
        keep = Keep(mouth=AUTO, feather=feather) if mouth == AUTO else None
        painted = None if keep_mask is None else masks_of(keep_mask, "keep_mask")
        masks = None if mask_video is None else video_file(mask_video)
        if masks is not None:
            keep = Keep(mask=str(masks.path), feather=feather)
        camera = Camera(camera_zoom, (camera_right, camera_down), camera_period) if camera_zoom > 1 else None
        quality = None if crf < 0 else crf
        return (SourceOptions(source_end, painted, keep, feather, scene_seg, camera, quality, reanchor, masks),)


def _check_region(mouth: str, *has_masks: bool) -> None:
    if (mouth == AUTO) + sum(has_masks) > 1:
        raise InputError(
            "What of the video is made anew is said more than once. Keep one of keep_mask, mask_video and mouth."
        )


def _check_packages(mouth: str, scene_seg: Any) -> None:
    """Raises: UnsupportedError where something is asked for whose package is missing."""
    if mouth == AUTO:
        open_mesh("mouth auto", ", or paint a mask")
    if scene_seg:
        open_detector()


NODES = (WanVideoSourceOptions,)
