"""Tiny models on disk, in both layouts, and the pictures, sounds and requests that tests of whole runs share."""

import contextlib
import functools
import logging
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from support import media_files

from wanvideo.request import EngineOptions, LoopSettings, ModelFiles, Speaker, TalkRequest
from wanvideo.synthetic.models import SPEECH, WAN, make_models

OPTIONS = EngineOptions(device="cpu", dtype="fp32")
SETTINGS = LoopSettings(
    window_frames=13, motion_frames=5, scheduler="euler", steps=2, guidance_scale=1.0, audio_guidance_scale=1.0,
    color_match="lab",
)  # fmt: skip
SIZE = (48, 48)
SPACE = tempfile.TemporaryDirectory(prefix="wanvideo-tests-")  # goes away with the process


@functools.cache
def official():
    """The folder of a tiny set as Wan-AI and MeiGen-AI publish theirs."""
    return _made("official")


@functools.cache
def comfy():
    """The folder of a tiny set as ComfyUI keeps models."""
    return _made("comfy")


def _made(layout):
    """Made aside and then named: ranks of a test that are the first to ask share the folder, and ask at once."""
    folder = Path(SPACE.name) / layout
    if not folder.exists():
        aside = Path(tempfile.mkdtemp(dir=SPACE.name))
        make_models(aside, "tiny", layout)
        with contextlib.suppress(OSError):  # another one was faster
            aside.rename(folder)
        assert folder.is_dir()
    return folder


def official_files(adapter="single", **changes):
    folder = official()
    names = {
        "transformer": str(folder / WAN),
        "adapter": str(folder / "InfiniteTalk" / adapter / "infinitetalk.safetensors") if adapter else None,
        "wav2vec": str(folder / SPEECH),
    }
    return ModelFiles(**{**names, **changes})


def comfy_files(**changes):
    folder = comfy()

    def only(place):
        return str(next((folder / place).glob("*.safetensors")))

    names = {
        "transformer": only("diffusion_models"), "adapter": only("model_patches"), "vae": only("vae"),
        "text_encoder": only("text_encoders"), "clip_vision": only("clip_vision"), "wav2vec": only("wav2vec2"),
    }  # fmt: skip
    names["transformer"] = str(next((folder / "diffusion_models").glob("wan2.1*")))
    return ModelFiles(**{**names, **changes})


def lora_file():
    return str(next((official() / "loras").glob("*.safetensors")))


def picture(folder, width=96, height=96, name="face.png"):
    """A picture whose left and right half differ, with some structure."""
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([columns * 255 // width, rows * 255 // height, (rows + columns) % 64 * 4], -1)
    path = Path(folder) / name
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return str(path)


def speech(folder, seconds=1.0, name="speech.wav", rate=16000, channels=1, frequency=220.0, level=0.3):
    sound = media_files.tone(rate, seconds, channels, frequency, level)
    swell = 0.6 + 0.4 * np.sin(np.arange(len(sound)) / rate * 17)
    return str(media_files.wav(Path(folder) / name, (sound * swell[:, None]).astype(np.float32), rate))


def request(folder, sounds=None, **changes):
    """A request for one or more speakers; sounds: paths, or None for a speaker without sound."""
    sounds = [speech(folder)] if sounds is None else sounds
    given = {
        "prompts": ("She talks.",), "reference": changes.get("reference") or picture(folder), "size": SIZE,
        "settings": SETTINGS,
        "speakers": tuple(Speaker(sound) for sound in sounds),
    }  # fmt: skip
    return TalkRequest(**{**given, **changes})


def loads(caplog):
    """The log lines that say that weights were read."""
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith("Loaded ")]


def capture_log(caplog):
    caplog.set_level(logging.INFO, logger="wanvideo")
