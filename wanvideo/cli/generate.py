"""`generate`: every flag of the reference's generate_infinitetalk.py, read into a request and engine options."""

from __future__ import annotations

import argparse
import logging
import os
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import checks
from ..engine.spoken import is_spoken, spoken_job
from ..errors import InputError, UnsupportedError
from ..geometry import parse_size, snap_frames
from ..job import parse_speech, read_object
from ..keep import Camera, Keep
from ..lora.few_steps import few_steps_of
from ..ops.attention.names import known
from ..parallel.layout import WantedRanks
from ..presets import AUTO, Preset, choose_preset, load_preset
from ..request import Apg, EngineOptions, LoopSettings, LoraFile, ModelFiles, StepCache, TalkRequest
from ..sampling.setup import SamplingSetup
from .find import find_models, matching_text_encoder
from .flags import DEFAULT_STEPS, FEW_STEP_SCHEDULER, FLAGS, MOST_FRAMES, SCHEDULER, TASKS, build_parser
from .parser import Parser, named

logger = logging.getLogger("wanvideo")
ALWAYS_COMPUTED = 5  # first steps that the reference's TeaCache never leaves out
PROGRAM = "python -m wanvideo generate"
NUM_BLOCKS, BLOCK_PARAMETERS, OTHER_PARAMETERS = 40, 464_200_000, 330_000_000  # of the 14B model with its adapter
PRESET_FLAGS = {
    "scheduler": "scheduler", "steps": "sample_steps", "shift": "sample_shift", "window_frames": "frame_num",
    "motion_frames": "motion_frame", "guidance_scale": "sample_text_guide_scale",
    "audio_guidance_scale": "sample_audio_guide_scale", "color_match": "color_match", "tiled_vae": "tiled_vae",
    "quantize": "quant", "blocks_to_stream": "blocks_to_swap",
}  # fmt: skip
NEEDS = {"--lora_scale": "--lora_dir", "--teacache_thresh": "--use_teacache", "--apg_momentum": "--use_apg",
         "--apg_norm_threshold": "--use_apg"}  # fmt: skip
DEFAULT_SHIFT = {"480": 7.0, "720": 11.0}
DEFAULT_MOTION = {"infinitetalk": 9, "multitalk": 25}


@dataclass(frozen=True)
class Job:
    """All that a command line asks for. is_named: whether request.output is asked for, not made up."""

    request: TalkRequest
    files: ModelFiles
    options: EngineOptions
    overwrite: bool
    resume: str
    ranks: WantedRanks = WantedRanks()
    is_named: bool = True


def read_job(
    argv: list[str], program: str = PROGRAM, data: dict[str, Any] | None = None, free_bytes: int | None = None
) -> Job:
    """Parse flags and job file; no model is opened.

    Args: data: the job itself, in place of --input_json. free_bytes: of the device that --preset auto chooses for, in
        place of those of this one.
    """
    preset = _preset(argv, program, free_bytes)
    flags = _parse(argv, program, preset)
    flags.input_json = flags.input_json if data is None else data
    _say_unused(argv, flags, preset)
    _refuse_what_is_missing(flags)
    with named(FLAGS):
        request, options = _request(flags), _options(flags)
        if preset is not None:
            find_models(flags, preset, _table(request.size), len(request.speakers) if request.has_speech else 0)
        files = _files(flags)
        SamplingSetup.of(request.settings, request.has_speech)
    if flags.t5_fsdp and os.environ.get("RANK", "0") == "0":
        logger.info("--t5_fsdp has nothing to shard: one GPU encodes the prompt, shares it and frees its encoder.")
    ranks = WantedRanks(flags.ulysses_size, flags.ring_size, flags.parallel is not None, flags.dit_fsdp)
    return Job(request, files, options, flags.overwrite, flags.resume, ranks, bool(flags.save_file))


def read_engine(argv: list[str], program: str) -> tuple[ModelFiles, EngineOptions]:
    """Models and options that flags name, all flags checked; no job is read and nothing is opened."""
    preset = _preset(argv, program)
    flags = _parse(argv, program, preset)
    _refuse_what_is_missing(flags)
    with named(FLAGS):
        size = parse_size(flags.size)
        _settings(flags, size)
        if preset is not None:
            find_models(flags, preset, _table(size), 1)
        return _files(flags), _options(flags)


def _request(flags: argparse.Namespace) -> TalkRequest:
    size, output = parse_size(flags.size), flags.save_file and checks.mp4_path("output", flags.save_file)
    checks.number("seed", flags.base_seed, -(2**64), 2**64 - 1, whole=True)
    most = MOST_FRAMES if flags.max_frame_num is None else flags.max_frame_num
    settings = _settings(flags, size)
    request = TalkRequest.from_job(
        _speak(flags) if flags.audio_mode == "tts" else flags.input_json,
        size=size,
        settings=settings,
        seed=flags.base_seed if flags.base_seed >= 0 else None,
        fps=flags.fps,
        max_frames=flags.frame_num if flags.mode == "clip" else most,
        source_end=flags.source_end, scene_seg=flags.scene_seg, voice_activity=flags.voice_activity,
        crf=flags.crf, normalize_loudness=flags.normalize_loudness,
    )  # fmt: skip
    if flags.dub is not None:
        request = replace(request, keep=Keep.named(flags.dub, flags.dub_feather))
    if (camera := _camera(flags)) is not None:
        request = replace(request, camera=camera)
    if flags.reanchor is not None:
        request = replace(request, settings=replace(request.settings, reanchor=flags.reanchor))
    if not request.has_speech and flags.mode != "clip" and flags.max_frame_num is None:
        logger.info("Nobody speaks in the job: the video is one window. For a longer one say --max_frame_num.")
        request = replace(request, max_frames=0)
    return replace(request, output=output or checks.mp4_path("output", _name(flags, request)))


def _camera(flags: argparse.Namespace) -> Camera | None:
    """The movement that flags name, if they do."""
    if flags.camera is None:
        if flags.camera_pan is not None or flags.camera_period is not None:
            raise InputError("--camera_pan and --camera_period say how a camera moves. Add --camera 1.08, its zoom.")
        return None
    pan, period_s = tuple(flags.camera_pan or (0.0, 0.0)), flags.camera_period
    return Camera(flags.camera, pan, Camera.period_s if period_s is None else period_s)


def _options(flags: argparse.Namespace) -> EngineOptions:
    options = EngineOptions(
        device=flags.device, dtype=flags.dtype, text_encoder_device="cpu" if flags.t5_cpu else None,
        quantize=flags.quant, attention=flags.attention, blocks_to_stream=_streamed(flags), vae_tiling=flags.tiled_vae,
        compile=flags.compile,
    )  # fmt: skip
    known(options.attention)
    return options


def _preset(argv: list[str], program: str, free_bytes: int | None = None) -> Preset | None:
    """The preset that the flags name, or that fits so much free device memory; here, where that is not given."""
    first = Parser(program, add_help=False)
    first.add_argument("--preset")
    name = first.parse_known_args(argv)[0].preset
    if name is None:
        return None
    if name == AUTO:
        preset = choose_preset(_free_bytes(first, argv) if free_bytes is None else free_bytes)
    else:
        preset = load_preset(name)
    logger.info("%s", preset.describe())
    return preset


def _parse(argv: list[str], program: str, preset: Preset | None) -> argparse.Namespace:
    """All flags; those that are not given are as the preset has them."""
    parser = build_parser(program)
    if preset is not None:
        parser.set_defaults(**_defaults(preset))
    return parser.parse_args(argv)


def _say_unused(argv: list[str], flags: argparse.Namespace, preset: Preset | None) -> None:
    """Name what was given and changes nothing, because the flag that would use it was not."""
    has_loras = bool(flags.lora_dir or (preset and preset.loras))
    used = {"--lora_dir": has_loras, "--use_teacache": flags.use_teacache, "--use_apg": flags.use_apg}
    given = {argument.partition("=")[0] for argument in argv}
    for name, switch in NEEDS.items():
        if name in given and not used[switch]:
            logger.warning("%s changes nothing without %s.", name, switch)


def _defaults(preset: Preset) -> dict[str, object]:
    values = {PRESET_FLAGS[name]: value for name, value in preset.sets if name in PRESET_FLAGS}
    values |= {"task": f"{preset.settings.mode}-14B", "size": preset.size}
    if preset.options.text_encoder_device == "cpu":
        values["t5_cpu"] = True
    if preset.loras:
        values["lora_scale"] = [lora.strength for lora in preset.loras]
    return values


def _free_bytes(first: Parser, argv: list[str]) -> int:
    """Free device memory, 0 without a GPU."""
    import torch

    from ..memory.budget import free_device_bytes

    first.add_argument("--device")
    with named(FLAGS):
        name = EngineOptions(device=first.parse_known_args(argv)[0].device).device
    device = torch.device(name or "cuda")
    return free_device_bytes(device) if device.type == "cuda" and torch.cuda.is_available() else 0


def _streamed(flags: argparse.Namespace) -> int:
    swapped: int | None = flags.blocks_to_swap
    persistent: int | None = flags.num_persistent_param_in_dit
    if persistent is None:
        return -1 if swapped is None else swapped
    checks.number("--num_persistent_param_in_dit", persistent, 0, 2**63, whole=True)
    staying = max(0, persistent - OTHER_PARAMETERS) // BLOCK_PARAMETERS
    return NUM_BLOCKS - min(staying, NUM_BLOCKS)


def _settings(flags: argparse.Namespace, size: str | tuple[int, int]) -> LoopSettings:
    mode = flags.task.removesuffix("-14B")
    motion = DEFAULT_MOTION[mode] if flags.motion_frame is None else flags.motion_frame
    if motion % 4 != 1:
        motion = snap_frames(motion)
        logger.info("motion_frame %s is not 4n + 1: %d is used.", flags.motion_frame, motion)
    apg = Apg(flags.apg_momentum, flags.apg_norm_threshold)  # wrong numbers are refused even where they go unused
    cache = StepCache(threshold=flags.teacache_thresh, start_step=ALWAYS_COMPUTED, coefficients=_table(size))
    return LoopSettings(
        mode=mode,
        window_frames=flags.frame_num,
        motion_frames=motion,
        scheduler=_scheduler(flags),
        steps=DEFAULT_STEPS if flags.sample_steps is None else flags.sample_steps,
        shift=DEFAULT_SHIFT[_table(size)] if flags.sample_shift is None else flags.sample_shift,
        guidance_scale=flags.sample_text_guide_scale,
        audio_guidance_scale=flags.sample_audio_guide_scale,
        audio_scale=flags.audio_scale,
        apg=apg if flags.use_apg else None,
        color_match=flags.color_match,
        color_strength=flags.color_correction_strength,
        tiled_vae=bool(flags.tiled_vae),
        step_cache=cache if flags.use_teacache else None,
    )


def _scheduler(flags: argparse.Namespace) -> str:
    """The one that is named, else the one that the LoRAs were made for."""
    lora, steps = next(((Path(path).name, n) for path in flags.lora_dir if (n := few_steps_of(path))), (None, 0))
    if lora is None:
        return flags.scheduler or SCHEDULER
    if flags.scheduler is None:
        logger.info("%s was made for %d steps of %s, which is used: --scheduler says otherwise.",
                    lora, steps, FEW_STEP_SCHEDULER)  # fmt: skip
    elif flags.scheduler == SCHEDULER:
        logger.warning("%s was made for %d steps of other noise levels than those of %s. Use --scheduler %s.",
                       lora, steps, SCHEDULER, FEW_STEP_SCHEDULER)  # fmt: skip
    if flags.sample_steps is None:
        logger.warning("%s was made for %d steps and %d will run. Use --sample_steps %d.",
                       lora, steps, DEFAULT_STEPS, steps)  # fmt: skip
    return flags.scheduler or FEW_STEP_SCHEDULER


def _table(size: str | tuple[int, int]) -> str:
    """Which of the two resolutions that the models were trained at is nearer."""
    large = size == "infinitetalk-720" or (isinstance(size, tuple) and size[0] * size[1] > 640 * 960)
    return "720" if large else "480"


def _files(flags: argparse.Namespace) -> ModelFiles:
    transformer = flags.quant_dir or flags.dit_path or flags.ckpt_dir
    if not transformer:
        raise InputError(
            "No model is named. Give --ckpt_dir with the Wan2.1-I2V-14B folder, or a --preset, which finds its models."
        )
    scales = flags.lora_scale * len(flags.lora_dir) if len(flags.lora_scale) == 1 else flags.lora_scale
    if flags.lora_dir and len(scales) != len(flags.lora_dir):
        raise InputError(
            f"{len(flags.lora_dir)} LoRA files have {len(scales)} strengths. Give --lora_scale once, or one for each."
        )
    loras = tuple(LoraFile(path, scale) for path, scale in zip(flags.lora_dir, scales, strict=False))
    return ModelFiles(
        transformer=transformer,
        adapter=flags.infinitetalk_dir,
        folder=flags.ckpt_dir,
        wav2vec=flags.wav2vec_dir,
        vae=flags.vae_path,
        text_encoder=flags.t5_path or matching_text_encoder(flags.quant_dir, flags.quant),
        clip_vision=flags.clip_path,
        loras=loras,
    )


def _refuse_what_is_missing(flags: argparse.Namespace) -> None:
    if flags.task not in TASKS:
        near = checks.meant(flags.task, TASKS)
        raise InputError(f"--task {checks.brief(flags.task)} is not offered.{near} Use one of {', '.join(TASKS)}.")
    for name in ("ulysses_size", "ring_size"):
        checks.number(f"--{name}", getattr(flags, name), 1, 1024, whole=True)
    degrees = flags.ulysses_size * flags.ring_size
    if degrees > 1 and os.environ.get("WORLD_SIZE", "1") in ("", "1"):
        raise InputError(
            f"--ulysses_size {flags.ulysses_size} x --ring_size {flags.ring_size} need {degrees} processes, this is "
            f"one. Start it as torchrun --nproc_per_node={degrees} generate_infinitetalk.py ..."
        )


def _speak(flags: argparse.Namespace) -> dict[str, Any]:
    """The job with its text spoken."""
    folder = Path(checks.path("--audio_save_dir", flags.audio_save_dir))
    job = read_object(flags.input_json, "a job")
    if os.environ.get("WORLD_SIZE", "1") not in ("", "1") and not is_spoken(parse_speech(job), folder):
        raise UnsupportedError(
            "--audio_mode tts speaks in one process, and these are many. Run `python -m wanvideo plan` with the same "
            "flags once, which speaks, then start this again."
        )
    return spoken_job(job, folder)


def _name(flags: argparse.Namespace, request: TalkRequest) -> str:
    words = re.sub(r"[^\w\-]+", "_", request.prompts[0])[:50].strip("_")
    size = flags.size if isinstance(request.size, str) else "x".join(map(str, request.size))
    return f"{flags.task}_{size}_{flags.ulysses_size}_{flags.ring_size}_{words}_{time.strftime('%Y%m%d_%H%M%S')}"


def main(argv: list[str]) -> int:
    job = read_job(argv)

    from ..parallel.launch import Place  # here: flags are judged before PyTorch is loaded

    place = Place.of_environment()
    if place.world > 1:
        from .ranks import generate_together

        return generate_together(
            job.request, job.files, job.options, job.ranks, place, job.overwrite, job.resume, job.is_named
        )  # fmt: skip
    if job.ranks.shard:
        logger.info("--dit_fsdp changes nothing without torchrun: one process has all of the transformer's blocks.")
    return make(job)


def make(job: Job) -> int:
    """Make the video of a job and print its path."""
    from ..pipeline import TalkingVideoPipeline
    from ..text.cache import user_cache
    from .progress import Progress

    pipeline = TalkingVideoPipeline(job.files, job.options, user_cache())
    with Progress() as progress:
        path = pipeline.generate(
            job.request, overwrite=job.overwrite, on_step=progress.step, resume=job.resume, is_named=job.is_named
        )
    print(path)
    return 0
