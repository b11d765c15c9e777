"""What a user asks for, as frozen data: no torch, no files opened here.

`TalkRequest` is one video. It is read from and written to JSON in two forms: our own (`from_json`, every field by its
name) and the job files of MultiTalk / InfiniteTalk (`from_job`).
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import InputError, UnsupportedError
from .geometry import DEFAULT_OVERLAP, DEFAULT_WINDOW, FPS, WindowPlan, parse_size
from .keep import SOURCE_ENDS, Camera, Keep

MODES = ("infinitetalk", "multitalk")
AUDIO_TYPES = ("para", "add")
COLOR_METHODS = ("disabled", "mkl", "hm", "reinhard", "mvgd", "hm-mvgd-hm", "hm-mkl-hm", "lab")
DTYPES = ("bf16", "fp16", "fp32")
QUANTIZERS = ("fp8", "int8", "fp4")
COMPILE_MODES = ("default", "max-autotune-no-cudagraphs", "max-autotune", "reduce-overhead")
CACHES = ("teacache", "magcache", "easycache")
MAX_SPEAKERS = 6
NEGATIVE_PROMPT = (
    "bright tones, overexposed, static, blurred details, subtitles, style, works, paintings, images, static, "
    "overall gray, worst quality, low quality, JPEG compression residue, ugly, incomplete, extra fingers, "
    "poorly drawn hands, poorly drawn faces, deformed, disfigured, misshapen limbs, fused fingers, still picture, "
    "messy background, three legs, many people in the background, walking backwards"
)


@dataclass(frozen=True)
class Speaker:
    """One person in the picture.

    Args:
        audio: path of a sound or video file; None for a person who never speaks.
        box: row_min, col_min, row_max, col_max in pixels of the reference picture, or None.
        mask: path of a picture that is white where the person is, or None.
    """

    audio: str | None
    box: tuple[int, int, int, int] | None = None
    mask: str | None = None


@dataclass(frozen=True)
class Apg:
    """Adaptive projected guidance: `momentum` of the running difference, `norm_threshold` (0 or less: no clamp)."""

    momentum: float = -0.75
    norm_threshold: float = 55.0


@dataclass(frozen=True)
class StepCache:
    """Skips the blocks in steps whose result would barely change.

    Args:
        kind: teacache, magcache or easycache.
        threshold: how much accumulated change is tolerated, above 0.
        start_step, end_step: the steps [start, end) in which it may skip; end -1 means up to the end.
        coefficients: the table of numbers measured at "480" or "720", or "auto": by the size of the picture.
        max_skips: magcache: consecutive steps it may skip.
        offload: keep what is cached in host memory.
    """

    kind: str = "teacache"
    threshold: float = 0.2
    start_step: int = 1
    end_step: int = -1
    coefficients: str = "auto"
    max_skips: int = 4
    offload: bool = False

    def __post_init__(self) -> None:
        _choice("step_cache.kind", self.kind, CACHES)
        _choice("step_cache.coefficients", self.coefficients, ("auto", "480", "720"))
        _number("step_cache.threshold", self.threshold, 1e-6, 100)
        _number("step_cache.start_step", self.start_step, 0, 10_000, whole=True)
        _number("step_cache.end_step", self.end_step, -1, 10_000, whole=True)
        _number("step_cache.max_skips", self.max_skips, 0, 1000, whole=True)


@dataclass(frozen=True)
class SkipLayers:
    """Blocks left out of the passes without the prompt, between two fractions of the schedule."""

    blocks: tuple[int, ...]
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        _number("skip_layers.start", self.start, 0, 1)
        _number("skip_layers.end", self.end, 0, 1)


@dataclass(frozen=True)
class LoopSettings:
    """How every window of a video is sampled.

    Args:
        mode: infinitetalk (fixed reference, clean motion latents) or multitalk (the last frames are the condition).
        window_frames, motion_frames: frames a window samples, and how many of them repeat the previous one; 4n + 1.
        scheduler, steps, shift: name, number of steps and time shift of the noise schedule.
        guidance_scale, audio_guidance_scale: 1 means none; a pass that neither needs is not run.
        audio_scale: factor on the audio attention's output.
        apg: adaptive projected guidance instead of plain differences.
        start_step, end_step: part of the schedule to run (-1: to its end); floats are noise levels, not indices.
        denoise_strength: below 1 the source video's latents keep that much less noise.
        add_noise_to_samples: noise the source video's latents to the first step instead of taking them as they are.
        sigmas: noise levels of one's own in place of the scheduler's.
        color_match, color_strength: method (see COLOR_METHODS) and 0..1 strength of matching to the reference.
        tiled_vae: encode and decode in overlapping tiles, for less memory.
        step_cache, skip_layers: less work in some steps; off by default.
    """

    mode: str = "infinitetalk"
    window_frames: int = DEFAULT_WINDOW
    motion_frames: int = DEFAULT_OVERLAP
    scheduler: str = "multitalk"
    steps: int = 40
    shift: float = 7.0
    guidance_scale: float = 5.0
    audio_guidance_scale: float = 4.0
    audio_scale: float = 1.0
    apg: Apg | None = None
    start_step: int | float = 0
    end_step: int | float = -1
    denoise_strength: float = 1.0
    add_noise_to_samples: bool = False
    sigmas: tuple[float, ...] | None = None
    color_match: str = "disabled"
    color_strength: float = 1.0
    tiled_vae: bool = False
    step_cache: StepCache | None = None
    skip_layers: SkipLayers | None = None

    def __post_init__(self) -> None:
        _choice("mode", self.mode, MODES)
        _choice("color_match", self.color_match, COLOR_METHODS)
        _number("steps", self.steps, 1, 1000, whole=True)
        _number("shift", self.shift, 0.01, 1000)
        _number("guidance_scale", self.guidance_scale, 0, 100)
        _number("audio_guidance_scale", self.audio_guidance_scale, 0, 10000)
        _number("audio_scale", self.audio_scale, 0, 100)
        _number("denoise_strength", self.denoise_strength, 0, 1)
        _number("color_strength", self.color_strength, 0, 1)
        WindowPlan(1, self.window_frames, self.motion_frames)


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file and its strength, one number or one for each step."""

    path: str
    strength: float | tuple[float, ...] = 1.0


@dataclass(frozen=True)
class ModelFiles:
    """Paths of the models of a run; what is None is looked for in `folder` (an official Wan2.1-I2V-14B folder)."""

    transformer: str
    adapter: str | None = None
    folder: str | None = None
    vae: str | None = None
    text_encoder: str | None = None
    tokenizer: str | None = None
    clip_vision: str | None = None
    wav2vec: str | None = None
    loras: tuple[LoraFile, ...] = ()


@dataclass(frozen=True)
class EngineOptions:
    """How the models are held and computed; none of it changes what a video shows beyond rounding.

    Args:
        device: torch device; None: the GPU if there is one.
        dtype: bf16, fp16 or fp32, in which everything is computed that is not quantized.
        text_encoder_device: where the prompt is encoded; None: as device.
        quantize: fp8, int8 or fp4 for the matrices of the transformer's and the text encoder's blocks that are stored
            as plain numbers, fp8 for the latter in place of fp4; None: as stored.
        attention: name of a backend for self-attention; auto: the fastest exact one of this machine.
        blocks_to_stream: blocks that are on the device only while they run; -1: as few as memory asks for.
        prefetch: blocks that are copied ahead of the one that runs.
        vae_tiling: whether the VAE works in tiles; None: where memory asks for it.
        compile: mode of torch.compile for the transformer's blocks; None: they are not compiled.
        compile_backend: of torch.compile.
        tf32: float32 products in TF32. fp16_accumulation: float16 products summed in float16. Both only on GPUs.
    """

    device: str | None = None
    dtype: str = "bf16"
    text_encoder_device: str | None = None
    quantize: str | None = None
    attention: str = "auto"
    blocks_to_stream: int = -1
    prefetch: int = 1
    vae_tiling: bool | None = None
    compile: str | None = None
    compile_backend: str = "inductor"
    tf32: bool = False
    fp16_accumulation: bool = False

    def __post_init__(self) -> None:
        _choice("dtype", self.dtype, DTYPES)
        if self.quantize is not None:
            _choice("quantize", self.quantize, QUANTIZERS)
        if self.compile is not None:
            _choice("compile", self.compile, COMPILE_MODES)
        _number("blocks_to_stream", self.blocks_to_stream, -1, 1000, whole=True)
        _number("prefetch", self.prefetch, 1, 40, whole=True)


@dataclass(frozen=True)
class TalkRequest:
    """One talking video.

    Args:
        prompts: one a window, the last one repeats.
        reference: path of a picture, or of a video whose frame at a window's start is that window's reference.
        speakers: 0 to 6 people; without audio the video is `max_frames` (else one window) of silence.
        audio_type: para, all speak at once, or add, one after another.
        size: name of a size table (see geometry.SIZE_BUCKETS) or (width, height).
        fps: frames a second of the result; the audio adapter was trained at 25.
        max_frames: cap on the video's length, 0 for none.
        settings: how it is sampled. seed: of all noise, 0 to 2**64 - 1.
        keep: the part of a source video that is made anew, while the rest stays as it is (dub); None: all of it.
        source_end: what follows the end of a source video: hold, loop or ping-pong.
        scene_seg: whether a source video is cut into its scenes, each with its own reference.
        camera: a slow movement over a still reference picture, or None.
        voice_activity: whether features fade into those of silence where a speaker is quiet.
        normalize_loudness: bring speech to -23 LUFS before the audio encoder, which expects it.
        output: path of the mp4; None lets the caller choose.
    """

    prompts: tuple[str, ...]
    reference: str
    speakers: tuple[Speaker, ...] = ()
    negative_prompt: str = NEGATIVE_PROMPT
    audio_type: str = "para"
    size: str | tuple[int, int] = "infinitetalk-480"
    fps: float = FPS
    max_frames: int = 0
    settings: LoopSettings = field(default_factory=LoopSettings)
    seed: int = 42
    normalize_loudness: bool = True
    output: str | None = None
    keep: Keep | None = None
    source_end: str = "hold"
    scene_seg: bool = False
    camera: Camera | None = None
    voice_activity: bool = False

    def __post_init__(self) -> None:
        if not self.prompts or not all(isinstance(prompt, str) for prompt in self.prompts):
            raise InputError("prompt is missing. Give one text, or one for each window.")
        if not self.reference:
            raise InputError("There is no reference picture. Give the path of a picture or of a video.")
        if len(self.speakers) > MAX_SPEAKERS:
            raise InputError(f"{len(self.speakers)} speakers are given; at most {MAX_SPEAKERS} can be told apart.")
        _choice("audio_type", self.audio_type, AUDIO_TYPES)
        _choice("source_end", self.source_end, SOURCE_ENDS)
        _number("fps", self.fps, 1, 120)
        _number("max_frames", self.max_frames, 0, 10_000_000, whole=True)
        _number("seed", self.seed, 0, 2**64 - 1, whole=True)
        self._check_regions()
        parse_size(self.size if isinstance(self.size, str) else "x".join(map(str, self.size)))

    def _check_regions(self) -> None:
        placed = [speaker for speaker in self.speakers if speaker.box or speaker.mask]
        if placed and len(placed) != len(self.speakers):
            raise InputError(
                f"{len(self.speakers)} speakers have {len(placed)} boxes or masks. Give one for each speaker, or none."
            )
        if not placed and len(self.speakers) > 2:
            raise InputError(
                f"{len(self.speakers)} speakers need a box or mask each; only two can be placed by themselves."
            )
        for number, speaker in enumerate(self.speakers, 1):
            if speaker.box and not (0 <= speaker.box[0] < speaker.box[2] and 0 <= speaker.box[1] < speaker.box[3]):
                raise InputError(
                    f"The box of speaker {number}, {list(speaker.box)}, is empty. "
                    "It is [row_min, col_min, row_max, col_max] in pixels of the reference, origin top left."
                )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data from which `from_json` rebuilds an equal request."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any] | str | Path) -> TalkRequest:
        """Read what `to_json` wrote (data, or the path of a JSON file). Unknown keys are errors."""
        return _build(cls, read_json(data), "request")

    @classmethod
    def from_job(cls, data: dict[str, Any] | str | Path, **settings: Any) -> TalkRequest:
        """Read a job of the reference implementation.

        Args:
            data: the job, or the path of its JSON file: prompt, cond_video or cond_image, cond_audio {person1: ...},
                audio_type, bbox {person1: [row_min, col_min, row_max, col_max]}, keep (fields of Keep).
            settings: further fields of TalkRequest.
        Raises:
            InputError: for unknown or missing keys and for boxes that do not match the audios.
        """
        job = read_json(data)
        _known_keys(job, _JOB_KEYS, "job")
        reference = job.get("cond_video") or job.get("cond_image")
        if not reference:
            raise InputError('The job names no picture. Add "cond_video": "path of a picture or video".')
        if job.get("tts_audio"):
            raise UnsupportedError(
                '"tts_audio" is not there yet. Make the speech first and name its file in "cond_audio".'
            )
        audios, boxes = job.get("cond_audio") or {}, job.get("bbox") or {}
        if not isinstance(audios, dict) or not isinstance(boxes, dict):
            raise InputError('"cond_audio" and "bbox" are objects: {"person1": ..., "person2": ...}.')
        if boxes and set(boxes) != set(audios):
            raise InputError(
                f"bbox names {_names(boxes)} but cond_audio names {_names(audios)}. Both must name the same persons."
            )
        speakers = tuple(
            Speaker(None if audios[name] in (None, "None", "") else str(audios[name]), _box(name, boxes.get(name)))
            for name in sorted(audios)
        )
        if len(speakers) > 1 and "audio_type" not in job:
            raise InputError('Two or more persons need "audio_type": "para" (together) or "add" (one after another).')
        prompt = job.get("prompt", "")
        prompts = tuple(prompt) if isinstance(prompt, list) else (str(prompt),)
        return cls(
            prompts=prompts, reference=str(reference), speakers=speakers,
            audio_type=job.get("audio_type", "para"),
            keep=_build(Keep, job["keep"], "keep") if job.get("keep") else None, **settings,
        )  # fmt: skip


_JOB_KEYS = (
    "prompt",
    "cond_video",
    "cond_image",
    "cond_audio",
    "audio_type",
    "bbox",
    "tts_audio",
    "video_audio",
    "keep",
)


def read_json(data: dict[str, Any] | str | Path) -> dict[str, Any]:
    """A JSON object from `data` itself or from the UTF-8 file it names."""
    if isinstance(data, dict):
        return data
    path = Path(data)
    try:
        parsed = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"There is no file {path}.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}, column {error.colno}: {error.msg}.") from None
    if not isinstance(parsed, dict):
        raise InputError(f"{path} holds a {type(parsed).__name__}; a job is one JSON object {{...}}.")
    return parsed


def _build(cls: type, data: Any, where: str) -> Any:
    """A dataclass from plain data, field by field, following the types that the fields are declared with."""
    if not isinstance(data, dict):
        raise InputError(f"{where} must be an object {{...}}, not {data!r}.")
    fields = {item.name: item for item in dataclasses.fields(cls)}
    _known_keys(data, fields, where)
    values = {}
    for name, value in data.items():
        inner = _NESTED.get((cls, name))
        if inner and isinstance(value, list | tuple):
            value = tuple(_build(inner, item, f"{where}.{name}[{i}]") for i, item in enumerate(value))
        elif inner and value is not None:
            value = _build(inner, value, f"{where}.{name}")
        elif isinstance(value, list):
            value = tuple(value)
        values[name] = value
    missing = [name for name, item in fields.items() if name not in values and _is_required(item)]
    if missing:
        raise InputError(f"{where} lacks {', '.join(missing)}.")
    return cls(**values)


def _is_required(item: dataclasses.Field) -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


_NESTED = {
    (TalkRequest, "speakers"): Speaker,
    (TalkRequest, "settings"): LoopSettings,
    (TalkRequest, "keep"): Keep,
    (TalkRequest, "camera"): Camera,
    (LoopSettings, "apg"): Apg,
    (LoopSettings, "step_cache"): StepCache,
    (LoopSettings, "skip_layers"): SkipLayers,
    (ModelFiles, "loras"): LoraFile,
}


def _known_keys(data: dict[str, Any], known: Any, where: str) -> None:
    for key in data:
        if key not in known:
            close = difflib.get_close_matches(key, list(known), 1)
            hint = f"Did you mean {close[0]!r}?" if close else f"Known are {', '.join(known)}."
            raise InputError(f"{where} has the unknown key {key!r}. {hint}")


def _box(name: str, value: Any) -> tuple[int, int, int, int] | None:
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) != 4 or not all(isinstance(v, int | float) for v in value):
        raise InputError(f"The box of {name}, {value!r}, must be four numbers: row_min, col_min, row_max, col_max.")
    row_min, col_min, row_max, col_max = map(int, value)
    return row_min, col_min, row_max, col_max


def _names(mapping: dict[str, Any]) -> str:
    return ", ".join(sorted(mapping)) or "nobody"


def _choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        close = difflib.get_close_matches(str(value), allowed, 1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise InputError(f"{name} {value!r} is not offered.{hint} Use one of {', '.join(allowed)}.")


def _number(name: str, value: Any, low: float, high: float, whole: bool = False) -> None:
    kind = int if whole else int | float
    if not isinstance(value, kind) or isinstance(value, bool) or not math.isfinite(value) or not low <= value <= high:
        raise InputError(f"{name} {value!r} is not usable: it must be a {'whole ' * whole}number from {low} to {high}.")
