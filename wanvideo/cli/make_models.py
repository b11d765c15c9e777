"""`make-models`: write a complete set of models with random weights."""

from __future__ import annotations

import logging
from pathlib import Path

from .. import checks
from ..synthetic.models import LAYOUTS, PARTS, SPEECH, WAN, make_models
from ..synthetic.weights import SIZES
from .parser import Parser, whole
from .shell import IS_WINDOWS, quoted

HOW = {
    "official": """
Make a video with them (noise, but every step of the way is real):
  python -m wanvideo generate --ckpt_dir {out}/{wan} \\
    --infinitetalk_dir {out}/InfiniteTalk/single/infinitetalk.safetensors \\
    --wav2vec_dir {out}/{speech} \\
    --input_json job.json --size infinitetalk-480 --sample_steps 4 --save_file talk
where job.json is {{"prompt": "she talks", "cond_video": "face.png", "cond_audio": {{"person1": "speech.wav"}}}}""",
    "comfy": """
Start ComfyUI with them (noise, but every node runs): add to extra_model_paths.yaml
  synthetic:
    base_path: {out}
    diffusion_models: diffusion_models
    model_patches: model_patches
    vae: vae
    text_encoders: text_encoders
    clip_vision: clip_vision
    wav2vec2: wav2vec2
    loras: loras""",
}


def main(argv: list[str]) -> int:
    """Write the models, then say what was written and how to run them."""
    parser = Parser("python -m wanvideo make-models", description=__doc__)
    parser.add_argument("--out", required=True, help="folder to write to; no file in it is replaced")
    parser.add_argument("--size", choices=SIZES, default="tiny", help="tiny: 45 MB, small: 1 GB, full: 57 GB (14B)")
    parser.add_argument("--layout", choices=LAYOUTS, default="official", help="official folders, or ComfyUI's models")
    parser.add_argument("--seed", type=whole, default=0)
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="only these")
    flags = parser.parse_args(argv)
    checks.number("--seed", flags.seed, 0, 2**64 - 1, whole=True)
    logging.getLogger("wanvideo").info("Writing %s models to %s", flags.size, flags.out)
    written = make_models(flags.out, flags.size, flags.layout, flags.seed, flags.parts)
    for file in written:
        print(f"{file.part:<14} {file.size_bytes / 1e6:>10.1f} MB  {file.path}")
    print(f"{'':<14} {sum(file.size_bytes for file in written) / 1e6:>10.1f} MB in all")
    if flags.parts is None:
        out = str(Path(flags.out).absolute()) if flags.layout == "comfy" else quoted(str(Path(flags.out)))
        how = HOW[flags.layout].format(out=out, wan=WAN, speech=SPEECH)
        print(how.replace(" \\\n   ", "") if IS_WINDOWS else how)  # cmd goes on with another sign than PowerShell
    return 0
