"""What ComfyUI's own loaders give, where ours are accepted."""

import numpy as np
import pytest
from support.comfy_models import api_template, shrink

pytestmark = pytest.mark.comfyui


def frames_of(server, client, change, name):
    graph = shrink(api_template("01_talking_person"))
    for number, node in list(graph.items()):
        if node["class_type"] == "MultiTalkWav2VecEmbeds":
            node["inputs"]["num_frames"] = 29
        if node["class_type"] == "WanVideoSampler":
            graph["80"] = {"class_type": "WanVideoPassImagesFromSamples", "inputs": {"samples": [number, 0]}}
    graph["81"] = {"class_type": "KeepFrames", "inputs": {"images": ["80", 0], "name": name}}
    change(graph)
    client.run(graph)
    return np.load(server.base / "output" / f"{name}.npy")


def test_the_vae_of_comfyui_gives_the_frames_of_ours(server, client):
    def take_theirs(graph):
        for number, node in graph.items():
            if node["class_type"] == "WanVideoVAELoader":
                graph[number] = {"class_type": "VAELoader", "inputs": {"vae_name": node["inputs"]["model_name"]}}

    ours = frames_of(server, client, lambda graph: None, "our vae")
    assert np.array_equal(ours, frames_of(server, client, take_theirs, "their vae"))


def test_a_vae_of_another_model_is_named(client):
    graph = {
        "1": {"class_type": "VAELoader", "inputs": {"vae_name": "pixel_space"}},
        "2": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}},
        "3": {
            "class_type": "WanVideoEncode",
            "inputs": {
                "vae": ["1", 0], "image": ["2", 0], "enable_vae_tiling": False, "tile_x": 272, "tile_y": 272,
                "tile_stride_x": 144, "tile_stride_y": 128,
            },
        },
        "4": {"class_type": "WanVideoPassImagesFromSamples", "inputs": {"samples": ["3", 0]}},
        "5": {"class_type": "PreviewImage", "inputs": {"images": ["4", 0]}},
    }  # fmt: skip
    message = client.run(graph, expect="error").error()["exception_message"]
    assert "VAE" in message, message
