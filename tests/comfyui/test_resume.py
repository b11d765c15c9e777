"""A server that is killed in the middle of a video: started again, the same graph goes on to the same frames."""

import json
import os
import random
import time

import av
import numpy as np
import pytest
from support import media_files
from support.comfy_client import ComfyClient
from support.comfy_models import api_template, shrink, start_with_pack

pytestmark = pytest.mark.comfyui
NUM_KILLS = int(os.environ.get("WANVIDEO_KILLS", "1"))
LATEST_S = 4.0  # after a graph is queued; a video is finished then, where the machine is idle


def graph_of(seed=11):
    graph = shrink(api_template("01_talking_person"))
    for node in graph.values():
        if node["class_type"] == "WanVideoSampler":
            node["inputs"]["seed"] = seed
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


def playable_frames(run):
    """Of the file of a run that was killed, which has sound; 0 where there is none yet."""
    file = next((run / name for name in ("video.mp4", "growing.mp4") if (run / name).exists()), None)
    if file is None or windows_in(run) == 0:
        return 0
    with av.open(str(file)) as container:
        assert container.streams.audio
    return len(media_files.decoded_frames(file))


def test_kills_at_random_moments_lose_nothing(comfyui, tmp_path):
    """A video is killed until it is finished, then the next one; WANVIDEO_KILLS says how often in all."""
    moments, resumed, seed = random.Random(NUM_KILLS), {}, 1
    with start_with_pack(comfyui, tmp_path) as server:
        run = server.base / "output" / "talking_video"
        for number in range(NUM_KILLS):
            client = ComfyClient(server.url)
            client.post("/prompt", {"prompt": graph_of(seed), "client_id": client.client_id})
            time.sleep(moments.uniform(0, LATEST_S))
            server.process.kill()
            server.process.wait()
            manifest = run / "manifest.json"
            counted = json.loads(manifest.read_text())["progress"]["num_frames"] if manifest.exists() else 0
            assert playable_frames(run) >= counted
            server.start()
            if (run / "video.mp4").exists() or number == NUM_KILLS - 1:
                ComfyClient(server.url).run(graph_of(seed))
                resumed[seed] = media_files.decoded_frames(run / "video.mp4")
                run.rename(tmp_path / f"resumed_{seed}")
                seed += 1
        for seed, frames in resumed.items():
            ComfyClient(server.url).free()  # what the server remembers of the graph would be taken as it is
            ComfyClient(server.url).run(graph_of(seed))
            assert np.array_equal(frames, media_files.decoded_frames(run / "video.mp4"))
            run.rename(tmp_path / f"whole_{seed}")
