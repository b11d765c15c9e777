"""VIDEOs that ComfyUI has trimmed, or that are in no file: which frames of them are seen, and how many are kept."""

import io
import random
import sys
import tracemalloc
from abc import ABC, abstractmethod
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from support import media_files as media
from support import sources
from support.pack import load_pack, node

from wanvideo.errors import InputError
from wanvideo.keep import Keep, Trim
from wanvideo.video.mask import open_region, region_of
from wanvideo.video.reader import VideoFrames
from wanvideo.video.source import SourceVideo

load_pack()
conditioning = sys.modules["pack_under_test.nodes_conditioning"]
video_file = sys.modules["pack_under_test.nodes_video"].video_file
SourceOptions = sys.modules["pack_under_test.nodes_source"].SourceOptions
TRIMS = [(0.0, 0.3), (0.21, 0.0), (0.2, 0.25), (0.333, 0.52)]


def selected(path, start, duration):
    """(time, number) of the frames that ComfyUI gives: by ticks of the stream, whole ones, from the file's own zero."""
    with av.open(str(path)) as container:
        base = container.streams.video[0].time_base
        first, last = int(start / base), int((start + duration) / base)
        shown = [(frame.pts, media.index_of(frame.to_ndarray(format="rgb24"))) for frame in container.decode(video=0)]
    return [(pts * base, index) for pts, index in shown if pts >= first and (not duration or pts < last)]


def seen(frames, times):
    return [media.index_of(frames.frame_at(float(time - times[0]))) for time in times]


@pytest.mark.parametrize("make", sources.KINDS)
@pytest.mark.parametrize("trim", TRIMS)
def test_the_frames_of_a_part_are_those_that_comfyui_gives(tmp_path, make, trim):
    path, _ = make(tmp_path)
    expected = selected(path, *trim)
    times, indices = [time for time, _ in expected], [index for _, index in expected]
    with VideoFrames(path, Trim(*trim)) as frames:
        assert seen(frames, times) == indices and frames.num_frames == len(indices)
        assert media.index_of(frames.frame_at(99.0)) == indices[-1], "what follows the part does not exist"
        assert media.index_of(frames.frame_at(0.0)) == indices[0], "nor what was before it"


def test_a_part_far_inside_is_found_from_its_key_frame_and_in_any_order(tmp_path):
    path = media.video(tmp_path / "long.mkv", media.numbered_frames(900), keyframe=100)
    with VideoFrames(path, Trim(20.01, 12.0)) as frames:
        order = list(range(frames.num_frames))
        random.Random(1).shuffle(order)
        assert frames.num_frames == 300 and abs(frames.duration_s - 12) < 0.002
        assert [media.index_of(frames.frame_at(index / 25)) for index in order] == [(501 + n) % 45 for n in order]


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ("hold", [5, 6, 7, 8, 8, 8, 8, 8]),
        ("loop", [5, 6, 7, 8, 5, 6, 7, 8]),
        ("ping-pong", [5, 6, 7, 8, 7, 6, 5, 6]),
        ("stop", [5, 6, 7, 8, 8, 8, 8, 8]),
    ],
)
def test_what_follows_the_end_of_a_part(tmp_path, end, expected):
    path = media.video(tmp_path / "clip.mp4", media.numbered_frames(20))
    source = SourceVideo(path, 64, 48, 25, end, Trim(0.2, 0.16))
    assert [media.index_of(frame.numpy()) for frame in source.frames(0, 8)] == expected
    assert source.frame_limit == (4 if end == "stop" else None)


def test_masks_run_along_with_a_part(tmp_path):
    source = SourceVideo(
        media.video(tmp_path / "clip.mp4", media.numbered_frames(20)), 64, 48, 25, trim=Trim(0.2, 0.16)
    )
    masks = np.zeros((20, 48, 64, 3), np.uint8)
    for index in range(20):
        masks[index, :, : 2 * index + 2] = 255
    path = str(media.video(tmp_path / "masks.mp4", masks))
    moving = open_region(Keep(mask=path, feather=0), source, Trim(0.2, 0.16)).weights(0, 6)
    assert [int(weight[0].sum()) for weight in moving] == [12, 14, 16, 18, 18, 18]
    with pytest.raises(InputError, match="There are 20 masks for a source of 4 frames"):
        region_of(torch.zeros(20, 48, 64), source)


def test_a_part_without_frames_is_refused(tmp_path):
    path = media.video(tmp_path / "clip.mp4", media.numbered_frames(10))
    for trim in (Trim(0.5), Trim(3.0, 1.0), Trim(0.01, 0.02)):
        with pytest.raises(InputError, match=f"has no frame in what it is trimmed to, from {trim.start_s:g} s on"):
            VideoFrames(path, trim)
    with pytest.raises(InputError, match="trim.start_s"):
        Trim(-1.0)


# VIDEOs as ComfyUI's versions have them


class Video(ABC):
    """As ComfyUI's base class: what has no file is encoded into memory, and comes out changed."""

    @abstractmethod
    def get_components(self): ...

    def get_stream_source(self):
        raise AssertionError("frames in memory would be encoded with loss")


class FromFile(Video):
    def __init__(self, file, start=0.0, duration=0.0):
        self._file, self._start, self._duration = file, start, duration

    def get_components(self):
        raise AssertionError("all frames would be in memory at once")

    def get_stream_source(self):
        return self._file


class Trimmed(FromFile):
    """0.30: it says what it was trimmed to."""

    def get_active_trim_window(self):
        return self._start, self._duration


class Untold(FromFile):
    """Before: it was trimmed, and only its length tells."""

    def as_trimmed(self, *how): ...

    def get_duration(self):
        return (self._duration or 0.8) - self._start

    def get_components(self):
        pictures = torch.arange(5).float()[:, None, None, None].expand(5, 48, 64, 3) / 255
        return SimpleNamespace(images=pictures, frame_rate=Fraction(25))


class Cropped(Trimmed):
    """Later: it may be cropped too."""

    size = (64, 48)
    get_components = Untold.get_components

    def as_cropped(self): ...

    def get_dimensions(self):
        return self.size


class FromComponents(Video):
    def __init__(self, images, rate):
        self._components = SimpleNamespace(images=images, frame_rate=rate)

    def get_components(self):
        return self._components


def shown(video, num_frames=8, options=None):
    """The frames that a node makes its references of, with what the file is."""
    file = video_file(video)
    picture = conditioning.TalkingPicture(
        None, 64, 48, (64, 48), None, file, 13, 5, "auto", "disabled", 1.0, False, None, None, None,
        options or SourceOptions(keep_mask=torch.eye(48, 64)[None]),
    )  # fmt: skip
    return picture.pictures(num_frames, 25.0).source.frames(0, num_frames), picture


def numbers(frames):
    return [media.index_of(frame.numpy()) for frame in frames]


def test_nodes_see_the_part_that_comfyui_trimmed_a_video_to(tmp_path):
    path = str(media.video(tmp_path / "clip.mp4", media.numbered_frames(20)))
    whole, trimmed = Trimmed(path), Trimmed(path, 0.2, 0.12)
    assert numbers(shown(whole)[0]) == list(range(8)) and numbers(shown(trimmed)[0]) == [5, 6, 7, 7, 7, 7, 7, 7]
    identities = [shown(video)[1].identity()["reference"] for video in (whole, trimmed, Trimmed(path, 0.2, 0.16))]
    assert len(set(identities)) == 3, "a run of another part is not gone on with"
    assert identities[0] == video_file(FromFile(path)).identity(), "versions that cannot trim have whole files"


def test_a_video_of_masks_is_trimmed_too(tmp_path):
    masks = np.zeros((20, 48, 64, 3), np.uint8)
    masks[5:, :24] = 255
    masks = str(media.video(tmp_path / "masks.mp4", masks))
    source = media.video(tmp_path / "clip.mp4", media.numbered_frames(20))
    (options,) = node("WanVideoSourceOptions").process(mask_video=Trimmed(masks, 0.2), feather=0)
    (whole,) = node("WanVideoSourceOptions").process(mask_video=Trimmed(masks), feather=0)
    weights = options.region(SourceVideo(source, 64, 48, 25)).weights(0, 3)
    assert weights[0, :20].all() and not weights[0, 28:].any()
    assert options.identity() != whole.identity()


def test_a_file_in_memory_is_written_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = media.video(tmp_path / "clip.mp4", media.numbered_frames(20))
    file = io.BytesIO(path.read_bytes())
    file.seek(100)
    frames, picture = shown(Trimmed(file, 0.2, 0.12))
    assert numbers(frames)[:4] == [5, 6, 7, 7] and picture.video.path.read_bytes() == path.read_bytes()
    assert picture.identity() == shown(Trimmed(str(path), 0.2, 0.12))[1].identity(), "so that its run is found again"


@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30000, 1001), 12.5])
def test_frames_in_memory_keep_every_level(tmp_path, monkeypatch, rate):
    monkeypatch.chdir(tmp_path)
    levels = np.random.default_rng(3).integers(0, 256, (7, 37, 51, 3), np.uint8)
    images = torch.from_numpy(levels).float() / 255
    file = video_file(FromComponents(torch.cat([images, images[..., :1]], -1), rate))
    with VideoFrames(file.path) as frames:
        found = [frames.frame_at(index / float(rate)) for index in range(7)]
        assert np.array_equal(np.stack(found), levels) and frames.num_frames == 7
    again = video_file(FromComponents(images, rate))
    assert again.identity() == file.identity() and again.path != file.path


def test_what_an_older_or_newer_version_does_not_tell_is_taken_from_its_frames(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = str(media.video(tmp_path / "clip.mp4", media.numbered_frames(20)))
    assert video_file(Untold(path)).path == video_file(Cropped(path)).path == type(tmp_path)(path)
    cropped = Cropped(path, 0.2)
    cropped.size = (32, 48)
    for video in (Untold(path, 0.2), cropped):
        with VideoFrames(video_file(video).path) as frames:
            assert [int(frames.frame_at(index / 25).mean()) for index in range(5)] == list(range(5))


def test_a_video_without_frames_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for video in (FromComponents(torch.zeros(0, 0, 0, 3), Fraction(25)), torch.zeros(3)):
        with pytest.raises(ValueError, match="The video has no frames, or is no VIDEO but"):
            video_file(video)


def test_a_trimmed_source_keeps_one_window(tmp_path):
    path = str(media.video(tmp_path / "clip.mp4", media.numbered_frames(300, 240, 320)))
    source = SourceVideo(path, 320, 240, 25, trim=video_file(Trimmed(path, 2.0, 8.0)).trim)
    source.frames(0, 9)
    tracemalloc.start()
    sizes = [source.frames(start, start + 9).shape[0] for start in range(4, 250, 4)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert set(sizes) == {9} and peak < 14 * 320 * 240 * 3, "nine frames, and what decoding them takes"
