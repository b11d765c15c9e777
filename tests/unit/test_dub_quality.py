"""A dub's file: outside of the feathered edge 45 dB and more to the source, and exact before it is encoded."""

import av
import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from support import jobs
from support import media_files as media

from wanvideo import TalkingVideoPipeline
from wanvideo.keep import DUB_CRF, Keep, crf_of
from wanvideo.protocols import KeptFrames
from wanvideo.runs.manifest import Manifest
from wanvideo.video.composite import composite
from wanvideo.video.mask import open_region
from wanvideo.video.source import SourceVideo, from_bytes, to_bytes
from wanvideo.video.writer import VideoWriter

FRAMES = 5


def filmed(width, height, noise):
    """A photograph that a camera pans over, with a sensor's noise of so many levels, in light and in colors."""
    draw = np.random.default_rng(0)
    scene = np.array(Image.fromarray(data.astronaut()).resize((width * 3 // 2, height * 3 // 2)))
    frames = []
    for k in range(FRAMES):
        seen = scene[height // 8 + k :][:height, 3 * k :][:, :width]
        grain = draw.normal(0, noise, (height, width, 1)) + draw.normal(0, noise / 2, (height, width, 3))
        frames.append(np.clip(seen + grain, 0, 255).round())
    return torch.from_numpy(np.stack(frames).astype(np.uint8))


def written(path, frames, crf):
    height, width = frames.shape[1:3]
    with VideoWriter(path, width, height, 25, crf=crf) as writer:
        writer.write(frames)
    return SourceVideo(path, width, height, 25)


def decibels(one, other):
    return float(10 * torch.log10(255**2 / (one.double() - other.double()).square().mean()))


@pytest.mark.parametrize(
    ("width", "height", "noise", "crf"), [(832, 480, 3, 4), (416, 240, 1.5, 18), (416, 240, 3, 10)]
)
def test_a_dub_s_file_shows_the_source_outside(tmp_path, width, height, noise, crf):
    """A source as it comes from a camera, from the network, and in between."""
    video = written(tmp_path / "source.mp4", filmed(width, height, noise), crf)
    box = height // 2, width // 4, height * 3 // 4, width // 2
    source, region = video.frames(0, FRAMES), open_region(Keep(box=box), video).weights(0, FRAMES)
    outside = region == 0
    dub = to_bytes(composite(from_bytes(source).flip(2) * 0.8, KeptFrames(source, region)))
    assert torch.equal(dub[outside], source[outside]), "exact before it is encoded"
    shown = written(tmp_path / "dub.mp4", dub, crf_of(None, is_dub=True)).frames(0, FRAMES)
    assert decibels(shown[outside], source[outside]) >= 45
    usual = written(tmp_path / "usual.mp4", dub, crf_of(None, is_dub=False)).frames(0, FRAMES)
    assert decibels(usual[outside], source[outside]) < (45 if crf < 18 else 46), "at the usual quality it would not"
    assert (tmp_path / "dub.mp4").stat().st_size < 5 * (tmp_path / "usual.mp4").stat().st_size


@pytest.fixture(scope="module")
def pipeline():
    return TalkingVideoPipeline(jobs.official_files(), jobs.OPTIONS)


@pytest.mark.parametrize(
    ("changes", "crf"), [({}, 18), (dict(keep=Keep(box=(8, 8, 24, 24))), DUB_CRF), (dict(crf=3), 3)]
)
def test_a_dub_is_written_finer_unless_its_user_says_how(pipeline, tmp_path, changes, crf):
    source = media.video(tmp_path / "source.mp4", media.numbered_frames(13, 48, 48))
    talk = jobs.request(tmp_path, (), reference=str(source), **changes)
    path = pipeline.generate(talk, tmp_path / "out.mp4")
    assert Manifest.read(path.with_suffix(".run")).plan.crf == crf
    with av.open(str(path)) as container:
        assert f" crf={crf}.0 ".encode() in bytes(next(container.demux(video=0))), "x264 says so in its first frame"


def test_another_quality_is_another_run(pipeline, tmp_path):
    source = media.video(tmp_path / "source.mp4", media.numbered_frames(13, 48, 48))
    first, second = (jobs.request(tmp_path, (), reference=str(source), crf=crf) for crf in (18, 5))
    runs = [list(pipeline.run(talk, folder=tmp_path / "talk.run")) for talk in (first, first, second)]
    assert [len(windows) for windows in runs] == [1, 0, 1]
