"""The finished video: one encode, the user's own sound, nothing lost and nothing overwritten."""

import itertools
import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from support import host_memory
from support import media_files as media
from support.media_files import write_video as write

from wanvideo.errors import InputError, OutputError
from wanvideo.video.part import VideoPart
from wanvideo.video.reader import VideoFrames, probe
from wanvideo.video.soundtrack import Soundtrack, Waveform
from wanvideo.video.writer import VideoWriter, check_output, free_name, publish

ROOT = Path(__file__).resolve().parents[2]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def hidden(folder):
    return [name for name in names(folder) if name.startswith(".")]


# Pictures


@pytest.mark.parametrize("fps", [25, 24, 29.97, 30000 / 1001, 23.976, 16, 50])
def test_every_frame_is_there_and_lasts_as_long_as_it_should(tmp_path, fps):
    info = write(tmp_path / "clip.mp4", 47, 20, fps)
    assert (info.frames, info.width, info.height, info.audio_rate) == (47, 64, 48, None)
    assert info.fps == pytest.approx(fps, rel=1e-5) and info.duration_s == pytest.approx(47 / fps, abs=1e-3)
    levels = media.decoded_frames(tmp_path / "clip.mp4").mean((1, 2, 3))
    assert [round((level - 20) / 5) for level in levels] == [k % 45 for k in range(47)]
    assert not hidden(tmp_path)


@pytest.mark.parametrize("batches", [(1,) * 5, (200,), (1, 60, 3, 72, 72, 2), (49, 1, 50, 51)], ids=str)
def test_batches_of_any_size_make_the_same_time_line(tmp_path, batches):
    frames = media.numbered_frames(sum(batches))
    with VideoWriter(tmp_path / "clip.mp4", 64, 48, 25) as writer:
        for stop, size in zip(itertools.accumulate(batches), batches, strict=True):
            writer.write(torch.from_numpy(frames[stop - size : stop]))
    with av.open(str(tmp_path / "clip.mp4")) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert times == pytest.approx([k / 25 for k in range(sum(batches))])


def test_colors_are_rec_709_and_survive(tmp_path):
    rows, columns = np.mgrid[0:96, 0:128]
    picture = np.stack([columns * 2, 255 - rows * 2, 60 + rows], -1).astype(np.uint8)
    with VideoWriter(tmp_path / "clip.mp4", 128, 96, 25) as writer:
        writer.write(np.repeat(picture[None], 5, 0))
    with av.open(str(tmp_path / "clip.mp4")) as container:
        context = container.streams.video[0].codec_context
        tags = context.color_primaries, context.color_trc, context.colorspace, context.color_range
        assert [int(tag) for tag in tags] == [1, 1, 1, 1] and context.pix_fmt == "yuv420p" and context.name == "h264"
    with VideoFrames(tmp_path / "clip.mp4") as video:
        difference = video.frame_at(0.1).astype(float) - picture
    assert np.abs(difference.mean((0, 1))).max() < 0.5 and np.sqrt((difference**2).mean()) < 2.0


def test_the_result_starts_with_its_index(tmp_path):
    write(tmp_path / "clip.mp4")
    data = (tmp_path / "clip.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat") and b"moof" not in data


@pytest.mark.parametrize(
    "frames",
    [np.zeros((2, 48, 64, 3), np.float32), np.zeros((48, 64, 3), np.uint8), np.zeros((1, 64, 48, 3), np.uint8)],
    ids=["float", "one picture", "turned"],
)
def test_frames_that_do_not_fit_are_refused(tmp_path, frames):
    with pytest.raises(InputError, match=r"do not fit the video. Give \[F, 48, 64, 3\]"):
        with VideoWriter(tmp_path / "clip.mp4", 64, 48, 25) as writer:
            writer.write(frames)
    assert not names(tmp_path)


# Names and folders


def test_an_existing_file_is_never_touched(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"precious")
    (tmp_path / "clip_2.mp4").touch()
    with pytest.raises(OutputError, match="clip.mp4 exists and is left as it is. Use .*clip_3.mp4"):
        VideoWriter(path, 64, 48, 25)
    assert path.read_bytes() == b"precious" and not hidden(tmp_path)
    assert write(path, overwrite=True).frames == 50


def test_a_link_to_nothing_is_no_output_and_no_free_name(tmp_path):
    path = tmp_path / "clip.mp4"
    path.symlink_to(tmp_path / "gone" / "clip.mp4")
    with pytest.raises(OutputError, match="clip.mp4 is a link to .*, where nothing is. Remove the link"):
        VideoWriter(path, 64, 48, 25)
    with VideoWriter(tmp_path / "other.mp4", 64, 48, 25) as writer:
        writer.write(media.numbered_frames(5))
        writer.path.symlink_to(tmp_path / "gone.mp4")
    assert writer.path == tmp_path / "other_2.mp4" and probe(writer.path).frames == 5 and path.is_symlink()


def test_a_name_taken_meanwhile_costs_nothing(tmp_path, caplog):
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, 64, 48, 25) as writer:
        writer.write(media.numbered_frames(10))
        path.write_bytes(b"precious")
    assert path.read_bytes() == b"precious" and writer.path == tmp_path / "clip_2.mp4"
    assert probe(writer.path).frames == 10 and "saved as" in caplog.text and not hidden(tmp_path)


def test_folders_are_made_and_bad_places_refused(tmp_path):
    assert write(tmp_path / "new" / "folder" / "clip.mp4", 5).frames == 5
    (tmp_path / "file").touch()
    for path, says in ((tmp_path / "file" / "clip.mp4", "clip.mp4 cannot be written: "),
                       (tmp_path / "clip.avi", r"mp4. Use .*clip\.mp4"),
                       (tmp_path / "clip", r"mp4. Use .*clip\.mp4")):  # fmt: skip
        with pytest.raises(OutputError, match=says):
            check_output(path)
    with pytest.raises(OutputError, match="File name too long"):
        check_output(tmp_path / ("x" * 300 + ".mp4"))
    with pytest.raises(InputError, match="crf 52 is not usable"):
        VideoWriter(tmp_path / "clip.mp4", 64, 48, 25, crf=52)
    assert names(tmp_path) == ["file", "new"]
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        check_output(tmp_path / "folder.mp4", overwrite=True)
    assert free_name(tmp_path / "none.mp4") == tmp_path / "none.mp4"


def test_a_link_to_nothing_is_refused_before_anything_is_made(tmp_path):
    (tmp_path / "clip.mp4").symlink_to(tmp_path / "gone.mp4")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="clip.mp4 is a link to .*gone.mp4, where nothing is"):
            check_output(tmp_path / "clip.mp4", overwrite)
    assert free_name(tmp_path / "clip.mp4") == tmp_path / "clip_2.mp4"


def test_a_read_only_folder_is_refused(tmp_path):
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o555)
        is_root = os.geteuid() == 0
        if is_root:  # root may write anywhere
            os.seteuid(65534)
        try:
            with pytest.raises(OutputError, match="clip.mp4 cannot be written: Permission denied"):
                check_output(Path(name) / "clip.mp4")
        finally:
            if is_root:
                os.seteuid(0)
            Path(name).chmod(0o755)


def test_names_that_look_like_addresses_are_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert write(Path("12:30 talk %d.mp4"), 5).frames == 5


def test_nothing_written_leaves_nothing(tmp_path):
    with pytest.raises(OutputError, match="No frame was written"):
        VideoWriter(tmp_path / "clip.mp4", 64, 48, 25).close()
    with pytest.raises(RuntimeError), VideoWriter(tmp_path / "clip.mp4", 64, 48, 25):
        raise RuntimeError
    assert not names(tmp_path)


# Accidents


def test_an_error_keeps_what_was_written(tmp_path, caplog):
    with pytest.raises(RuntimeError), VideoWriter(tmp_path / "clip.mp4", 64, 48, 25) as writer:
        writer.write(media.numbered_frames(30))
        raise RuntimeError
    assert probe(writer.partial).frames == 30 and str(writer.partial) in caplog.text
    assert not (tmp_path / "clip.mp4").exists()


def test_what_was_given_is_on_disk_while_the_writer_works(tmp_path):
    with VideoWriter(tmp_path / "clip.mp4", 64, 48, 25) as writer:
        for batch in range(1, 4):
            writer.write(media.numbered_frames(72))
            assert len(media.decoded_frames(writer.partial)) >= batch * 72 - 1


def test_a_killed_process_leaves_a_playable_video(tmp_path):
    code = (
        "import sys, time, numpy as np\n"
        "from wanvideo.video.writer import VideoWriter\n"
        "writer = VideoWriter(sys.argv[1], 64, 48, 25)\n"
        "for batch in range(3):\n"
        "    writer.write(np.full((72, 48, 64, 3), 40 + 60 * batch, np.uint8))\n"
        "print('written', flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "clip.mp4")], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"written\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    (name,) = names(tmp_path)
    assert name.startswith(".clip.partial-") and name.endswith(".mp4")
    frames = media.decoded_frames(tmp_path / name)
    assert len(frames) >= 3 * 72 - 1 and frames[-1].mean() == pytest.approx(160, abs=3)
    with VideoFrames(tmp_path / name) as video:
        assert video.num_frames >= 3 * 72 - 1 and video.frame_at(3.0).mean() == pytest.approx(100, abs=3)


def test_a_file_cut_anywhere_plays_up_to_there(tmp_path):
    part = VideoPart(tmp_path / "part.mp4", 64, 48, 25)
    part.write(media.numbered_frames(120))
    part.close()
    data = part.path.read_bytes()
    ends = [place for place in range(len(data)) if data[place + 4 : place + 8] == b"moof"]  # fragments come whole
    for share in (0.4, 0.61, 0.83):
        (tmp_path / "cut.mp4").write_bytes(data[: ends[int(len(ends) * share)]])
        assert len(media.decoded_frames(tmp_path / "cut.mp4")) > 120 * share / 2


@pytest.fixture
def small_disk():
    """Files may not grow beyond a limit, which fails where a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_while_writing_keeps_the_finished_part(tmp_path, small_disk):
    noise = np.random.default_rng(0).integers(0, 256, (60, 48, 64, 3), np.uint8)
    writer = VideoWriter(tmp_path / "clip.mp4", 64, 48, 25)
    writer.write(noise)
    small_disk(writer.partial.stat().st_size + 20_000)
    with pytest.raises(OutputError, match=r"The disk is full after \d+ frames. Take what was finished from .*partial"):
        for _ in range(20):
            writer.write(noise)
    assert len(media.decoded_frames(writer.partial)) >= 59
    assert not (tmp_path / "clip.mp4").exists()


def test_a_full_disk_while_finishing_keeps_all_pictures(tmp_path, small_disk):
    sound = Soundtrack((Waveform(media.tone(48000, 3, 2).T, 48000),))
    writer = VideoWriter(tmp_path / "clip.mp4", 64, 48, 25, audio=sound)
    writer.write(media.numbered_frames(60))
    small_disk(writer.partial.stat().st_size + 10_000)
    with pytest.raises(
        OutputError, match="The disk is full while .*clip.mp4 was put together. All its pictures are in"
    ):
        writer.close()
    assert len(media.decoded_frames(writer.partial)) == 60
    assert names(tmp_path) == [writer.partial.name]


LONG_VIDEO = """
import sys
import numpy as np
from support import host_memory
from wanvideo.video.writer import VideoWriter

frames = np.random.default_rng(0).integers(0, 256, (50, 192, 320, 3), np.uint8)
with VideoWriter(sys.argv[1], 320, 192, 25, crf=40) as writer:
    held = []
    for _ in range(20):
        writer.write(frames)
        held.append(host_memory.anonymous())
print(max(held[4:]) - max(held[:4]))
"""


@host_memory.NEEDS_PROC
def test_memory_does_not_grow_with_the_length(tmp_path):
    """The frames of the later writes are 147 MB; in a process of its own, for what other tests' threads take."""
    (grown,) = host_memory.run(LONG_VIDEO, tmp_path / "clip.mp4")
    assert grown < 30e6
    assert probe(tmp_path / "clip.mp4").frames == 1000


def test_publishing_a_file_where_it_is_already_leaves_no_other_name(tmp_path):
    finished, path = tmp_path / "video.mp4", tmp_path / "talk.mp4"
    finished.write_bytes(b"new")
    path.write_bytes(b"old")
    for _ in range(2):
        assert publish(finished, path, overwrite=True) == path
    assert path.samefile(finished) and sorted(tmp_path.iterdir()) == [path, finished]
