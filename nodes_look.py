"""Nodes that show what a video will be before it is made, and adaptive projected guidance."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from .nodes_audio import MAX_FRAMES, say_if_cut, say_if_other_rate, speech_seconds
from .nodes_base import CATEGORY, Node, checked, choice, expect, flag, number, snapped, socket, text, whole
from .nodes_common import logger, output_folder, page_language, say, show_picture
from .nodes_media import masks_of, samples_of, size_of
from .nodes_messages import translate
from .nodes_model_loading import ANY_VAE, VideoModel, vae_of
from .nodes_options import OPTIONS, SCHEDULER
from .wanvideo.audio.load import from_array
from .wanvideo.audio.speech import Preparation, prepare_tracks
from .wanvideo.checkpoints.checkpoint import check_speakers
from .wanvideo.engine.conditioning import Workload
from .wanvideo.engine.forecast import forecast
from .wanvideo.engine.talk import audio_guidance_of
from .wanvideo.errors import InputError
from .wanvideo.geometry import FPS, VideoGeometry, WindowPlan, frames_of, snap_frames
from .wanvideo.request import Apg, LoopSettings
from .wanvideo.sampling.setup import SamplingSetup
from .wanvideo.video.drawn import numbers_of, order_of, ordered
from .wanvideo.video.overlay import draw_speakers
from .wanvideo.video.picture import fit_images
from .wanvideo.video.regions import box_region, left_to_right, point_regions, say_if_other_shape, stack_masks

LOOK = f"{CATEGORY}/look"
VOICES = {f"audio_{number}": socket("AUDIO") for number in range(1, 5)}
SIZE = {"width": whole(832, 64, 4096, 16), "height": whole(480, 64, 4096, 16)}
WINDOWS = {"frame_window_size": whole(81, 1, 10000, 4), "motion_frame": whole(25, 1, 10000)}
PLACEMENT = choice("para", "para", "add")


def _check_windows(node: type[Node], **numbers: Any) -> None:
    """width, height and those of windows, as far as they are known when a graph is queued."""
    known = node.known(**numbers)
    window = snap_frames(known.get("frame_window_size", 10_001))
    VideoGeometry(known.get("width", 64), known.get("height", 64), window)
    WindowPlan(1, window, snap_frames(known.get("motion_frame", 1)))


class WanVideoSpeakers(Node):
    """The picture as the model sees it, with everybody's number, region and voice, and the masks of the regions."""

    CATEGORY = LOOK
    SEARCH_ALIASES = ["speaker masks", "who speaks", "multitalk masks", "regions"]
    REQUIRED = {"image": socket("IMAGE"), **SIZE, **WINDOWS, "regions": text("", multiline=True), "order": text()}
    OPTIONAL = {**VOICES, "multi_audio_type": PLACEMENT, "masks": socket("MASK")}
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("IMAGE", "MASK"), ("preview", "masks"), "process"
    OUTPUT_NODE = True

    @classmethod
    def VALIDATE_INPUTS(
        cls, width=None, height=None, frame_window_size=None, motion_frame=None, regions=None, order=None, masks=False
    ):
        def check() -> None:
            _check_windows(
                cls, width=width, height=height, frame_window_size=frame_window_size, motion_frame=motion_frame
            )  # fmt: skip
            written = cls.known(regions=regions, order=order)
            if numbers_of(written.get("regions", "")) and masks is not False:
                raise InputError("regions are written, and masks are connected. Use one of both.")
            order_of(written.get("order", ""))

        return checked(check)

    def process(
        self, image, width=832, height=480, frame_window_size=81, motion_frame=25, regions="", order="", audio_1=None,
        audio_2=None, audio_3=None, audio_4=None, multi_audio_type="para", masks=None,
    ):  # fmt: skip
        given = {"audio_1": audio_1, "audio_2": audio_2, "audio_3": audio_3, "audio_4": audio_4}
        waves = {name: samples_of(audio, name) for name, audio in given.items() if audio is not None}
        sounds = [from_array(samples, rate, name) for name, (samples, rate) in waves.items()]
        size = size_of(image)
        found = _ordered_regions(_regions(regions, masks, len(sounds), *size), order)
        if len(sounds) > len(found):
            raise InputError(f"{len(sounds)} voices have {len(found)} regions. Give one for each, in their order.")
        tracks = None
        if sounds:
            tracks = prepare_tracks(
                [*sounds, *[None] * (len(found) - len(sounds))], multi_audio_type, Preparation(normalize_loudness=False)
            )  # fmt: skip
        seconds = speech_seconds([sound.duration_s for sound in sounds], multi_audio_type) if sounds else 0.0
        window = snapped("frame_window_size", frame_window_size)
        frames = frames_of(seconds, FPS) if sounds else window
        plan = WindowPlan(frames, window, snapped("motion_frame", motion_frame))
        say_if_other_shape(found, size, width, height)
        fitted = stack_masks([region.numpy() > 0.5 for region in found], width, height)
        drawn = draw_speakers(fit_images(image[:1], width, height)[0], fitted, tracks, plan, FPS)
        preview = torch.from_numpy(drawn.copy()).float()[None] / 255
        return {"ui": show_picture(drawn), "result": (preview, found)}


def _regions(regions: str, masks: Tensor | None, num_voices: int, width: int, height: int) -> Tensor:
    """[S, H, W] of everybody in pixels of the picture: masks, boxes, points, or parts from left to right."""
    rows = numbers_of(regions)
    if masks is not None:
        if rows:
            raise InputError("regions are written, and masks are connected. Use one of both.")
        return masks_of(masks, "masks")
    if not rows:
        found = left_to_right(max(2, num_voices), width, height)
    elif len(rows[0]) == 4:
        found = [
            box_region((row[0], row[1], row[2], row[3]), f"box of speaker {number}", width, height)
            for number, row in enumerate(rows, 1)
        ]
    else:
        found = point_regions([(row[0], row[1]) for row in rows], width, height)
    return torch.stack([torch.from_numpy(region).float() for region in found])


def _ordered_regions(regions: Tensor, order: str) -> Tensor:
    return torch.stack(ordered(list(regions), order))


class WanVideoPlan(Node):
    """What a video will need, from file headers and the sound's length; nothing is loaded."""

    CATEGORY = LOOK
    SEARCH_ALIASES = ["estimate", "how long", "memory", "vram", "plan"]
    REQUIRED = {
        "model": socket("WANVIDEOMODEL"),
        **SIZE,
        **WINDOWS,
        "num_frames": whole(0, 0, MAX_FRAMES),
        "steps": whole(30, 1, 1000),
        "cfg": number(6.0, 0.0, 30.0),
        "audio_cfg_scale": number(1.0, 0.0, 100.0),
        "shift": number(5.0, 0.0, 1000.0),
        "scheduler": SCHEDULER,
    }
    OPTIONAL = {
        **VOICES,
        "multi_audio_type": PLACEMENT,
        "fps": number(25.0, 1.0, 60.0, 0.1),
        "vae": socket(ANY_VAE),
        "tiled_vae": flag(False),
    }
    HIDDEN = {"unique_id": "UNIQUE_ID"}
    RETURN_TYPES, RETURN_NAMES = ("STRING", "INT", "INT"), ("plan", "num_frames", "num_windows")
    FUNCTION = "process"
    OUTPUT_NODE = True

    @classmethod
    def VALIDATE_INPUTS(
        cls, width=None, height=None, frame_window_size=None, motion_frame=None, steps=None, cfg=None,
        audio_cfg_scale=None, shift=None, fps=None, num_frames=None,
    ):  # fmt: skip
        def check() -> None:
            cls.known(
                steps=steps, cfg=cfg, audio_cfg_scale=audio_cfg_scale, shift=shift, fps=fps, num_frames=num_frames
            )  # fmt: skip
            _check_windows(
                cls, width=width, height=height, frame_window_size=frame_window_size, motion_frame=motion_frame
            )  # fmt: skip

        return checked(check)

    def process(
        self, model, width=832, height=480, frame_window_size=81, motion_frame=25, num_frames=0, steps=30, cfg=6.0,
        audio_cfg_scale=1.0, shift=5.0, scheduler="unipc", audio_1=None, audio_2=None, audio_3=None, audio_4=None,
        multi_audio_type="para", fps=25.0, vae=None, tiled_vae=False, unique_id=None,
    ):  # fmt: skip
        model = expect(model, VideoModel, "model")
        voices = [voice for voice in (audio_1, audio_2, audio_3, audio_4) if voice is not None]
        if voices:
            check_speakers(model.audio_checkpoint, len(voices))
        window, motion = snapped("frame_window_size", frame_window_size), snapped("motion_frame", motion_frame)
        settings = LoopSettings(
            mode=model.mode or "infinitetalk", window_frames=window, motion_frames=motion, scheduler=scheduler,
            steps=steps, shift=shift, guidance_scale=cfg, tiled_vae=tiled_vae,
            audio_guidance_scale=audio_guidance_of(audio_cfg_scale, cfg),
        )  # fmt: skip
        setup = SamplingSetup.of(settings, has_audio=bool(voices))
        with _Warnings() as warnings:
            say_if_other_rate(fps)
            frames = _num_frames(voices, multi_audio_type, num_frames, window, fps)
            windows = WindowPlan(frames, window, motion)
            workload = Workload(VideoGeometry(width, height, window), windows, fps, setup, len(voices), 1)
            engine = model.engine(vae and vae_of(vae))
            engine.check(workload)
            told = forecast(engine.plan(workload), output_folder())
        say(told, unique_id)  # warnings are there already
        return "\n".join([told, *warnings.lines]), frames, len(windows)


class _Warnings(logging.Handler):
    """What the library warns of while this is entered, in the page's language."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def __enter__(self) -> _Warnings:
        logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logger.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(translate(record.getMessage(), page_language()))


def _num_frames(voices: list[Any], placement: str, num_frames: int, window: int, fps: float) -> int:
    """Of the video: as long as the speech, or num_frames of it; without speech a window."""
    waves = [samples_of(voice, f"audio_{number}") for number, voice in enumerate(voices, 1)]
    durations = [samples.shape[-1] / rate for samples, rate in waves]
    if not durations:
        return num_frames or window
    say_if_cut(durations, placement, num_frames, fps)
    frames = frames_of(speech_seconds(durations, placement), fps)
    return min(frames, num_frames) if num_frames else frames


class WanVideoAPG(Node):
    CATEGORY = OPTIONS
    SEARCH_ALIASES = ["adaptive projected guidance", "apg", "oversaturation"]
    REQUIRED = {"momentum": number(-0.75, -1.0, 1.0), "norm_threshold": number(55.0, -1.0, 10000.0, 0.1)}
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("APGARGS",), ("apg_args",), "process"

    def process(self, momentum=-0.75, norm_threshold=55.0):
        return (Apg(momentum, norm_threshold),)


NODES = (WanVideoSpeakers, WanVideoPlan, WanVideoAPG)
