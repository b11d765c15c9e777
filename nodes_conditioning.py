"""Nodes that encode pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from .nodes_base import (
    CATEGORY,
    Node,
    advanced,
    checked,
    choice,
    expect,
    flag,
    number,
    refuse,
    snapped,
    socket,
    text,
    unsupported,
    whole,
)
from .nodes_files import folder_inside
from .nodes_media import masks_of, size_of
from .nodes_model_loading import ANY_VAE, ClipEncoder, run_vae, vae_of
from .nodes_source import SourceOptions
from .nodes_video import VideoFile, video_file
from .wanvideo.engine.encoders import encode_images, encode_references
from .wanvideo.engine.host import ModelHandle
from .wanvideo.engine.pictures import Pictures, follow
from .wanvideo.errors import InputError
from .wanvideo.geometry import SIZE_BUCKETS, VideoGeometry, WindowPlan, bucket_size, snap_frames
from .wanvideo.models.clip_vision import encode_tiled
from .wanvideo.models.vae_tiling import Tiling
from .wanvideo.protocols import References
from .wanvideo.request import COLOR_METHODS
from .wanvideo.runs.identity import digest_of
from .wanvideo.sampling.clip import picture_condition
from .wanvideo.video.picture import fit_images
from .wanvideo.video.reader import picture_size
from .wanvideo.video.source import CameraReferences, SourceVideo, to_bytes
from .wanvideo.video.writer import check_output, free_name

IMAGE, SAMPLING, OUTPUT = (f"{CATEGORY}/{name}" for name in ("image", "sampling", "output"))


MODES = ("auto", "multitalk", "infinitetalk")


COLOR_WIDGET = ("disabled", *(name for name in COLOR_METHODS if name not in ("disabled", "lab")), "lab")


CUSTOM = "custom"  # size: width and height as they are given


NUM_FRAMES = whole(81, 1, 10000, 4)


@dataclass(frozen=True)
class ClipEmbeds:
    """tokens [1 or R, 257, dim] of the reference pictures."""

    tokens: Tensor


@dataclass(frozen=True)
class TalkingPicture:
    """What a talking video of any length is made of beside its speech.

    Args:
        picture_size: width and height before it was fitted.
        references: [R, 3, H, W] in -1..1, or None for a source video. video: that video.
        clip: what CLIP saw, or None. encode: pictures [1, 3, H, W] through CLIP, where it sees a source video.
        source: how picture or video is followed. picture: [H, W, 3] in 0..1, the whole one, where a camera moves.
    """

    vae: ModelHandle
    width: int
    height: int
    picture_size: tuple[int, int]
    references: Tensor | None
    video: VideoFile | None
    window_frames: int
    motion_frames: int
    mode: str
    color_match: str
    color_strength: float
    tiled_vae: bool
    clip: ClipEmbeds | None
    encode: Callable[[Tensor], Tensor] | None
    folder: Path | None
    source: SourceOptions = field(default_factory=SourceOptions)
    picture: Tensor | None = None

    def pictures(self, num_frames: int, fps: float) -> Pictures:
        """What a video of so many frames is made after; its plan has fewer where the source ends it."""
        video, options = None, self.source
        if self.video is not None:
            video = SourceVideo(self.video.path, self.width, self.height, fps, options.source_end, self.video.trim)
            num_frames = min(num_frames, video.frame_limit or num_frames)
        plan = WindowPlan(num_frames, self.window_frames, self.motion_frames)
        if video is not None:
            return follow(video, plan, fps, options.scene_seg, options.region(video))
        if self.picture is None or options.camera is None:
            return Pictures(list(self._drawn()), None, plan)
        picture = to_bytes(self.picture * 2 - 1).cpu().numpy()
        return Pictures(CameraReferences(picture, options.camera, self.width, self.height, plan, fps), None, plan)

    def _drawn(self) -> Tensor:
        """The references where no source video has them."""
        assert self.references is not None, "only a source video goes without"
        return self.references

    @property
    def reanchor(self) -> int:
        return self.source.reanchor

    def identity(self) -> dict[str, str]:
        """What decides the references and what is kept, by name."""
        known = self.video.identity() if self.video else digest_of(*self._drawn(), self.picture)
        return {"reference": known, **self.source.identity()}

    def image_embeds(self, pictures: References) -> References | None:
        """[1 or R, 257, dim]."""
        if self.clip is not None:
            return self.clip.tokens
        return None if self.encode is None else encode_references(self.encode, pictures)


@dataclass(frozen=True)
class PlainClip:
    """One clip of a given size, with the settings of a `TalkingPicture` that suit a clip.

    Args: condition: [20, T, H/8, W/8], or None where nothing is known.
    """

    mode: ClassVar[str] = "auto"
    motion_frames: ClassVar[int] = 1
    color_match: ClassVar[str] = "disabled"
    color_strength: ClassVar[float] = 1.0
    tiled_vae: ClassVar[bool] = False
    reanchor: ClassVar[int] = 0

    geometry: VideoGeometry
    condition: Tensor | None
    clip: ClipEmbeds | None

    @property
    def window_frames(self) -> int:
        return self.geometry.num_frames


class WanVideoClipVisionEncode(Node):
    CATEGORY = IMAGE
    SEARCH_ALIASES = ["clip vision", "image embeds"]
    REQUIRED = {
        "clip_vision": socket("CLIP_VISION"),
        "image_1": socket("IMAGE"),
        "strength_1": number(1.0, 0.0, 10.0, 0.001),
        "strength_2": number(1.0, 0.0, 10.0, 0.001),
        "crop": choice("center", "center", "disabled"),
        "combine_embeds": choice("average", "average", "sum", "concat", "batch"),
        "force_offload": flag(True),
    }
    OPTIONAL = {
        "image_2": socket("IMAGE"),
        "negative_image": unsupported("IMAGE"),
        "tiles": whole(0, 0, 16, 2),
        "ratio": number(0.5, 0.0, 1.0),
    }
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("WANVIDIMAGE_CLIPEMBEDS",), ("image_embeds",), "process"

    def process(
        self, clip_vision, image_1, strength_1=1.0, strength_2=1.0, crop="center", combine_embeds="average",
        force_offload=True, image_2=None, negative_image=None, tiles=0, ratio=0.5,
    ):  # fmt: skip
        refuse(negative_image=negative_image)
        encode = _clip_encoder(clip_vision, crop)
        embeds = []
        with torch.inference_mode():
            for image, strength in ((image_1, strength_1), (image_2, strength_2)):
                if image is not None:
                    tokens = encode_tiled(encode, image, tiles, ratio) if tiles > 1 else encode(image)
                    embeds.append(tokens * strength)
        if force_offload and isinstance(clip_vision, ClipEncoder):
            clip_vision.handle.offload()
        return (ClipEmbeds(_combined(embeds, combine_embeds)),)

    def encode(self, clip_vision, image):
        """process under the name that scripts use."""
        return self.process(clip_vision, image)


def _clip_encoder(clip_vision: Any, crop: str) -> Callable[[Tensor], Tensor]:
    if isinstance(clip_vision, ClipEncoder):
        return lambda images: clip_vision.tokens(images, crop)
    if not hasattr(clip_vision, "encode_image"):
        expect(clip_vision, ClipEncoder, "clip_vision")
    crop = "center" if crop == "center" else "none"
    return lambda images: clip_vision.encode_image(images[..., :3], crop=crop)["penultimate_hidden_states"]


def _clip_of_pictures(clip_vision: Any) -> Callable[[Tensor], Tensor]:
    """pictures [R, 3, H, W] in -1..1 -> [R, 257, dim], seen as a whole."""
    if isinstance(clip_vision, ClipEncoder):
        return clip_vision.encode
    encode = _clip_encoder(clip_vision, "none")
    return lambda pictures: encode((pictures.movedim(1, -1) + 1) / 2)


def _combined(embeds: list[Tensor], how: str) -> Tensor:
    if len(embeds) == 1:
        return embeds[0]
    if how != "batch" and len(embeds[0]) != len(embeds[1]):
        raise InputError(
            f"image_1 holds {len(embeds[0])} pictures and image_2 {len(embeds[1])}: {how} needs as many. "
            "Use batch, or the same number."
        )
    if how in ("concat", "batch"):
        return torch.cat(embeds, 1 if how == "concat" else 0)
    total = embeds[0] + embeds[1]
    return total / 2 if how == "average" else total


class WanVideoImageToVideoMultiTalk(Node):
    CATEGORY = IMAGE
    SEARCH_ALIASES = ["talking video", "infinitetalk", "multitalk", "lip sync", "long video"]
    REQUIRED = {
        "vae": socket(ANY_VAE),
        "width": whole(832, 64, 4096, 16),
        "height": whole(480, 64, 4096, 16),
        "frame_window_size": NUM_FRAMES,
        "motion_frame": whole(25, 1, 10000),
        "force_offload": flag(False),
        "colormatch": choice("disabled", *COLOR_WIDGET),
    }
    OPTIONAL = {
        "start_image": socket("IMAGE"),
        "tiled_vae": flag(False),
        "clip_embeds": socket("WANVIDIMAGE_CLIPEMBEDS"),
        "mode": choice("auto", *MODES),
        "output_path": text(),
        "colormatch_strength": number(1.0, 0.0, 1.0),
        "clip_vision": socket("CLIP_VISION"),
        "source_video": socket("VIDEO"),
        "keep_mask": socket("MASK"),
        "size": choice(CUSTOM, CUSTOM, *SIZE_BUCKETS),
        "source_options": socket("WANVIDSOURCEOPTIONS"),
    }
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("WANVIDIMAGE_EMBEDS", "STRING"), ("image_embeds", "output_path"), "process"

    @classmethod
    def VALIDATE_INPUTS(
        cls, width=None, height=None, frame_window_size=None, motion_frame=None, output_path=None,
        colormatch_strength=None, start_image=False, source_video=False, clip_embeds=False, clip_vision=False,
        keep_mask=False, size=None,
    ):  # fmt: skip
        def check() -> None:
            known = cls.known(
                width=width, height=height, frame_window_size=frame_window_size, motion_frame=motion_frame,
                colormatch_strength=colormatch_strength, size=size,
            )  # fmt: skip
            _check_sources(start_image is not False, source_video is not False, keep_mask is not False)
            _check_clip(clip_embeds is not False, clip_vision is not False)
            window = snap_frames(known.get("frame_window_size", 10_001))
            if known.get("size", CUSTOM) == CUSTOM:
                VideoGeometry(known.get("width", 64), known.get("height", 64), window)
            WindowPlan(1, window, snap_frames(known.get("motion_frame", 1)))
            folder_inside(output_path or "")

        return checked(check)

    def process(
        self, vae, width=832, height=480, frame_window_size=81, motion_frame=25, force_offload=False,
        colormatch="disabled", start_image=None, tiled_vae=False, clip_embeds=None, mode="auto", output_path="",
        colormatch_strength=1.0, clip_vision=None, source_video=None, keep_mask=None, size=CUSTOM,
        source_options=None,
    ):  # fmt: skip
        _check_sources(start_image is not None, source_video is not None, keep_mask is not None)
        options = _with_mask(source_options and expect(source_options, SourceOptions, "source_options"), keep_mask)
        options.check(source_video is not None, 0 if start_image is None else len(start_image))
        _check_clip(clip_embeds is not None, clip_vision is not None)
        window = snapped("frame_window_size", frame_window_size)
        motion = snapped("motion_frame", motion_frame)
        video = None if source_video is None else video_file(source_video)
        picture = picture_size(video.path) if video else size_of(start_image)
        if size != CUSTOM:
            width, height = bucket_size(size, *picture)
        VideoGeometry(width, height, window)
        WindowPlan(1, window, motion)
        folder = folder_inside(output_path)
        if folder:
            check_output(free_name(folder / "talking_video.mp4"))
        clip = clip_embeds and expect(clip_embeds, ClipEmbeds, "clip_embeds")
        encoder, encode = vae_of(vae), clip_vision and _clip_of_pictures(clip_vision)
        references = None if video else fit_images(start_image, width, height)
        moving = None if video or options.camera is None else _only_one(start_image)
        if references is not None and moving is None and encode:
            clip, encode = ClipEmbeds(encode_images(encode, references)), None
        talking = TalkingPicture(
            encoder, width, height, picture, references, video, window, motion, mode,
            colormatch, colormatch_strength, tiled_vae, clip, encode, folder, options, moving,
        )  # fmt: skip
        return talking, str(folder or "")


def _check_sources(has_picture: bool, has_video: bool, has_mask: bool) -> None:
    if has_picture == has_video:
        raise InputError(
            "A talking video needs to see who speaks. Connect start_image (a picture) or source_video, one of both."
        )
    if has_mask and not has_video:
        raise InputError("keep_mask says what of a video is made anew. Connect source_video, or leave it out.")


def _with_mask(options: SourceOptions | None, keep_mask: Tensor | None) -> SourceOptions:
    options = options or SourceOptions()
    if keep_mask is not None and options.is_dub:
        raise InputError("keep_mask and source_options both say what of the video is made anew. Keep one of them.")
    return options if keep_mask is None else replace(options, keep_mask=masks_of(keep_mask, "keep_mask"))


def _only_one(images: Tensor) -> Tensor:
    """[H, W, 3] of pictures [1, H, W, C] that a camera moves over."""
    if len(images) != 1:
        raise InputError(f"start_image has {len(images)} pictures, and camera_zoom moves over one. Connect one.")
    return images[0, ..., :3]


def _check_clip(has_embeds: bool, has_model: bool) -> None:
    if has_embeds and has_model:
        raise InputError("clip_embeds and clip_vision are both connected. Keep clip_vision: it sees what is sampled.")


def _check_size(known: dict[str, Any]) -> None:
    """Of a plain clip, as far as its numbers are known when a graph is queued."""
    VideoGeometry(known.get("width", 64), known.get("height", 64), snap_frames(known.get("num_frames", 1)))


class WanVideoImageToVideoEncode(Node):
    CATEGORY = IMAGE
    SEARCH_ALIASES = ["image to video", "i2v"]
    REQUIRED = {
        "width": whole(832, 64, 8096, 16),
        "height": whole(480, 64, 8096, 16),
        "num_frames": NUM_FRAMES,
        "noise_aug_strength": advanced(number(0.0, 0.0, 10.0, 0.001)),
        "start_latent_strength": number(1.0, 0.0, 10.0, 0.001),
        "end_latent_strength": number(1.0, 0.0, 10.0, 0.001),
        "force_offload": flag(True),
    }
    OPTIONAL = {
        "vae": socket(ANY_VAE),
        "clip_embeds": socket("WANVIDIMAGE_CLIPEMBEDS"),
        "start_image": socket("IMAGE"),
        "end_image": socket("IMAGE"),
        "control_embeds": unsupported("WANVIDIMAGE_EMBEDS"),
        "fun_or_fl2v_model": advanced(flag(True)),
        "temporal_mask": unsupported("MASK"),
        "extra_latents": unsupported("LATENT"),
        "tiled_vae": flag(False),
        "add_cond_latents": unsupported("ADD_COND_LATENTS"),
        "augment_empty_frames": advanced(number(0.0, 0.0, 10.0)),
        "empty_frame_pad_image": unsupported("IMAGE"),
    }
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("WANVIDIMAGE_EMBEDS",), ("image_embeds",), "process"

    @classmethod
    def VALIDATE_INPUTS(
        cls, width=None, height=None, num_frames=None, noise_aug_strength=None, start_latent_strength=None,
        end_latent_strength=None, augment_empty_frames=None,
    ):  # fmt: skip
        def check() -> None:
            refuse(noise_aug_strength=noise_aug_strength or None, augment_empty_frames=augment_empty_frames or None)
            known = cls.known(
                width=width, height=height, num_frames=num_frames, start_latent_strength=start_latent_strength,
                end_latent_strength=end_latent_strength,
            )  # fmt: skip
            _check_size(known)

        return checked(check)

    def process(
        self, width=832, height=480, num_frames=81, noise_aug_strength=0.0, start_latent_strength=1.0,
        end_latent_strength=1.0, force_offload=True, vae=None, clip_embeds=None, start_image=None, end_image=None,
        control_embeds=None, fun_or_fl2v_model=True, temporal_mask=None, extra_latents=None, tiled_vae=False,
        add_cond_latents=None, augment_empty_frames=0.0, empty_frame_pad_image=None,
    ):  # fmt: skip
        refuse(
            control_embeds=control_embeds, temporal_mask=temporal_mask, extra_latents=extra_latents,
            add_cond_latents=add_cond_latents, empty_frame_pad_image=empty_frame_pad_image,
            augment_empty_frames=augment_empty_frames or None, noise_aug_strength=noise_aug_strength or None,
        )  # fmt: skip
        geometry = VideoGeometry(width, height, snapped("num_frames", num_frames))
        clip = clip_embeds and expect(clip_embeds, ClipEmbeds, "clip_embeds")
        if start_image is None and end_image is None:
            return (PlainClip(geometry, None, clip),)
        encoder = vae_of(vae)
        start, end = (
            None if images is None else fit_images(images, width, height).transpose(0, 1)
            for images in (start_image, end_image)
        )
        condition = run_vae(
            encoder, (width, height, geometry.num_frames), Tiling.default() if tiled_vae else None,
            lambda vae, tiles: picture_condition(
                vae, geometry, start, end, tiles, start_latent_strength, end_latent_strength
            ),
        )  # fmt: skip
        if force_offload:
            encoder.offload()
        return (PlainClip(geometry, condition.cpu(), clip),)


class WanVideoEmptyEmbeds(Node):
    CATEGORY = IMAGE
    SEARCH_ALIASES = ["text to video", "t2v"]
    REQUIRED = {"width": whole(832, 64, 8096, 16), "height": whole(480, 64, 8096, 16), "num_frames": NUM_FRAMES}
    OPTIONAL = {"control_embeds": unsupported("WANVIDIMAGE_EMBEDS"), "extra_latents": unsupported("LATENT")}
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("WANVIDIMAGE_EMBEDS",), ("image_embeds",), "process"

    @classmethod
    def VALIDATE_INPUTS(cls, width=None, height=None, num_frames=None):
        return checked(lambda: _check_size(cls.known(width=width, height=height, num_frames=num_frames)))

    def process(self, width=832, height=480, num_frames=81, control_embeds=None, extra_latents=None):
        refuse(control_embeds=control_embeds, extra_latents=extra_latents)
        return (PlainClip(VideoGeometry(width, height, snapped("num_frames", num_frames)), None, None),)


NODES = (
    WanVideoClipVisionEncode,
    WanVideoImageToVideoMultiTalk,
    WanVideoImageToVideoEncode,
    WanVideoEmptyEmbeds,
)
