"""Tiny models in a ComfyUI's models folder, under the names that templates and users' graphs give."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import soundfile
import torch
from PIL import Image
from support.comfy_server import PACK_NAME, REPOSITORY, ComfyServer, Unavailable, in_ci, install_pack

from wanvideo.checkpoints.dialects import Kind
from wanvideo.synthetic.models import make_models
from wanvideo.synthetic.weights import SIZES, shapes_of

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "wanvideo" / "assets"
WORKFLOWS = ROOT / "example_workflows"
TEMPLATES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
WIDTH, HEIGHT = 96, 64
BASE = "diffusion_models/wan2.1_i2v_480p_14B_fp8_scaled.safetensors"
MULTI = "model_patches/Wan2_1-InfiniteTalk-Multi_fp16.safetensors"
TEXT = "text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors"
WHOLE_CLIP = "clip_vision_h_whole.safetensors"
WRONG_LORA = "no_lora.safetensors"
# What graphs of users name -> which of the tiny files stands for it; files are recognized by content, never by name.
ALIASES = {
    "diffusion_models/wan2.1_i2v_480p_14B_fp16.safetensors": BASE,
    "vae/Wan2_1_VAE_bf16.safetensors": "vae/wan_2.1_vae.safetensors",
}


def put_models(models: Path) -> None:
    """Everything that the templates need, and what graphs of users name beside it."""
    make_models(models, "tiny", "comfy")
    for name, source in ALIASES.items():
        shutil.copyfile(models / source, models / name)
    write_clip(models / "clip_vision" / WHOLE_CLIP)


def write_clip(path: Path) -> None:
    """A ViT-H whose first two layers are random and whose others do nothing, which is written in a second."""
    sizes = dataclasses.replace(SIZES["tiny"], clip_ffn=5120, clip_layers=32)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in shapes_of(Kind.CLIP_VISION, sizes).items():
        is_idle = ".layers." in name and int(name.split(".layers.")[1].split(".")[0]) > 1
        tensors[name] = torch.zeros(shape, dtype=torch.float16)
        if not is_idle:
            tensors[name].normal_(std=0.02, generator=generator)
    safetensors.torch.save_file(tensors, path)


def write_wrong_files(base: Path) -> None:
    """In a server's folder: a LoRA of no kind, sound in which nobody speaks, and a mask where nothing is painted."""
    shutil.copyfile(base / "models" / "vae" / "wan_2.1_vae.safetensors", base / "models" / "loras" / WRONG_LORA)
    soundfile.write(base / "input" / "silent.wav", np.zeros(32000, np.float32), 16000)
    Image.new("RGBA", (832, 480), (90, 90, 90, 255)).save(base / "input" / "unpainted.png")


def template(name: str) -> dict[str, Any]:
    """A template as the page opens it."""
    return json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))


def api_template(name: str) -> dict[str, Any]:
    """A template as it is queued over HTTP."""
    return json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))


def shrink(graph: dict[str, Any]) -> dict[str, Any]:
    """A template's graph in API format at a size that a laptop's CPU samples in seconds; all else stays."""
    graph = copy.deepcopy(graph)
    for node in graph.values():
        if node["class_type"] == "WanVideoImageToVideoMultiTalk":
            node["inputs"] |= {"width": WIDTH, "height": HEIGHT, "frame_window_size": 29, "motion_frame": 5}
            node["inputs"]["size"] = "custom"
        if node["class_type"] == "WanVideoTalk":
            node["inputs"] |= {"width": WIDTH, "height": HEIGHT, "size": "custom"}
        if node["class_type"] == "ImageScale":
            node["inputs"] |= {"width": WIDTH, "height": HEIGHT}
        for name in ("base_precision", "precision"):
            if name in node["inputs"]:
                node["inputs"][name] = "fp32"  # half precision has no fast path on a CPU
    return graph


def changes(graph: dict[str, Any], other: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Inputs that differ in `other`, by the ids of nodes: what `overridden` takes to compute it in place of `graph`."""
    found: dict[str, dict[str, Any]] = {}
    for number, node in other.items():
        inputs = graph[number]["inputs"]
        changed = {name: value for name, value in node["inputs"].items() if inputs.get(name) != value}
        found.setdefault(node["class_type"], {}).update(changed)
    return found


@contextlib.contextmanager
def required():
    """What is missing on this machine is an error in CI and a skip with its reason elsewhere."""
    try:
        yield
    except Unavailable as reason:
        if in_ci():
            raise
        pytest.skip(str(reason))


TEST_NODES = """
import json
from pathlib import Path
import folder_paths
import numpy as np
from server import PromptServer

OVERRIDES = Path(__file__).with_name("overrides.json")  # {id of a node: {input: value}} for every graph that comes

def override(request):
    values = json.loads(OVERRIDES.read_text()) if OVERRIDES.is_file() else {}
    for node in request["prompt"].values():
        node["inputs"].update(values.get(node["class_type"], {}))
    return request

PromptServer.instance.add_on_prompt_handler(override)

class KeepFrames:
    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "keep", "tests", True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",), "name": ("STRING", {"default": "frames"})}}

    def keep(self, images, name):
        np.save(Path(folder_paths.get_output_directory(), name + ".npy"), (images * 255).round().byte().cpu().numpy())
        return {}

class AnyType(str):
    def __ne__(self, other):
        return False

class AnyValue:
    RETURN_TYPES, FUNCTION, CATEGORY = (AnyType("*"),), "give", "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": ("STRING", {"default": ""}), "kind": (["str", "int", "float"],)}}

    def give(self, value, kind):
        return ({"str": str, "int": int, "float": float}[kind](value),)

NODE_CLASS_MAPPINGS = {"KeepFrames": KeepFrames, "AnyValue": AnyValue}
"""


@contextlib.contextmanager
def overridden(server: ComfyServer, values: dict[str, dict[str, Any]]):
    """While this is entered the server computes every graph with these inputs, whatever it was sent: a graph that is
    queued unchanged is computed at a size for CPUs. values: id of a node -> its inputs.
    """
    file = server.custom_nodes / "test-nodes" / "overrides.json"
    file.write_text(json.dumps(values), encoding="utf-8")
    yield
    file.unlink()


@contextlib.contextmanager
def start_with_pack(comfyui, base):
    """A server that has this pack, tiny models and everything that the templates name."""
    server = ComfyServer(comfyui, base, ["--preview-method", "latent2rgb"])
    install_pack(REPOSITORY, server.custom_nodes, PACK_NAME)
    put_models(server.models)
    folder = server.custom_nodes / "test-nodes"
    folder.mkdir()
    (folder / "__init__.py").write_text(TEST_NODES, encoding="utf-8")
    with server:
        assert not server.import_errors(), "\n".join(server.import_errors().values())
        yield server
