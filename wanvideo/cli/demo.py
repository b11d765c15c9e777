"""`demo`: tiny random models, a bundled picture and bundled speech, and the whole way to a playable video."""

from __future__ import annotations

import logging
from pathlib import Path

from ..request import EngineOptions, LoopSettings, ModelFiles, Speaker, TalkRequest
from .parser import Parser

ASSETS = Path(__file__).resolve().parents[1] / "assets"
SIZE = (192, 112)
logger = logging.getLogger("wanvideo")


def build_parser() -> Parser:
    parser = Parser("python -m wanvideo demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the models and the video")
    parser.add_argument("--two", action="store_true", help="two people who speak one after another")
    parser.add_argument("--overwrite", action="store_true", help="replace the video of an earlier demo")
    return parser


def demo_request(two: bool = False) -> TalkRequest:
    """A request over the bundled picture and speech that a laptop fulfils in seconds with tiny models."""
    files = ("speech.flac", "speech_2.flac") if two else ("speech.flac",)
    return TalkRequest(
        prompts=("Two people talk to each other." if two else "A woman talks to the camera.",),
        reference=str(ASSETS / ("two_people.jpg" if two else "portrait.jpg")),
        speakers=tuple(Speaker(str(ASSETS / name)) for name in files),
        audio_type="add" if two else "para",
        size=SIZE,
        settings=LoopSettings(
            scheduler="flowmatch_distill", steps=4, shift=11.0, guidance_scale=1.0, audio_guidance_scale=1.0,
            color_match="lab",
        ),
    )  # fmt: skip


def demo_files(folder: Path, two: bool = False) -> ModelFiles:
    """Tiny models in `folder`, written when they are not there yet."""
    from ..synthetic.models import make_models

    if not (folder / "InfiniteTalk").exists():
        make_models(folder, "tiny", "official")
    return ModelFiles(
        transformer=str(folder / "Wan2.1-I2V-14B-480P"),
        adapter=str(folder / "InfiniteTalk" / ("multi" if two else "single") / "infinitetalk.safetensors"),
        wav2vec=str(folder / "chinese-wav2vec2-base"),
    )


def main(argv: list[str]) -> int:
    flags = build_parser().parse_args(argv)

    from ..pipeline import TalkingVideoPipeline  # here: flags are judged before PyTorch is loaded
    from ..video.reader import probe
    from ..video.writer import check_output
    from .progress import Progress

    output = check_output(flags.out / ("demo_two.mp4" if flags.two else "demo.mp4"), flags.overwrite)
    logger.info("The models are tiny and random: what moves is real, what it shows is not.")
    pipeline = TalkingVideoPipeline(demo_files(flags.out / "models", flags.two), EngineOptions(dtype="fp32"))
    with Progress() as progress:
        path = pipeline.generate(demo_request(flags.two), output, overwrite=flags.overwrite, on_step=progress.step)
    info = probe(path)
    print(f"{path}: {info.frames} frames, {info.duration_s:.2f} s, sound {info.audio_duration_s:.2f} s")
    return 0
