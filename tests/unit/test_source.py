"""Source videos: followed in time whatever their rate is, beyond their end too; the references that come from them."""

import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image
from support import media_files as media
from support import sources

from wanvideo.errors import InputError
from wanvideo.geometry import WindowPlan
from wanvideo.keep import Camera
from wanvideo.video.picture import fit
from wanvideo.video.source import CameraReferences, SourceReferences, SourceVideo, from_bytes, to_bytes


def indices(source, start, stop):
    return [media.index_of(frame.numpy()) for frame in source.frames(start, stop)]


@pytest.mark.parametrize("make", sources.KINDS)
def test_a_frame_of_the_result_shows_what_is_on_screen_then(tmp_path, make):
    path, times = make(tmp_path)
    source = SourceVideo(path, 64, 48, 25)
    expected = sources.on_screen(times, 50)
    assert indices(source, 0, 13) + indices(source, 9, 50)[4:] == expected
    assert indices(source, 3, 8) == expected[3:8], "also backwards"
    assert source.frames(0, 2).shape == (2, 48, 64, 3) and source.frames(0, 2).dtype == torch.uint8


def test_a_rotated_source_is_seen_as_players_show_it(tmp_path):
    frames = np.zeros((3, 64, 48, 3), np.uint8)
    frames[:, :16] = 200  # the top, which the matrix turns to the right
    path = media.turned(media.video(tmp_path / "phone.mp4", frames), (0, 1, -1, 0))
    source = SourceVideo(path, 64, 48, 25)
    assert source.size == (64, 48)
    columns = source.frames(0, 1)[0].float().mean((0, 2))
    assert columns[-12:].min() > 180 and columns[:40].max() < 20


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ("hold", [0, 1, 2, 3, 4, 4, 4, 4, 4, 4, 4, 4]),
        ("loop", [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]),
        ("ping-pong", [0, 1, 2, 3, 4, 3, 2, 1, 0, 1, 2, 3]),
    ],
)
def test_what_follows_the_end(tmp_path, end, expected):
    source = SourceVideo(media.video(tmp_path / "clip.mp4", media.numbered_frames(5)), 64, 48, 25, end)
    assert indices(source, 0, 12) == expected
    assert indices(source, 5, 9) == expected[5:9]


def test_another_end_is_refused(tmp_path):
    path = media.video(tmp_path / "clip.mp4", media.numbered_frames(5))
    with pytest.raises(InputError, match="source_end 'mirror' is not offered. Use one of hold, loop, ping-pong"):
        SourceVideo(path, 64, 48, 25, "mirror")


def test_a_source_keeps_one_window(tmp_path):
    path = media.video(tmp_path / "clip.mp4", media.numbered_frames(300, 240, 320))
    source = SourceVideo(path, 320, 240, 25)
    source.frames(0, 9)
    tracemalloc.start()
    sizes = [source.frames(start, start + 9).shape[0] for start in range(4, 400, 4)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert set(sizes) == {9} and peak < 14 * 320 * 240 * 3, "nine frames, and what decoding them takes"


def test_bytes_survive_as_floats():
    levels = torch.arange(256, dtype=torch.uint8).expand(2, 3, -1)
    assert torch.equal(to_bytes(from_bytes(levels)), levels)


# References


def test_a_video_is_followed_window_by_window(tmp_path):
    """30 source frames a second against 25 of the result: the window's start counts in seconds."""
    path = media.video(tmp_path / "clip.mp4", media.numbered_frames(44), fps=30)
    plan = WindowPlan(60, window=13, overlap=5)
    references = SourceReferences(SourceVideo(path, 64, 48, 25), plan)
    assert len(references) == len(plan)
    found = [media.index_of((reference.numpy() + 1) * 127.5) for reference in references]
    assert found == [min(int(span.start / 25 * 30 + 1e-6), 43) for span in plan]
    third, first = references[2].clone(), references[0]
    assert torch.equal(references[2], third) and not torch.equal(first, third), "an earlier one may be asked for again"
    assert first.shape == (3, 48, 64)
    with pytest.raises(IndexError):
        references[len(plan)]


def test_references_are_fitted_as_pictures_are(tmp_path):
    path = media.video(tmp_path / "clip.mp4", media.numbered_frames(4, 48, 96))
    source = SourceVideo(path, 32, 32, 25)
    picture = SourceVideo(path, 96, 48, 25).frame(0).numpy()
    assert torch.equal(SourceReferences(source, WindowPlan(9, 5, 1))[0], fit(picture, 32, 32))


def test_references_hold_no_more_than_two_pictures(tmp_path):
    path = media.video(tmp_path / "clip.mp4", media.numbered_frames(300, 240, 320))
    references = SourceReferences(SourceVideo(path, 320, 240, 25), WindowPlan(600, window=13, overlap=5))
    references[1]
    tracemalloc.start()
    for index in range(2, len(references)):
        references[index]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * 320 * 240 * 3 * 4


def test_a_camera_moves_slowly_over_a_still_picture_and_comes_back():
    rows, columns = np.mgrid[0:96, 0:128]
    picture = np.stack([rows * 2, columns * 2, rows + columns], -1).astype(np.uint8)
    plan = WindowPlan(1000, 81, 9)
    references = CameraReferences(picture, Camera(1.5, (1.0, 0.0), period_s=23.04), 64, 48, plan, 25)
    assert len(references) == len(plan) and references[3].shape == (3, 48, 64)
    assert torch.equal(references[0], from_bytes(torch.from_numpy(np.array(Image.fromarray(picture).resize(
        (64, 48), Image.Resampling.BILINEAR)))).permute(2, 0, 1))  # fmt: skip
    assert torch.allclose(references[8], references[0], atol=0.01), "8 x 72 frames are one period"
    assert references[4][1].mean() > references[0][1].mean() + 0.1, "to the right there is more green"
    assert references[4][1, 0, 0] > references[0][1, 0, 0] and references[4][1, 0, -1] > references[0][1, 0, -1] - 0.02


@pytest.mark.parametrize(
    ("size", "video"), [((853, 1280), (512, 768)), ((211, 111), (112, 112)), ((260, 77), (96, 160))]
)
def test_a_camera_sees_pictures_of_any_size(size, video):
    """Where the first window sees all of a side, rounding must not put its edge outside of the picture."""
    picture = np.full((size[1], size[0], 3), 90, np.uint8)
    for pan in ((0.0, 0.0), (1.0, 1.0), (-1.0, -1.0)):
        references = CameraReferences(picture, Camera(1.08, pan), *video, WindowPlan(1000, 81, 9), 25)
        assert all(references[index].shape == (3, *video[::-1]) for index in (0, 1, 5))


@pytest.mark.parametrize("values", [dict(zoom=0.5), dict(zoom=float("nan")), dict(pan=(2.0, 0.0)), dict(period_s=0)])
def test_a_camera_has_limits(values):
    with pytest.raises(InputError, match=f"camera.{next(iter(values))}.*must be a number from"):
        Camera(**values)
