"""What a user asks for, as frozen data that is checked where it is made: no torch, no files opened here.

`TalkRequest` is one video. It is read from and written to JSON in two forms (see job.py): our own (`from_json`, every
field by its name) and the job files of MultiTalk / InfiniteTalk (`from_job`).
"""

from __future__ import annotations

import dataclasses
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import checks
from .errors import InputError
from .geometry import DEFAULT_OVERLAP, DEFAULT_WINDOW, FPS, VideoGeometry, WindowPlan, parse_size
from .job import build, parse_job, read_object
from .keep import MAX_CRF, MAX_WINDOWS, SOURCE_ENDS, Camera, Keep, check_reanchor, crf_of
from .prompts import check_starts

MODES = ("infinitetalk", "multitalk")
AUDIO_TYPES = ("para", "add")
COLOR_METHODS = ("disabled", "mkl", "hm", "reinhard", "mvgd", "hm-mvgd-hm", "hm-mkl-hm", "lab")
DTYPES = ("bf16", "fp16", "fp32")
QUANTIZERS = ("fp8", "int8", "fp4")
CONVERSIONS = (*QUANTIZERS, "bf16")  # of a model file
COMPILE_MODES = ("default", "max-autotune-no-cudagraphs", "max-autotune", "reduce-overhead")
CACHES = ("teacache", "magcache", "easycache")
MAX_SPEAKERS = 6
MAX_STEPS = 1000
MAX_PROMPT = 50_000  # characters; the text encoder reads the first 512 tokens
MAX_PIXELS = 10**6  # of a box's edge
NUM_DRAWN = 10**8  # seeds that are drawn from
DEVICE = re.compile(r"cpu|(cuda|mps|xpu)(:\d{1,3})?")
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

    def __post_init__(self) -> None:
        _paths(self, "audio", "mask", prefix="speaker.")
        if self.box is not None:
            checks.instance("box", self.box, tuple, "four numbers: row_min, col_min, row_max, col_max")
            if len(self.box) != 4:
                raise InputError(
                    f"box {checks.brief(self.box)} has {len(self.box)} numbers. "
                    "Give four numbers: row_min, col_min, row_max, col_max."
                )
            for name, value in zip(("row_min", "col_min", "row_max", "col_max"), self.box, strict=True):
                checks.number(f"{name} of box {checks.brief(self.box)}", value, 0, MAX_PIXELS, whole=True)


@dataclass(frozen=True)
class Apg:
    """Adaptive projected guidance: `momentum` of the running difference, `norm_threshold` (0 or less: no clamp)."""

    momentum: float = -0.75
    norm_threshold: float = 55.0

    def __post_init__(self) -> None:
        checks.number("apg.momentum", self.momentum, -1, 1)  # beyond, the running difference grows without end
        checks.number("apg.norm_threshold", self.norm_threshold, -1e9, 1e9)


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
        checks.choice("step_cache.kind", self.kind, CACHES)
        checks.choice("step_cache.coefficients", self.coefficients, ("auto", "480", "720"))
        checks.number("step_cache.threshold", self.threshold, 1e-6, 100)
        checks.number("step_cache.start_step", self.start_step, 0, 10_000, whole=True)
        checks.number("step_cache.end_step", self.end_step, -1, 10_000, whole=True)
        checks.number("step_cache.max_skips", self.max_skips, 0, 1000, whole=True)
        _flags(self, "offload", prefix="step_cache.")
        if 0 <= self.end_step <= self.start_step:
            raise InputError(
                f"step_cache.end_step {self.end_step} is not behind start_step {self.start_step}, so no step could be "
                "skipped. Use a larger one, or -1 for the last step."
            )


@dataclass(frozen=True)
class SkipLayers:
    """Blocks left out of the passes without the prompt, between two fractions of the schedule."""

    blocks: tuple[int, ...]
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        checks.instance("skip_layers.blocks", self.blocks, tuple, "a list of blocks")
        for block in self.blocks:
            checks.number("skip_layers.blocks", block, 0, 999, whole=True)
        checks.number("skip_layers.start", self.start, 0, 1)
        checks.number("skip_layers.end", self.end, 0, 1)
        if self.end < self.start:
            raise InputError(
                f"skip_layers.end {self.end} is before start {self.start}. Give two fractions of the schedule, the "
                "smaller one first."
            )


@dataclass(frozen=True)
class LoopSettings:
    """How every window of a video is sampled.

    Args:
        mode: infinitetalk (fixed reference, clean motion latents) or multitalk (the last frames are the condition).
        window_frames, motion_frames: frames a window samples, and how many of them repeat the previous one; 4n + 1.
        scheduler, steps, shift: name, number of steps and time shift of the noise schedule.
        guidance_scale, audio_guidance_scale: 1 means none; a pass that neither needs is not run. A tuple has a
            guidance_scale for each step, and the last one stands for all later steps.
        audio_scale: factor on the audio attention's output.
        apg: adaptive projected guidance instead of plain differences.
        start_step, end_step: part of the schedule to run (-1: to its end); floats are noise levels, not indices.
        denoise_strength: below 1 the source video's latents keep that much less noise.
        add_noise_to_samples: noise the source video's latents to the first step instead of taking them as they are.
        sigmas: noise levels of one's own in place of the scheduler's.
        color_match, color_strength: method (see COLOR_METHODS) and 0..1 strength of matching to the reference.
        tiled_vae: encode and decode in overlapping tiles, for less memory.
        step_cache, skip_layers: less work in some steps; off by default.
        reanchor: after so many windows the last frame takes the place of the reference picture among the known
            latents, if that window looks like the first one (see sampling.anchor). 0: never.
    """

    mode: str = "infinitetalk"
    window_frames: int = DEFAULT_WINDOW
    motion_frames: int = DEFAULT_OVERLAP
    scheduler: str = "multitalk"
    steps: int = 40
    shift: float = 7.0
    guidance_scale: float | tuple[float, ...] = 5.0
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
    reanchor: int = 0

    def __post_init__(self) -> None:
        checks.choice("mode", self.mode, MODES)
        checks.choice("color_match", self.color_match, COLOR_METHODS)
        checks.number("steps", self.steps, 1, MAX_STEPS, whole=True)
        checks.number("shift", self.shift, 0.01, 1000)
        scales = self.guidance_scale if isinstance(self.guidance_scale, tuple) else (self.guidance_scale,)
        for scale in scales or (None,):
            checks.number("guidance_scale", scale, 0, 100)
        checks.number("audio_guidance_scale", self.audio_guidance_scale, 0, 10000)
        checks.number("audio_scale", self.audio_scale, 0, 100)
        checks.number("denoise_strength", self.denoise_strength, 0, 1)
        checks.number("color_strength", self.color_strength, 0, 1)
        checks.text("scheduler", self.scheduler, 100)
        _flags(self, "add_noise_to_samples", "tiled_vae")
        _step("start_step", self.start_step, 0)
        _step("end_step", self.end_step, -1)
        if self.sigmas is not None:
            checks.noise_levels(self.sigmas, self.steps)
        for name, kind in (("apg", Apg), ("step_cache", StepCache), ("skip_layers", SkipLayers)):
            if getattr(self, name) is not None:
                checks.instance(name, getattr(self, name), kind, f"{kind.__name__}(...)")
        checks.number("reanchor", self.reanchor, 0, MAX_WINDOWS, whole=True)
        check_reanchor(self.reanchor, {f"{self.mode} mode": self.mode != "infinitetalk"})
        WindowPlan(1, self.window_frames, self.motion_frames)


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file and its strength, one number or one for each step."""

    path: str
    strength: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        _paths(self, "path", prefix="lora.")
        strengths = self.strength if isinstance(self.strength, tuple) else (self.strength,)
        if not strengths:
            raise InputError("lora.strength is an empty list. Give one number, or one for each step.")
        for strength in strengths:
            checks.number("lora.strength", strength, -1000, 1000)


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

    def __post_init__(self) -> None:
        _paths(self, "adapter", "folder", "vae", "text_encoder", "tokenizer", "clip_vision", "wav2vec")
        object.__setattr__(self, "transformer", checks.path("transformer", self.transformer))
        _all_are("loras", self.loras, LoraFile)


@dataclass(frozen=True)
class EngineOptions:
    """How the models are held and computed; none of it changes what a video shows beyond rounding.

    Args:
        device: torch device; None: the GPU if there is one.
        dtype: bf16, fp16 or fp32, in which everything is computed that is not quantized.
        text_encoder_device: cpu to encode the prompt there; None: as device.
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
        checks.choice("dtype", self.dtype, DTYPES)
        if self.device is not None:
            checks.text("device", self.device, 20)
            if not DEVICE.fullmatch(self.device):
                raise InputError(
                    f"device {checks.brief(self.device)} cannot be used: models need the memory of a real device. "
                    "Use cuda, cuda:0 or cpu."
                )
        if self.text_encoder_device is not None:
            checks.choice("text_encoder_device", self.text_encoder_device, ("cpu",))
        if self.quantize is not None:
            checks.choice("quantize", self.quantize, QUANTIZERS)
        if self.compile is not None:
            checks.choice("compile", self.compile, COMPILE_MODES)
        checks.number("blocks_to_stream", self.blocks_to_stream, -1, 1000, whole=True)
        checks.number("prefetch", self.prefetch, 1, 40, whole=True)
        checks.text("attention", self.attention, 100)
        checks.text("compile_backend", self.compile_backend, 100)
        _flags(self, "tf32", "fp16_accumulation")
        if self.vae_tiling is not None:
            _flags(self, "vae_tiling")


@dataclass(frozen=True)
class TalkRequest:
    """One talking video.

    Args:
        prompts: one a window, the last one repeats. prompt_starts: seconds from which each serves, or empty.
        reference: path of a picture, or of a video whose frame at a window's start is that window's reference.
        speakers: 0 to 6 people; without audio the video is `max_frames` (else one window) of silence.
        audio_type: para, all speak at once, or add, one after another.
        size: name of a size table (see geometry.SIZE_BUCKETS) or (width, height).
        fps: frames a second of the result; the audio adapter was trained at 25.
        max_frames: cap on the video's length, 0 for none.
        settings: how it is sampled.
        seed: of all noise, 0 to 2**64 - 1; None: it is drawn when a run begins, and kept by whoever goes on.
        keep: the part of a source video that is made anew, while the rest stays as it is (dub); None: all of it.
        source_end: what follows the end of a source video: hold, loop or ping-pong; stop: the result ends with it.
        scene_seg: whether a source video is cut into its scenes, each with its own reference.
        camera: a slow movement over a still reference picture, or None.
        voice_activity: whether features fade into those of silence where a speaker is quiet.
        normalize_loudness: bring speech to -23 LUFS before the audio encoder, which expects it.
        output: path of the mp4; None lets the caller choose.
        crf: x264's quality of the file, 0 (lossless) to 51; None: 18, for a dub 6.
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
    seed: int | None = 42
    normalize_loudness: bool = True
    output: str | None = None
    keep: Keep | None = None
    source_end: str = "hold"
    scene_seg: bool = False
    camera: Camera | None = None
    voice_activity: bool = False
    crf: int | None = None
    prompt_starts: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        checks.instance("prompts", self.prompts, tuple, 'a list of texts, one a window, such as ("She talks.",)')
        if not self.prompts:
            raise InputError("prompts is empty. Give one text, or one for each window.")
        for prompt in self.prompts:
            checks.text("prompt", prompt, MAX_PROMPT)
        checks.instance("prompt_starts", self.prompt_starts, tuple, "a list of seconds, one a prompt")
        check_starts(self.prompt_starts, len(self.prompts))
        checks.text("negative_prompt", self.negative_prompt, MAX_PROMPT)
        object.__setattr__(self, "reference", checks.path("reference", self.reference))
        _paths(self, "output")
        _all_are("speakers", self.speakers, Speaker)
        checks.choice("audio_type", self.audio_type, AUDIO_TYPES)
        checks.number("fps", self.fps, 1, 120)
        checks.number("max_frames", self.max_frames, 0, 10_000_000, whole=True)
        checks.instance("settings", self.settings, LoopSettings, "LoopSettings(...)")
        if self.seed is not None:
            checks.number("seed", self.seed, 0, 2**64 - 1, whole=True)
        _flags(self, "normalize_loudness", "scene_seg", "voice_activity")
        checks.choice("source_end", self.source_end, SOURCE_ENDS)
        if self.crf is not None:
            checks.number("crf", self.crf, 0, MAX_CRF, whole=True)
        for name, kind in (("keep", Keep), ("camera", Camera)):
            if getattr(self, name) is not None:
                checks.instance(name, getattr(self, name), kind, f"{kind.__name__}(...)")
        changing = {"keep": self.keep is not None, "scene_seg": self.scene_seg, "camera": self.camera is not None}
        check_reanchor(self.settings.reanchor, changing)
        self._check_regions()
        self._check_size()

    def _check_size(self) -> None:
        if isinstance(self.size, str):
            parse_size(self.size)
        elif isinstance(self.size, tuple) and len(self.size) == 2:
            VideoGeometry(*self.size, 1)
        else:
            raise InputError(
                f"size {checks.brief(self.size)} is not usable. Use infinitetalk-480, infinitetalk-720 or "
                "(width, height)."
            )

    def _check_regions(self) -> None:
        if len(self.speakers) > MAX_SPEAKERS:
            raise InputError(
                f"speakers has {len(self.speakers)} people; at most {MAX_SPEAKERS} can be told apart. Leave some out."
            )
        placed = [speaker for speaker in self.speakers if speaker.box or speaker.mask]
        if placed and len(placed) != len(self.speakers):
            raise InputError(
                f"{len(self.speakers)} speakers have {len(placed)} boxes or masks. Give one for each speaker, or none."
            )
        if not placed and len(self.speakers) > 2:
            raise InputError(
                f"{len(self.speakers)} speakers need a box or mask each; only two can be placed by themselves. "
                'Give each one, in a job as "bbox".'
            )
        for number, speaker in enumerate(self.speakers, 1):
            if speaker.box and not (speaker.box[0] < speaker.box[2] and speaker.box[1] < speaker.box[3]):
                raise InputError(
                    f"The box of speaker {number}, {list(speaker.box)}, is empty. "
                    "Give [row_min, col_min, row_max, col_max] in pixels of the reference, origin top left."
                )

    @property
    def file_crf(self) -> int:
        """x264's quality of the file."""
        return crf_of(self.crf, is_dub=self.keep is not None)

    @property
    def has_speech(self) -> bool:
        """Whether anybody speaks."""
        return any(speaker.audio is not None for speaker in self.speakers)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data from which `from_json` rebuilds an equal request."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any] | str | Path) -> TalkRequest:
        """Read what `to_json` wrote (data, or the path of a JSON file). Unknown keys are errors."""
        return build(cls, read_object(data, "a request"), "request")

    @classmethod
    def from_job(cls, data: dict[str, Any] | str | Path, **settings: Any) -> TalkRequest:
        """Read a job of the reference implementation (see `job.Job`).

        Args: data: the job, or the path of its JSON file. settings: further fields of TalkRequest.
        Raises: InputError for unknown or missing keys, and for boxes that do not match the sounds.
        """
        job = parse_job(data)
        speakers = tuple(Speaker(*given) for given in zip(job.audios, job.boxes, job.masks, strict=True))
        keep = None if job.keep is None else build(Keep, job.keep, "keep")
        camera = None if job.camera is None else build(Camera, job.camera, "camera")
        if job.reanchor is not None:
            given = settings.get("settings", LoopSettings())
            settings["settings"] = dataclasses.replace(given, reanchor=job.reanchor)
        negative = NEGATIVE_PROMPT if job.negative_prompt is None else job.negative_prompt
        return cls(
            job.prompts.texts, job.reference, speakers, negative, job.audio_type, keep=keep, camera=camera,
            prompt_starts=job.prompts.starts, **settings,
        )  # fmt: skip


def draw_seed() -> int:
    """For a request that leaves it open."""
    return secrets.randbelow(NUM_DRAWN)


def _paths(owner: Any, *names: str, prefix: str = "") -> None:
    """Check the paths among an instance's fields, and keep them as text."""
    for name in names:
        if (value := getattr(owner, name)) is not None:
            object.__setattr__(owner, name, checks.path(prefix + name, value))


def _flags(owner: Any, *names: str, prefix: str = "") -> None:
    for name in names:
        checks.flag(prefix + name, getattr(owner, name))


def _all_are(name: str, values: Any, kind: type) -> None:
    checks.instance(name, values, tuple, f"a list of {kind.__name__}(...)")
    for value in values:
        checks.instance(f"One of {name}", value, kind, f"{kind.__name__}(...)")


def _step(name: str, value: Any, low: int) -> None:
    """A step's index, or as a float a noise level; -1 is the end where `low` allows it."""
    if isinstance(value, float) and value != low:
        checks.number(f"{name} as a noise level", value, 0, 1)
    elif not isinstance(value, float):
        checks.number(name, value, low, MAX_STEPS, whole=True)
