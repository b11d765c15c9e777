"""Folders as a clone of the repository is, with tiny models under the names that the documents have."""

import json
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
from support import jobs
from support import quantized_files as files

from wanvideo.synthetic.models import LORA_NAME, WAN, make_models
from wanvideo.synthetic.weights import SIZES

ROOT = Path(__file__).resolve().parents[2]
HEADS = 8  # so many as eight GPUs can share; tiny models have two


def clone(folder):
    """The program's files in a folder."""
    for name in ("run_configs", "examples", "wanvideo", "generate_infinitetalk.py"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def fill(folder, models):
    """Put models of `make_models` into weights/ of a clone, as the documents download them."""
    weights = folder / "weights"
    weights.mkdir()
    for path in models.iterdir():
        (weights / path.name).symlink_to(path)
    (weights / LORA_NAME.replace("rank64", "rank128")).symlink_to(next((models / "loras").glob("lightx2v*")))
    (weights / "InfiniteTalk").unlink()
    adapter = weights / "InfiniteTalk" / "single" / "infinitetalk.safetensors"
    adapter.parent.mkdir(parents=True)
    adapter.symlink_to(models / "InfiniteTalk" / "single" / adapter.name)
    _write_quantized(weights / "InfiniteTalk" / "quant_models", models, adapter)
    return folder


def downloaded(folder):
    """A clone with all that the documents download, tiny."""
    return fill(clone(folder), jobs.official())


def with_heads(folder, monkeypatch):
    """The same with a transformer of eight heads."""
    sizes = replace(SIZES["tiny"], dim=128 * HEADS, ffn_dim=256)
    monkeypatch.setitem(SIZES, "heads", sizes)
    models = folder / "models"
    make_models(models, "heads", "official")
    place = folder / "clone"
    place.mkdir()
    return fill(clone(place), models)


def _write_quantized(place, models, adapter):
    """The published set of a quantized transformer with its adapter, and its text encoder."""
    wan = models / WAN
    merged = safetensors.torch.load_file(adapter)
    for shard in wan.glob("diffusion_pytorch_model*.safetensors"):
        merged |= safetensors.torch.load_file(shard)
    text = torch.load(next(wan.glob("models_t5*.pth")), weights_only=True)
    place.mkdir()
    for name, listed, state in (
        ("infinitetalk_single_fp8", "infinitetalk_single_fp8", merged),
        ("t5_fp8", "t5_map_fp8", text),
    ):
        stored, layers = files.quanto({key: value.float() for key, value in state.items()}, torch.float8_e4m3fn)
        files.write(place / f"{name}.safetensors", stored)
        (place / f"{listed}.json").write_text(json.dumps(layers))
