"""A finished video is saved under further names without a second copy of its bytes, tagged or not."""

import os
import sys
import types

import av
import pytest
from support import media_files as media
from support.pack import load_pack

from wanvideo.errors import OutputError
from wanvideo.video.soundtrack import Soundtrack
from wanvideo.video.tagged import save_tagged
from wanvideo.video.writer import VideoWriter

load_pack()
common = sys.modules["pack_under_test.nodes_common"]
GRAPH = {"prompt": '{"1": {"class_type": "WanVideoTalk"}}', "title": "Zwölf 女孩"}


@pytest.fixture(params=["a.wav", "a.mp3", "none"])
def video(tmp_path, request):
    sound = None
    if request.param == "a.wav":
        sound = Soundtrack((media.wav(tmp_path / "a.wav", media.tone(16000, 1.2), 16000),))
    elif request.param == "a.mp3":
        sound = Soundtrack((media.coded(tmp_path / "a.mp3", "libmp3lame", media.tone(44100, 1.2), 44100),))
    (tmp_path / "run").mkdir()
    with VideoWriter(tmp_path / "run" / "video.mp4", 64, 48, 25, audio=sound) as writer:
        writer.write(media.numbered_frames(30))
    return writer.path


def parts(path):
    """All that is decoded of each stream, with its times."""
    with av.open(str(path)) as container:
        count = len(container.streams)
    found = []
    for index in range(count):
        with av.open(str(path)) as container:
            frames = container.decode(container.streams[index])
            found.append([(frame.time, frame.to_ndarray().tobytes()) for frame in frames])
    return found


def tags(path):
    with av.open(str(path)) as container:
        return dict(container.metadata)


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix == ".mp4")


def test_tags_leave_one_file_with_the_same_pictures_and_sound(video, tmp_path):
    before, other = parts(video), tmp_path / "other.mp4"
    os.link(video, other)
    target = tmp_path / "talk_00001_.mp4"
    save_tagged((video, other, tmp_path / "none.mp4"), target, GRAPH)
    assert target.samefile(video) and target.samefile(other)
    assert parts(target) == before and len(before[0]) == 30
    assert GRAPH.items() <= tags(target).items()
    data = target.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat"), "players begin at once"
    save_tagged((video,), target, GRAPH)  # again, over itself
    save_tagged((video,), tmp_path / "again.mp4", GRAPH)
    save_tagged((video,), tmp_path / "plain.mp4", {})
    assert (tmp_path / "again.mp4").samefile(video) and (tmp_path / "plain.mp4").samefile(target)
    save_tagged((video,), tmp_path / "new.mp4", {"title": "new"})
    assert (tmp_path / "new.mp4").samefile(video) and not target.samefile(video)
    assert tags(target)["title"] == GRAPH["title"]
    assert files(tmp_path / "run") == ["video.mp4"] and all(not name.startswith(".") for name in files(tmp_path))


@pytest.mark.parametrize("given", [{}, GRAPH])
def test_without_links_it_is_a_copy(video, tmp_path, monkeypatch, given):
    def refuse(*names):
        raise PermissionError(1, "no links here")

    before, data = parts(video), video.read_bytes()
    monkeypatch.setattr(os, "link", refuse)
    save_tagged((video,), tmp_path / "talk.mp4", given)
    assert parts(tmp_path / "talk.mp4") == before and video.read_bytes() == data
    assert given.items() <= tags(tmp_path / "talk.mp4").items()
    assert files(tmp_path / "run") == ["video.mp4"] and files(tmp_path) == ["talk.mp4"]


def test_a_folder_that_is_not_there_is_named(video, tmp_path):
    with pytest.raises(OutputError, match="none"):
        save_tagged((video,), tmp_path / "none" / "talk.mp4", GRAPH)
    assert parts(video)


class VideoFromFile:
    """What ComfyUI's class does, as far as it is called."""

    def __init__(self, path):
        self.path, self.saved = path, []

    def save_to(self, path, format="auto", codec="auto", metadata=None, crf=None):
        self.saved.append((path, format, codec, metadata, crf))


def test_a_node_that_saves_as_it_is_makes_a_link(video, tmp_path, monkeypatch):
    latest = types.SimpleNamespace(InputImpl=types.SimpleNamespace(VideoFromFile=VideoFromFile))
    monkeypatch.setitem(sys.modules, "comfy_api", types.SimpleNamespace(latest=latest))
    monkeypatch.setitem(sys.modules, "comfy_api.latest", latest)
    monkeypatch.setattr(common, "comfy", object())
    saved = common.video_from_file(video)
    saved.save_to(str(tmp_path / "a.mp4"), format="auto", codec="h264", metadata={"prompt": {"1": 2}}, crf=None)
    assert (tmp_path / "a.mp4").samefile(video) and tags(video)["prompt"] == '{"1": 2}' and not saved.saved
    saved.save_to(str(tmp_path / "b.mp4"))
    assert (tmp_path / "b.mp4").samefile(video) and not saved.saved
    saved.save_to(str(tmp_path / "c.webm"))
    saved.save_to(str(tmp_path / "c.mp4"), crf=30.0)
    saved.save_to(sys.stdout.buffer, metadata={})
    assert len(saved.saved) == 3 and not (tmp_path / "c.mp4").exists(), "ComfyUI encodes those"
    gone = tmp_path / "gone.mp4"
    common.video_from_file(gone, video).save_to(str(tmp_path / "d.mp4"))
    assert (tmp_path / "d.mp4").samefile(video), "another name of it is left"
    with pytest.raises(ValueError, match=r"gone.mp4 is no longer there. Unload the execution cache"):
        common.video_from_file(gone).save_to(str(tmp_path / "e.mp4"))
