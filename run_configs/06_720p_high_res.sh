#!/usr/bin/env bash
# The preset lists every number it sets (python -m wanvideo presets); what is added to this command wins over it.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" generate_infinitetalk.py --preset 06_720p_high_res \
    --ckpt_dir weights/Wan2.1-I2V-14B-720P \
    --wav2vec_dir weights/chinese-wav2vec2-base \
    --infinitetalk_dir weights/InfiniteTalk/single/infinitetalk.safetensors \
    --lora_dir weights/lightx2v_I2V_14B_480p_cfg_step_distill_rank128_bf16.safetensors \
    --input_json examples/single_example_image.json \
    --mode streaming \
    --save_file output_720p_high_res \
    "$@"
