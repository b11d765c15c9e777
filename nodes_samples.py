"""Pictures, speech and a video that the templates open with, put where ComfyUI's own loaders look."""

from __future__ import annotations

import shutil
from pathlib import Path

from .nodes_common import in_comfyui, input_folder, logger
from .wanvideo.durable import written_aside

ASSETS = Path(__file__).resolve().parent / "wanvideo" / "assets"
# Names that nobody's own files have -> which of our files it is.
SAMPLES = {
    "talking_video_portrait.jpg": "portrait.jpg",
    "talking_video_left.webp": "two_people_left.webp",
    "talking_video_right.webp": "two_people_right.webp",
    "talking_video_speech.flac": "speech.flac",
    "talking_video_speech_2.flac": "speech_2.flac",
    "talking_video_source.mp4": "talk.mp4",
}


def place_samples() -> None:
    """Put the samples that are not there yet into ComfyUI's input folder; whatever has a name of theirs is kept."""
    if not in_comfyui():
        return
    folder = input_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, asset in SAMPLES.items():
            if not (folder / name).exists():
                with written_aside(folder / name) as scratch:
                    shutil.copyfile(ASSETS / asset, scratch)
    except OSError as error:  # the templates then open without them
        logger.info("The samples of the templates cannot be put into %s (%s).", folder, error.strerror)
