"""One engine: a graph in a real ComfyUI, the command line and the library make the same frames to the bit."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import jobs, media_files
from support.comfy_models import api_template, shrink

from wanvideo import TalkingVideoPipeline
from wanvideo.cli.generate import main as generate
from wanvideo.cli.generate import read_job
from wanvideo.cli.main import run as run_command
from wanvideo.video.writer import VideoWriter

pytestmark = pytest.mark.comfyui
PROMPT, SEED, SECONDS = "A woman looks into the camera and talks.", 7, 1.6
BOXES = ((20, 10, 130, 90), (20, 110, 130, 190))  # row_min, col_min, row_max, col_max


@dataclass(frozen=True)
class Case:
    """What differs from template 01 at its own numbers."""

    picture: tuple[int, int] = (200, 150)
    kind: str = "png"
    size: tuple[int, int] = (96, 64)
    speakers: int = 1
    is_video: bool = False
    has_lora: bool = False
    quantize: str | None = None
    fps: float = 25


CASES = {
    "one": Case(),
    "two": Case(speakers=2),
    "video": Case(is_video=True),
    "lora": Case(has_lora=True),
    "fp8": Case(quantize="fp8", has_lora=True),
    "24 fps": Case(fps=24),
    "portrait": Case(picture=(120, 210), size=(64, 96)),
    "jpeg": Case(picture=(250, 170), kind="jpg"),
}


@pytest.fixture(scope="module")
def models(server):
    def path(*parts):
        return str(next(server.models.joinpath(*parts[:-1]).glob(parts[-1])))

    return {
        "transformer": path("diffusion_models", "wan2.1_i2v_480p_14B_fp8_scaled.safetensors"),
        1: path("diffusion_models", "Wan2_1-InfiniTetalk-Single_fp16.safetensors"),
        2: path("model_patches", "Wan2_1-InfiniteTalk-Multi*.safetensors"),
        "vae": path("vae", "wan_2.1_vae.safetensors"),
        "text": path("text_encoders", "umt5_xxl_fp8_e4m3fn_scaled.safetensors"),
        "clip": path("clip_vision", "clip_vision_h.safetensors"),
        "audio": path("wav2vec2", "wav2vec2-chinese-base_fp16.safetensors"),
        "lora": path("loras", "lightx2v_I2V_14B_480p_cfg_step_distill_rank64_bf16.safetensors"),
    }


@pytest.fixture(scope="module")
def inputs(server):
    """Files that every face is given, in ComfyUI's input folder."""
    folder = server.base / "input"
    for number, frequency in ((1, 220.0), (2, 330.0)):
        jobs.speech(folder, SECONDS, f"parity_{number}.wav", rate=22050, frequency=frequency)
    for case in CASES.values():
        jobs.picture(folder, *case.picture, name_of(case))
    for number, (top, left, bottom, right) in enumerate(BOXES, 1):
        mask = np.zeros((150, 200), np.uint8)
        mask[top:bottom, left:right] = 255
        Image.fromarray(mask).convert("RGB").save(folder / f"parity_mask_{number}.png")
    media_files.video(folder / "parity.mp4", media_files.numbered_frames(60, 96, 128))
    return folder


def name_of(case):
    return f"parity_{case.picture[0]}.{case.kind}"


@pytest.mark.parametrize("name", CASES)
def test_every_face_makes_the_same_frames(server, client, models, inputs, tmp_path, name):
    case = CASES[name]
    client.run(graph_of(case, models, name))
    in_graph = torch.from_numpy(np.load(server.base / "output" / f"parity {name}.npy"))
    arguments = command_of(case, models, inputs, tmp_path)
    job = read_job(arguments)
    windows = list(TalkingVideoPipeline(job.files, job.options).run(job.request))
    frames = torch.cat([window.frames for window in windows])
    num_frames = round(SECONDS * case.fps) * case.speakers  # they speak one after another
    assert len(windows) > 1 and frames.shape == (num_frames, case.size[1], case.size[0], 3)
    assert frames.float().std() > 1 and torch.equal(frames, in_graph)
    assert run_command(generate, arguments) == 0
    with VideoWriter(tmp_path / "library.mp4", *case.size, case.fps) as writer:
        for window in windows:  # a file is encoded window by window
            writer.write(window.frames)
    by_command = media_files.decoded_frames(tmp_path / "command.mp4")
    assert np.array_equal(by_command, media_files.decoded_frames(tmp_path / "library.mp4"))


def graph_of(case, models, name):
    """Template 01 with the case's inputs; sizes of a laptop, all else as it is shipped."""
    graph = shrink(api_template("01_talking_person"))
    ids = {node["class_type"]: number for number, node in graph.items()}
    talk, speech = graph[ids["WanVideoImageToVideoMultiTalk"]]["inputs"], graph[ids["MultiTalkWav2VecEmbeds"]]["inputs"]
    loader, text = graph[ids["WanVideoModelLoader"]]["inputs"], graph[ids["WanVideoTextEncodeCached"]]["inputs"]
    talk |= {"width": case.size[0], "height": case.size[1]}
    text["positive_prompt"] = PROMPT
    graph[ids["WanVideoSampler"]]["inputs"]["seed"] = SEED
    graph[ids["LoadAudio"]]["inputs"]["audio"] = "parity_1.wav"
    graph[ids["LoadImage"]]["inputs"]["image"] = name_of(case)
    graph[ids["MultiTalkModelLoader"]]["inputs"]["model"] = Path(models[case.speakers]).name
    speech["fps"] = case.fps
    if not case.has_lora:
        del loader["lora"]
    if case.quantize:
        loader["quantization"] = text["quantization"] = "fp8_e4m3fn"
    if case.is_video:
        del talk["start_image"]
        graph["video"] = {"class_type": "LoadVideo", "inputs": {"file": "parity.mp4"}}
        talk["source_video"] = ["video", 0]
    if case.speakers == 2:
        graph["audio_2"] = {"class_type": "LoadAudio", "inputs": {"audio": "parity_2.wav"}}
        speech |= {"audio_2": ["audio_2", 0], "multi_audio_type": "add"}
        for number in (1, 2):
            mask = {"image": f"parity_mask_{number}.png", "channel": "red"}
            graph[f"mask_{number}"] = {"class_type": "LoadImageMask", "inputs": mask}
            speech[f"mask_{number}"] = [f"mask_{number}", 0]
    graph["images"] = {
        "class_type": "WanVideoPassImagesFromSamples",
        "inputs": {"samples": [ids["WanVideoSampler"], 0]},
    }
    graph["keep"] = {"class_type": "KeepFrames", "inputs": {"images": ["images", 0], "name": f"parity {name}"}}
    for kind in ("SaveVideo", "WanVideoTalkingVideo"):
        del graph[ids[kind]]
    return graph


def command_of(case, models, inputs, folder):
    """`generate` for the same video."""
    source = "parity.mp4" if case.is_video else name_of(case)
    names = [f"person{number}" for number in range(1, case.speakers + 1)]
    job = {
        "prompt": PROMPT,
        "cond_video": str(inputs / source),
        "cond_audio": {name: str(inputs / f"parity_{number}.wav") for number, name in enumerate(names, 1)},
    }
    if case.speakers == 2:
        job |= {"audio_type": "add", "bbox": dict(zip(names, map(list, BOXES), strict=True))}
    (folder / "job.json").write_text(json.dumps(job))
    flags = {
        "input_json": folder / "job.json", "save_file": folder / "command.mp4", "dit_path": models["transformer"],
        "infinitetalk_dir": models[case.speakers], "wav2vec_dir": models["audio"], "vae_path": models["vae"],
        "t5_path": models["text"], "clip_path": models["clip"], "size": "x".join(map(str, case.size)),
        "mode": "streaming", "frame_num": 29, "motion_frame": 5, "fps": case.fps, "base_seed": SEED, "dtype": "fp32",
        "scheduler": "flowmatch_distill", "sample_steps": 4, "sample_shift": 11, "sample_text_guide_scale": 1,
        "sample_audio_guide_scale": 1, "color_match": "disabled", "device": "cpu",
    }  # fmt: skip
    if case.has_lora:
        flags |= {"lora_dir": models["lora"], "lora_scale": 0.8}
    if case.quantize:
        flags["quant"] = case.quantize
    return [part for name, value in flags.items() for part in (f"--{name}", str(value))]
