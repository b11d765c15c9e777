#!/usr/bin/env bash
# The preset lists every number it sets (python -m wanvideo presets) and finds its models: docs/command_line.md says where.
# What is added to this command wins over it.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" generate_infinitetalk.py --preset 05_low_vram \
    --input_json examples/single_example_image.json \
    --mode streaming \
    --save_file output_low_vram \
    "$@"
