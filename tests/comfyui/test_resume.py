"""A server that is killed in the middle of a video: started again, the same graph goes on to the same frames."""

import json
import time

import av
import numpy as np
import pytest
from support import media_files
from support.comfy_client import ComfyClient
from support.comfy_models import api_template, shrink, start_with_pack

pytestmark = pytest.mark.comfyui


def graph_of():
    graph = shrink(api_template("01_talking_person"))
    for node in graph.values():
        if node["class_type"] == "WanVideoSampler":
            node["inputs"]["seed"] = 11
    return graph


def windows_in(folder):
    try:
        return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["progress"]["num_windows"]
    except FileNotFoundError:
        return 0


def test_a_killed_server_goes_on_after_its_restart(comfyui, tmp_path):
    with start_with_pack(comfyui, tmp_path) as server:
        client = ComfyClient(server.url)
        runs = server.base / "output"
        client.post("/prompt", {"prompt": graph_of(), "client_id": client.client_id})
        end = time.monotonic() + 120
        while windows_in(runs / "talking_video") < 1:
            assert time.monotonic() < end, server.log()[-2000:]
            time.sleep(0.01)
        server.process.kill()
        server.process.wait()
        assert not (runs / "talking_video" / "video.mp4").exists(), "the kill came too late"
        assert len(media_files.decoded_frames(runs / "talking_video" / "growing.mp4")) >= 29
        server.start()
        ComfyClient(server.url).run(graph_of())
        assert "goes on" in server.log()
        resumed = media_files.decoded_frames(runs / "talking_video" / "video.mp4")
        (saved,) = (runs / "video").glob("*.mp4")
        assert saved.samefile(runs / "talking_video" / "video.mp4"), "output/ holds the video once"
        with av.open(str(saved)) as container:
            assert json.loads(container.metadata["prompt"]) and container.streams.audio
        server.stop()
        (runs / "talking_video").rename(tmp_path / "resumed")
        server.start()
        ComfyClient(server.url).run(graph_of())
        assert np.array_equal(resumed, media_files.decoded_frames(runs / "talking_video" / "video.mp4"))
