"""The flags of `generate`: those of the reference's generate_infinitetalk.py, and ours."""

from __future__ import annotations

import argparse
from typing import Any

from ..geometry import FPS
from ..keep import DEFAULT_FEATHER, SOURCE_ENDS
from ..presets import AUTO, preset_names
from ..request import COLOR_METHODS, COMPILE_MODES, DTYPES, MODES, QUANTIZERS
from .parser import Parser, real, whole, yes_or_no

TASKS = tuple(f"{mode}-14B" for mode in MODES)
DEFAULT_STEPS = 40
MOST_FRAMES = 1000
SCHEDULER, FEW_STEP_SCHEDULER = "multitalk", "flowmatch_distill"
# What an error begins with, and the flag that it is about.
FLAGS = {
    "scheduler": "--scheduler", "steps": "--sample_steps", "shift": "--sample_shift", "window": "--frame_num",
    "overlap": "--motion_frame", "motion_frame": "--motion_frame", "guidance_scale": "--sample_text_guide_scale",
    "audio_guidance_scale": "--sample_audio_guide_scale", "color_match": "--color_match",
    "color_strength": "--color_correction_strength", "apg.momentum": "--apg_momentum",
    "apg.norm_threshold": "--apg_norm_threshold", "step_cache.threshold": "--teacache_thresh", "size": "--size",
    "width": "--size: width", "height": "--size: height", "seed": "--base_seed", "fps": "--fps",
    "max_frames": "--max_frame_num", "output": "--save_file", "device": "--device", "attention_mode": "--attention",
    "attention": "--attention", "blocks_to_stream": "--blocks_to_swap", "transformer": "--ckpt_dir",
    "adapter": "--infinitetalk_dir", "wav2vec": "--wav2vec_dir", "vae": "--vae_path", "text_encoder": "--t5_path",
    "clip_vision": "--clip_path", "folder": "--ckpt_dir", "lora.path": "--lora_dir", "lora.strength": "--lora_scale",
    "The path of a job": "--input_json", "keep.mask": "--dub", "keep.feather": "--dub_feather",
    "crf": "--crf", "camera.zoom": "--camera", "camera.pan": "--camera_pan", "camera.pan[0]": "--camera_pan: right",
    "camera.pan[1]": "--camera_pan: down", "camera.period_s": "--camera_period",
    "reanchor": "--reanchor", "audio_scale": "--audio_scale", "normalize_loudness": "--normalize_loudness",
}  # fmt: skip


def build_parser(program: str) -> Parser:
    parser = Parser(
        program,
        description="Make a talking video from a job file.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    switch: dict[str, Any] = {"nargs": "?", "const": True, "default": False, "type": yes_or_no, "metavar": "BOOL"}

    add("--preset", help=f"{', '.join(preset_names())} or {AUTO}; what other flags say wins over it")
    add("--input_json", default="examples.json", help="job file: prompt, cond_video, cond_audio, audio_type, bbox")
    add("--save_file", help="result, with or without .mp4; made from the settings and the prompt if not given")
    add("--crf", type=whole, help="x264's quality of the file, 0 (lossless) to 51; 18, for a dub 6, if not given")
    add("--overwrite", **switch, help="replace the result if it exists")
    add("--resume", default="auto", metavar="auto|never|RUN", help="go on with an unfinished run of the same request")
    add("--audio_save_dir", default="save_audio", help="where speech goes that is made from text")

    add("--ckpt_dir", help="Wan2.1-I2V-14B folder, or the transformer's file")
    add("--infinitetalk_dir", help="audio adapter file (single or multi), or its folder")
    add("--wav2vec_dir", help="chinese-wav2vec2-base folder or file")
    add("--dit_path", help="file of a whole merged transformer, in place of the shards in --ckpt_dir")
    add("--vae_path", help="VAE file, where --ckpt_dir has none")
    add("--t5_path", help="text encoder file, where --ckpt_dir has none")
    add("--clip_path", help="CLIP vision file, where --ckpt_dir has none")
    add("--lora_dir", nargs="+", default=[], help="LoRA files")
    add("--lora_scale", nargs="+", type=real, default=[1.2], help="one strength for all LoRAs or one for each")
    add("--quant", choices=QUANTIZERS, help="quantize what is stored as plain numbers")
    add("--quant_dir", help="quantized transformer file; t5_QUANT.safetensors beside it is used too")

    add("--task", default="infinitetalk-14B", help=f"one of {', '.join(TASKS)}")
    add("--size", default="infinitetalk-480", help="infinitetalk-480, infinitetalk-720 or WIDTHxHEIGHT")
    add("--mode", choices=("clip", "streaming"), default="clip", help="one window, or as long as the sound")
    add("--frame_num", type=whole, default=81, help="frames of a window, 4n + 1")
    add("--max_frame_num", type=whole, help=f"most frames in streaming mode, 0: any; {MOST_FRAMES}, silent one window")
    add("--fps", type=real, default=FPS, help="frames a second of the result; the adapters were trained at 25")
    add("--motion_frame", type=whole, help="frames that windows share, 4n + 1; 9, or 25 for multitalk-14B")
    add("--base_seed", type=whole, default=42, help="below 0: random, kept by an unfinished run")
    add("--audio_mode", choices=("localfile", "tts"), default="localfile", help="sound files, or text that is spoken")
    _add_source_flags(parser, switch)

    add("--scheduler", help=f"noise schedule; {SCHEDULER}, with a few-step LoRA {FEW_STEP_SCHEDULER}, if not given")
    add("--sample_steps", type=whole, help=f"steps; {DEFAULT_STEPS} if not given")
    add("--sample_shift", type=real, help="time shift; 7 at 480, 11 at 720 if not given")
    add("--sample_text_guide_scale", type=real, default=5.0, help="1: none")
    add("--sample_audio_guide_scale", type=real, default=4.0, help="1: none")
    add("--audio_scale", type=real, default=1.0, help="factor on what the speech adds in each block")
    add("--use_teacache", **switch, help="skip steps that change little")
    add("--teacache_thresh", type=real, default=0.2, help="0.2 to 0.5; higher is faster and coarser")
    add("--use_apg", **switch, help="adaptive projected guidance")
    add("--apg_momentum", type=real, default=-0.75)
    add("--apg_norm_threshold", type=real, default=55.0)
    add("--color_match", choices=COLOR_METHODS, default="lab", help="how colors are held to the reference")
    add("--color_correction_strength", type=real, default=1.0, help="0 to 1")

    add("--device", help="torch device; the GPU if there is one")
    add("--dtype", choices=DTYPES, default="bf16")
    add("--t5_cpu", **switch, help="encode the prompt on the CPU")
    add("--offload_model", type=yes_or_no, metavar="BOOL", help="for compatibility; encoders always leave the GPU")
    add("--num_persistent_param_in_dit", type=whole, help="parameters that stay on the GPU; 0 streams every block")
    add("--blocks_to_swap", type=whole, help="blocks that stream; -1 or not given: as few as memory asks for")
    add("--attention", default="auto", help="self-attention: auto, sdpa, flash_attn_3, hopper, fp8, sageattn ...")
    add("--compile", nargs="?", const="default", choices=COMPILE_MODES, help="compile the transformer's blocks")
    add("--tiled_vae", type=yes_or_no, metavar="BOOL", help="VAE in tiles; where memory asks for it if not given")
    add("--parallel", choices=("auto",), help="split the video over the GPUs of torchrun as suits them best")
    add("--ulysses_size", type=whole, default=1, help="GPUs that split heads; started by torchrun")
    add("--ring_size", type=whole, default=1, help="GPUs that split keys; started by torchrun")
    add("--dit_fsdp", **switch, help="keep a part of the transformer's blocks on each GPU")
    add("--t5_fsdp", **switch, help="shards nothing: one GPU encodes the prompt, then frees its encoder")
    return parser


def _add_source_flags(parser: Parser, switch: dict[str, Any]) -> None:
    """What is done with a source video, and with quiet speakers."""
    add = parser.add_argument
    add("--scene_seg", **switch, help="cut a source video into its scenes, each with a reference of its own")
    add("--dub", metavar="MASK", help="picture or video, white where the source is made anew; auto: mouths")
    add("--dub_feather", type=whole, default=DEFAULT_FEATHER, help="pixels around it over which new fades into old")
    add("--source_end", choices=SOURCE_ENDS, default="hold", help="what follows the end of a source video")
    add("--camera", type=real, metavar="ZOOM", help="move slowly over a still picture, so much nearer: 1 to 2")
    add("--camera_pan", type=real, nargs=2, metavar=("RIGHT", "DOWN"), help="where it moves, each -1 to 1; 0 0")
    add("--camera_period", type=real, metavar="SECONDS", help="until it is back where it began; 30")
    add("--reanchor", type=whole, metavar="WINDOWS", help="after so many, the last good frame becomes the reference")
    add("--normalize_loudness", type=yes_or_no, default=True, metavar="BOOL", help="bring speech to -23 LUFS first")
    add("--voice_activity", **switch, help="mouths rest where a speaker is quiet (needs silero-vad)")
