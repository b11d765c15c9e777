"""Commands of the users' five documents, as they are written there, and what a shell makes of them.

`speed`, `rtx4090` and `gpus` are the documents on speed, on the RTX 4090 and on several GPUs. The two others hold
Python that calls nodes. What a document leaves open ("other parameters") is the first command of `speed`.
"""

import os
import subprocess
import sys
from pathlib import Path

COMFYUI_EQUIVALENT = r"""
python generate_infinitetalk.py \
    --ckpt_dir weights/Wan2.1-I2V-14B-480P \
    --wav2vec_dir weights/chinese-wav2vec2-base \
    --infinitetalk_dir weights/InfiniteTalk/single/infinitetalk.safetensors \
    --lora_dir weights/lightx2v_I2V_14B_480p_cfg_step_distill_rank128_bf16.safetensors \
    --lora_scale 0.8 \
    --quant fp8 \
    --quant_dir weights/InfiniteTalk/quant_models/infinitetalk_single_fp8.safetensors \
    --input_json examples/single_example_image.json \
    --size infinitetalk-480 \
    --sample_steps 4 \
    --sample_shift 11.0 \
    --sample_text_guide_scale 1.0 \
    --sample_audio_guide_scale 2.0 \
    --mode streaming \
    --frame_num 81 \
    --motion_frame 9 \
    --num_persistent_param_in_dit 0 \
    --save_file output_fast
"""
# gpus: the three examples. {} is what differs between the first two.
LONG = r"""#!/bin/bash
GPU_NUM={gpus}

torchrun --nproc_per_node=$GPU_NUM --standalone generate_infinitetalk.py \
    --ckpt_dir weights/Wan2.1-I2V-14B-480P \
    --wav2vec_dir weights/chinese-wav2vec2-base \
    --infinitetalk_dir weights/InfiniteTalk/single/infinitetalk.safetensors \
    \
    --lora_dir weights/lightx2v_I2V_14B_480p_cfg_step_distill_rank128_bf16.safetensors \
    --lora_scale 0.8 \
    --quant fp8 \
    --quant_dir weights/InfiniteTalk/quant_models/infinitetalk_single_fp8.safetensors \
    \
    --dit_fsdp --t5_fsdp \
    --ulysses_size=$GPU_NUM \
    \
    --input_json examples/single_example_image.json \
    --size infinitetalk-480 \
    --sample_steps 4 \
    --sample_shift 11.0 \
    --sample_text_guide_scale 1.0 \
    --sample_audio_guide_scale 2.0 \
    \
    --mode streaming \
    --frame_num 81 \
    --motion_frame 9 \
    --max_frame_num {most} \
    --save_file {name}
"""
TWO_GPUS = LONG.format(gpus=2, most=7500, name="output_2gpu_long")
FOUR_GPUS = LONG.format(gpus=4, most=45000, name="output_4gpu_ultra_long")
EIGHT_GPUS = r"""#!/bin/bash
GPU_NUM=8

torchrun --nproc_per_node=$GPU_NUM --standalone generate_infinitetalk.py \
    --ckpt_dir weights/Wan2.1-I2V-14B-480P \
    --wav2vec_dir weights/chinese-wav2vec2-base \
    --infinitetalk_dir weights/InfiniteTalk/single/infinitetalk.safetensors \
    \
    --lora_dir weights/lightx2v_I2V_14B_480p_cfg_step_distill_rank128_bf16.safetensors \
    --lora_scale 0.8 \
    \
    --dit_fsdp --t5_fsdp \
    --ulysses_size=4 \
    --ring_size=2 \
    \
    --input_json examples/single_example_image.json \
    --size infinitetalk-720 \
    --sample_steps 4 \
    --sample_shift 11.0 \
    --sample_text_guide_scale 1.0 \
    --sample_audio_guide_scale 2.0 \
    \
    --mode streaming \
    --frame_num 81 \
    --motion_frame 9 \
    --max_frame_num 45000 \
    --save_file output_8gpu_720p
"""
OTHERS = r"""GPU_NUM={gpus}
torchrun --nproc_per_node=$GPU_NUM {standalone} generate_infinitetalk.py {ours} {rest}
"""
# Flags of the short examples: (GPUs, whether --standalone is there, their flags).
SHORT = {
    "speed, 4 GPUs": (4, True, "--dit_fsdp --t5_fsdp --ulysses_size=$GPU_NUM"),
    "gpus, 2 GPUs": (2, False, "--ulysses_size=2 --dit_fsdp --t5_fsdp"),
    "gpus, 4 GPUs": (4, False, "--ulysses_size=4 --dit_fsdp --t5_fsdp"),
    "gpus, 8 GPUs": (8, False, "--ulysses_size=8 --dit_fsdp --t5_fsdp"),
    "gpus, mixed": (8, True, "--ulysses_size=4 --ring_size=2"),
    "gpus, more ring": (8, True, "--ulysses_size=2 --ring_size=4"),
    "gpus, only ring": (8, True, "--ulysses_size=1 --ring_size=8"),
    "gpus, less memory": (2, True, "--ulysses_size=2 --num_persistent_param_in_dit 0 --t5_cpu true"),
}
APP = r"""
python app.py \
    --ckpt_dir weights/Wan2.1-I2V-14B-480P \
    --wav2vec_dir weights/chinese-wav2vec2-base \
    --infinitetalk_dir weights/InfiniteTalk/single/infinitetalk.safetensors \
    --quant fp8 \
    --quant_dir weights/InfiniteTalk/quant_models/infinitetalk_single_fp8.safetensors \
    --num_persistent_param_in_dit 0 \
    --motion_frame 9
"""
# rtx4090: installation. Its requirements.txt is the reference's.
INSTALLS = ("flash-attn --no-build-isolation", "-r requirements.txt", "librosa misaki[en]", '"numpy<2.2,>=1.24"')
# Lines of huggingface-cli: repository, files (all of it if none are named), further flags.
DOWNLOADS = (
    "Wan-AI/Wan2.1-I2V-14B-480P --local-dir ./weights/Wan2.1-I2V-14B-480P",
    "TencentGameMate/chinese-wav2vec2-base --local-dir ./weights/chinese-wav2vec2-base",
    "TencentGameMate/chinese-wav2vec2-base model.safetensors --revision refs/pr/1 "
    "--local-dir ./weights/chinese-wav2vec2-base",
    "MeiGen-AI/InfiniteTalk --local-dir ./weights/InfiniteTalk",
    "Kijai/WanVideo_comfy Wan21_T2V_14B_lightx2v_cfg_step_distill_lora_rank32.safetensors --local-dir weights/",
)


def arguments_of(script: str, cwd: Path) -> list[list[str]]:
    """What a shell starts `python` and `torchrun` with in a script: a program's name and its arguments, each time."""
    echo = "".join(f'{name}() {{ printf "%s\\0" {name} "$@"; printf "\\n"; }}\n' for name in ("python", "torchrun"))
    done = subprocess.run(
        ["bash", "-c", echo + script], cwd=cwd, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return [line.rstrip("\0").split("\0") for line in done.stdout.splitlines()]


def short(name: str) -> str:
    """A short example for several GPUs, with the first command's flags where it leaves them open."""
    gpus, standalone, ours = SHORT[name]
    rest = " ".join(COMFYUI_EQUIVALENT.replace("\\\n", " ").split()[2:])
    return OTHERS.format(gpus=gpus, standalone="--standalone" * standalone, ours=ours, rest=rest)


def torchrun(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """torchrun itself, by its module."""
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *arguments], cwd=cwd, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
