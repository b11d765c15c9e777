"""`generate`: every flag of the reference's generate_infinitetalk.py, read into a request and engine options."""

from __future__ import annotations

import argparse
import logging
import os
import random
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import InputError, UnsupportedError
from ..geometry import FPS, parse_size, snap_frames
from ..keep import DEFAULT_FEATHER, SOURCE_ENDS, Keep
from ..presets import AUTO, Preset, choose_preset, find_lora, load_preset, preset_names
from ..request import (
    COLOR_METHODS,
    COMPILE_MODES,
    DTYPES,
    MODES,
    QUANTIZERS,
    Apg,
    EngineOptions,
    LoopSettings,
    LoraFile,
    ModelFiles,
    StepCache,
    TalkRequest,
)

logger = logging.getLogger("wanvideo")
TASKS = tuple(f"{mode}-14B" for mode in MODES)
DEFAULT_STEPS = 40
ALWAYS_COMPUTED = 5  # first steps that the reference's TeaCache never leaves out
NUM_BLOCKS, BLOCK_PARAMETERS, OTHER_PARAMETERS = 40, 464_200_000, 330_000_000  # of the 14B model with its adapter
PRESET_FLAGS = {
    "scheduler": "scheduler", "steps": "sample_steps", "shift": "sample_shift", "window_frames": "frame_num",
    "motion_frames": "motion_frame", "guidance_scale": "sample_text_guide_scale",
    "audio_guidance_scale": "sample_audio_guide_scale", "color_match": "color_match", "tiled_vae": "tiled_vae",
    "quantize": "quant", "blocks_to_stream": "blocks_to_swap",
}  # fmt: skip
DEFAULT_SHIFT = {"480": 7.0, "720": 11.0}
DEFAULT_MOTION = {"infinitetalk": 9, "multitalk": 25}


def yes_or_no(text: str) -> bool:
    """`true`, `yes`, `1` ... as the reference's flags take them."""
    value = text.strip().lower()
    if value in ("yes", "true", "t", "y", "1", "on"):
        return True
    if value in ("no", "false", "f", "n", "0", "off"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def build_parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        program,
        description="Make a talking video from a job file.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    switch = {"nargs": "?", "const": True, "default": False, "type": yes_or_no, "metavar": "BOOL"}

    add("--preset", help=f"{', '.join(preset_names())} or {AUTO}; what other flags say wins over it")
    add("--input_json", default="examples.json", help="job file: prompt, cond_video, cond_audio, audio_type, bbox")
    add("--save_file", help="result, with or without .mp4; made from the settings and the prompt if not given")
    add("--overwrite", **switch, help="replace the result if it exists")
    add("--audio_save_dir", default="save_audio", help="accepted for compatibility; no scratch files are written")

    add("--ckpt_dir", help="Wan2.1-I2V-14B folder, or the transformer's file")
    add("--infinitetalk_dir", help="audio adapter file (single or multi), or its folder")
    add("--wav2vec_dir", help="chinese-wav2vec2-base folder or file")
    add("--dit_path", help="file of a whole merged transformer, in place of the shards in --ckpt_dir")
    add("--vae_path", help="VAE file, where --ckpt_dir has none")
    add("--t5_path", help="text encoder file, where --ckpt_dir has none")
    add("--clip_path", help="CLIP vision file, where --ckpt_dir has none")
    add("--lora_dir", nargs="+", default=[], help="LoRA files")
    add("--lora_scale", nargs="+", type=float, default=[1.2], help="one strength for all LoRAs or one for each")
    add("--quant", choices=QUANTIZERS, help="quantize what is stored as plain numbers")
    add("--quant_dir", help="quantized transformer file; t5_QUANT.safetensors beside it is used too")

    add("--task", default="infinitetalk-14B", help=f"one of {', '.join(TASKS)}")
    add("--size", default="infinitetalk-480", help="infinitetalk-480, infinitetalk-720 or WIDTHxHEIGHT")
    add("--mode", choices=("clip", "streaming"), default="clip", help="one window, or as long as the sound")
    add("--frame_num", type=int, default=81, help="frames of a window, 4n + 1")
    add("--max_frame_num", type=int, default=1000, help="most frames of a video in streaming mode")
    add("--fps", type=float, default=FPS, help="frames a second of the result; the adapters were trained at 25")
    add("--motion_frame", type=int, help="frames that windows share, 4n + 1; 9, or 25 for multitalk-14B, if not given")
    add("--base_seed", type=int, default=42, help="below 0: random")
    add("--audio_mode", choices=("localfile", "tts"), default="localfile", help="where the sound comes from")
    _add_source_flags(parser, switch)

    add("--scheduler", default="multitalk", help="noise schedule; 4-step LoRAs want flowmatch_distill")
    add("--sample_steps", type=int, help=f"steps; {DEFAULT_STEPS} if not given")
    add("--sample_shift", type=float, help="time shift; 7 at 480, 11 at 720 if not given")
    add("--sample_text_guide_scale", type=float, default=5.0, help="1: none")
    add("--sample_audio_guide_scale", type=float, default=4.0, help="1: none")
    add("--use_teacache", **switch, help="skip steps that change little")
    add("--teacache_thresh", type=float, default=0.2, help="0.2 to 0.5; higher is faster and coarser")
    add("--use_apg", **switch, help="adaptive projected guidance")
    add("--apg_momentum", type=float, default=-0.75)
    add("--apg_norm_threshold", type=float, default=55.0)
    add("--color_match", choices=COLOR_METHODS, default="lab", help="how colors are held to the reference")
    add("--color_correction_strength", type=float, default=1.0, help="0 to 1")

    add("--device", help="torch device; the GPU if there is one")
    add("--dtype", choices=DTYPES, default="bf16")
    add("--t5_cpu", **switch, help="encode the prompt on the CPU")
    add("--offload_model", type=yes_or_no, metavar="BOOL", help="for compatibility; encoders always leave the GPU")
    add("--num_persistent_param_in_dit", type=int, help="parameters that stay on the GPU; 0 streams every block")
    add("--blocks_to_swap", type=int, help="blocks that stream; -1 or not given: as few as memory asks for")
    add("--attention", default="auto", help="self-attention: auto, sdpa, flash_attn_3, hopper, fp8, sageattn ...")
    add("--compile", nargs="?", const="default", choices=COMPILE_MODES, help="compile the transformer's blocks")
    add("--tiled_vae", type=yes_or_no, metavar="BOOL", help="VAE in tiles; where memory asks for it if not given")
    add("--ulysses_size", type=int, default=1, help="sequence-parallel degree")
    add("--ring_size", type=int, default=1, help="ring-attention degree")
    add("--dit_fsdp", **switch, help="shard the transformer over GPUs")
    add("--t5_fsdp", **switch, help="shard the text encoder over GPUs")
    return parser


def _add_source_flags(parser: argparse.ArgumentParser, switch: dict[str, Any]) -> None:
    """What is done with a source video, and with quiet speakers."""
    add = parser.add_argument
    add("--scene_seg", **switch, help="cut a source video into its scenes, each with a reference of its own")
    add(
        "--dub",
        metavar="MASK",
        help="mask picture or video, white where the source video is made anew, or auto: mouths",
    )
    add("--dub_feather", type=int, default=DEFAULT_FEATHER, help="pixels around it over which new fades into old")
    add("--voice_activity", **switch, help="mouths rest where a speaker is quiet (needs silero-vad)")
    add("--source_end", choices=SOURCE_ENDS, default="hold", help="what follows the end of a source video")


@dataclass(frozen=True)
class Job:
    """All that a command line asks for."""

    request: TalkRequest
    files: ModelFiles
    options: EngineOptions
    overwrite: bool


def read_job(argv: list[str], program: str = "generate") -> Job:
    """Parse flags and job file; no model is opened."""
    flags = _parse(argv, program)
    _refuse_what_is_missing(flags)
    size = parse_size(flags.size)
    settings = _settings(flags, size)
    request = TalkRequest.from_job(
        flags.input_json,
        size=size,
        settings=settings,
        seed=flags.base_seed if flags.base_seed >= 0 else random.randrange(100_000_000),
        fps=flags.fps,
        max_frames=flags.frame_num if flags.mode == "clip" else flags.max_frame_num,
        source_end=flags.source_end,
        scene_seg=flags.scene_seg,
        voice_activity=flags.voice_activity,
    )
    if flags.dub:
        request = replace(request, keep=Keep.named(flags.dub, flags.dub_feather))
    output = flags.save_file or _name(flags, request)
    output = output if output.lower().endswith(".mp4") else f"{output}.mp4"
    request = TalkRequest(**{**vars(request), "output": output})
    options = EngineOptions(
        device=flags.device, dtype=flags.dtype, text_encoder_device="cpu" if flags.t5_cpu else None,
        quantize=flags.quant, attention=flags.attention, blocks_to_stream=_streamed(flags), vae_tiling=flags.tiled_vae,
        compile=flags.compile,
    )  # fmt: skip
    return Job(request, _files(flags), options, flags.overwrite)


def _parse(argv: list[str], program: str) -> argparse.Namespace:
    """All flags; those that are not given are as the preset has them, if one is named."""
    parser = build_parser(program)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset")
    name = first.parse_known_args(argv)[0].preset
    if name is None:
        return parser.parse_args(argv)
    preset = choose_preset(_free_bytes(first, argv)) if name == AUTO else load_preset(name)
    logger.info("%s", preset.describe())
    parser.set_defaults(**_defaults(preset))
    flags = parser.parse_args(argv)
    if preset.loras and not flags.lora_dir:
        places = [Path(place).expanduser() for place in (flags.ckpt_dir, flags.infinitetalk_dir) if place]
        folders = list(dict.fromkeys(folder for place in places for folder in (place, *list(place.parents)[:2])))
        flags.lora_dir = [str(find_lora(lora, folders)) for lora in preset.loras]
    return flags


def _defaults(preset: Preset) -> dict[str, object]:
    values = {PRESET_FLAGS[name]: value for name, value in preset.sets if name in PRESET_FLAGS}
    values |= {"task": f"{preset.settings.mode}-14B", "size": preset.size}
    if preset.options.text_encoder_device == "cpu":
        values["t5_cpu"] = True
    if preset.loras:
        values["lora_scale"] = [lora.strength for lora in preset.loras]
    return values


def _free_bytes(first: argparse.ArgumentParser, argv: list[str]) -> int:
    """Free device memory, 0 without a GPU."""
    import torch

    from ..memory.budget import free_device_bytes

    first.add_argument("--device")
    device = torch.device(first.parse_known_args(argv)[0].device or "cuda")
    return free_device_bytes(device) if device.type == "cuda" and torch.cuda.is_available() else 0


def _streamed(flags: argparse.Namespace) -> int:
    if flags.num_persistent_param_in_dit is None:
        return -1 if flags.blocks_to_swap is None else flags.blocks_to_swap
    staying = max(0, flags.num_persistent_param_in_dit - OTHER_PARAMETERS) // BLOCK_PARAMETERS
    return NUM_BLOCKS - min(staying, NUM_BLOCKS)


def _settings(flags: argparse.Namespace, size: str | tuple[int, int]) -> LoopSettings:
    mode = flags.task.removesuffix("-14B")
    motion = DEFAULT_MOTION[mode] if flags.motion_frame is None else flags.motion_frame
    if motion % 4 != 1:
        motion = snap_frames(motion)
        logger.info("motion_frame %d is not 4n + 1: %d is used.", flags.motion_frame, motion)
    return LoopSettings(
        mode=mode,
        window_frames=flags.frame_num,
        motion_frames=motion,
        scheduler=flags.scheduler,
        steps=DEFAULT_STEPS if flags.sample_steps is None else flags.sample_steps,
        shift=DEFAULT_SHIFT[_table(size)] if flags.sample_shift is None else flags.sample_shift,
        guidance_scale=flags.sample_text_guide_scale,
        audio_guidance_scale=flags.sample_audio_guide_scale,
        apg=Apg(flags.apg_momentum, flags.apg_norm_threshold) if flags.use_apg else None,
        color_match=flags.color_match,
        color_strength=flags.color_correction_strength,
        tiled_vae=bool(flags.tiled_vae),
        step_cache=StepCache(
            threshold=flags.teacache_thresh, start_step=ALWAYS_COMPUTED, coefficients=_table(size)
        )  # fmt: skip
        if flags.use_teacache
        else None,
    )


def _table(size: str | tuple[int, int]) -> str:
    """Which of the two resolutions that the models were trained at is nearer."""
    large = size == "infinitetalk-720" or (isinstance(size, tuple) and size[0] * size[1] > 640 * 960)
    return "720" if large else "480"


def _files(flags: argparse.Namespace) -> ModelFiles:
    transformer = flags.quant_dir or flags.dit_path or flags.ckpt_dir
    if not transformer:
        raise InputError("No model is named. Give --ckpt_dir with the Wan2.1-I2V-14B folder, or --dit_path.")
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
        text_encoder=flags.t5_path or _matching_text_encoder(flags.quant_dir, flags.quant),
        clip_vision=flags.clip_path,
        loras=loras,
    )


def _matching_text_encoder(quantized: str | None, quant: str | None) -> str | None:
    """The text encoder that lies beside a quantized transformer, under the name that the published set gives it."""
    if quantized is None or quant is None:
        return None
    place = Path(quantized).expanduser()
    path = (place if place.is_dir() else place.parent) / f"t5_{quant}.safetensors"
    return str(path) if path.is_file() else None


def _refuse_what_is_missing(flags: argparse.Namespace) -> None:
    if flags.task not in TASKS:
        raise InputError(f"task {flags.task!r} is not offered. Use one of {', '.join(TASKS)}.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 or flags.ulysses_size > 1 or flags.ring_size > 1:
        raise UnsupportedError(
            "Several GPUs for one video are not there yet. Run on one: no torchrun, --ulysses_size 1."
        )
    if flags.dit_fsdp or flags.t5_fsdp:
        raise UnsupportedError(
            "--dit_fsdp and --t5_fsdp shard over several GPUs, which is not there yet. Leave them out."
        )
    if flags.audio_mode == "tts":
        raise UnsupportedError("--audio_mode tts is not there yet. Make the speech first and name its file in the job.")


def _name(flags: argparse.Namespace, request: TalkRequest) -> str:
    words = re.sub(r"[^\w\-]+", "_", request.prompts[0])[:50].strip("_")
    size = flags.size if isinstance(request.size, str) else "x".join(map(str, request.size))
    return f"{flags.task}_{size}_{flags.ulysses_size}_{flags.ring_size}_{words}_{time.strftime('%Y%m%d_%H%M%S')}"


def main(argv: list[str]) -> int:
    from ..pipeline import TalkingVideoPipeline
    from .progress import Progress

    job = read_job(argv)
    pipeline = TalkingVideoPipeline(job.files, job.options)
    with Progress() as progress:
        path = pipeline.generate(job.request, Path(job.request.output), overwrite=job.overwrite, on_step=progress.step)
    print(path)
    return 0
