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

from wanvideo.errors import InputError, OutputError
from wanvideo.video.part import VideoPart
from wanvideo.video.reader import VideoFrames, probe
from wanvideo.video.soundtrack import Soundtrack, Waveform
from wanvideo.video.writer import VideoWriter, check_output, free_name, publish, with_sound

ROOT = Path(__file__).resolve().parents[2]


def write(path, count=50, batch=25, fps=25, **settings):
    frames = media.numbered_frames(count)
    with VideoWriter(path, 64, 48, fps, **settings) as writer:
        for start in range(0, count, batch):
            writer.write(frames[start : start + batch])
    return probe(writer.path)


def onset(samples, rate):
    """Seconds at which the sound begins."""
    return int(np.argmax(np.abs(samples).max(0) > 0.2)) / rate


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


# Sound


@pytest.mark.parametrize(
    ("rate", "channels", "subtype"),
    [(44100, 2, "PCM_24"), (48000, 1, "PCM_16"), (22050, 1, "FLOAT"), (96000, 2, "PCM_24"), (8000, 1, "PCM_U8"),
     (48000, 6, "PCM_16")],
)  # fmt: skip
def test_uncompressed_sound_keeps_rate_and_channels(tmp_path, rate, channels, subtype):
    source = media.wav(tmp_path / "speech.wav", media.tone(rate, 3, channels), rate, subtype)
    info = write(tmp_path / "clip.mp4", audio=Soundtrack((source,)))
    assert (info.audio_rate, info.audio_channels) == (rate, channels)
    assert info.duration_s == 2.0 and info.audio_duration_s == pytest.approx(2.0, abs=1024 / rate)


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [("a.mp3", "libmp3lame", 44100), ("a.m4a", "aac", 44100), ("a.aac", "aac", 48000), ("a.mka", "aac", 48000),
     ("a.ts", "aac", 48000), ("a.ogg", "libopus", 48000), ("a.webm", "libopus", 48000), ("a.ac3", "ac3", 48000)],
)  # fmt: skip
def test_compressed_sound_is_copied_bit_for_bit(tmp_path, name, codec, rate):
    source = media.coded(tmp_path / name, codec, media.tone(rate, 3, 2), rate)
    info = write(tmp_path / "clip.mp4", audio=Soundtrack((source,)))
    assert (info.audio_rate, info.audio_channels) == (rate, 2)
    assert info.audio_duration_s == pytest.approx(2.0, abs=0.03)
    with av.open(str(source)) as given, av.open(str(tmp_path / "clip.mp4")) as made:
        originals = [bytes(packet) for packet in given.demux(audio=0) if packet.size]
        copies = [bytes(packet) for packet in made.demux(audio=0) if packet.size]
        name = made.streams.audio[0].codec_context.codec.canonical_name
        assert name == given.streams.audio[0].codec_context.codec.canonical_name
    if source.suffix in (".aac", ".ts"):  # a header before every packet stays behind
        originals = [packet[7:] for packet in originals]
    assert copies == originals[: len(copies)] and len(copies) > 50


@pytest.mark.parametrize(("suffix", "codec"), [("ts", "aac"), ("ogg", "libopus")])
def test_joined_recordings_that_begin_anew_are_no_trouble(tmp_path, suffix, codec):
    """Times that fall cannot be copied into an mp4, which would be told once all pictures are there."""
    pieces = [
        media.coded(tmp_path / f"{seconds}.{suffix}", codec, media.click(48000, seconds, at=0.5), 48000)
        for seconds in (1, 3)
    ]
    joined = tmp_path / f"joined.{suffix}"
    joined.write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    write(tmp_path / "clip.mp4", audio=Soundtrack((joined,)))
    samples, rate = media.decoded_sound(tmp_path / "clip.mp4")
    assert onset(samples, rate) == pytest.approx(0.5, abs=0.03)
    assert 1 + onset(samples[:, rate:], rate) == pytest.approx(1.5, abs=0.06)


def test_a_pause_that_nobody_believes_is_none_in_the_copy_either(tmp_path):
    """A jump of a track's time that is too far for a pause: the mouth speaks on, and so does the sound."""
    source, jumping = media.coded(tmp_path / "a.m4a", "aac", media.tone(48000, 3), 48000), tmp_path / "a.mka"
    with av.open(str(source)) as given, av.open(str(jumping), "w") as made:
        copy = made.add_stream_from_template(given.streams.audio[0])
        for number, packet in enumerate(packet for packet in given.demux(audio=0) if packet.size):
            packet.pts = packet.dts = packet.pts + (700 * 48000 if number > 40 else 0)
            packet.stream = copy
            made.mux(packet)
    write(tmp_path / "clip.mp4", audio=Soundtrack((jumping,)))
    samples, rate = media.decoded_sound(tmp_path / "clip.mp4")
    assert np.abs(samples[:, int(1.8 * rate) :]).max() > 0.2


@pytest.mark.parametrize(
    ("name", "codec"), [("a.wav", None), ("a.mp3", "libmp3lame"), ("a.m4a", "aac"), ("a.ogg", "libopus")]
)
def test_sound_stays_in_step(tmp_path, name, codec):
    """A coder's lead-in is not heard: the click comes where it was."""
    samples = media.click(48000, 3, at=1.0)
    source = tmp_path / name
    media.coded(source, codec, samples, 48000) if codec else media.wav(source, samples, 48000)
    write(tmp_path / "clip.mp4", audio=Soundtrack((source,)))
    assert onset(*media.decoded_sound(tmp_path / "clip.mp4")) == pytest.approx(1.0, abs=0.004)


@pytest.mark.parametrize("level", [0.3, 0.8])
def test_a_sound_that_begins_at_once_is_not_spoilt(tmp_path, level):
    samples = media.tone(44100, 3, 2, 300, level)
    write(tmp_path / "clip.mp4", audio=Soundtrack((Waveform(samples.T, 44100),)))
    decoded, _ = media.decoded_sound(tmp_path / "clip.mp4")
    assert np.abs(decoded[:, :80000] - samples.T[:, :80000]).max() < 0.01


@pytest.mark.parametrize(("name", "codec"), [("a.wav", None), ("a.mp3", "libmp3lame")])
def test_short_sound_is_followed_by_silence(tmp_path, name, codec):
    samples = media.tone(44100, 1)
    source = tmp_path / name
    media.coded(source, codec, samples, 44100) if codec else media.wav(source, samples, 44100)
    info = write(tmp_path / "clip.mp4", audio=Soundtrack((source,)))
    assert info.audio_duration_s == pytest.approx(2.0, abs=0.03) and info.audio_rate == 44100
    decoded, rate = media.decoded_sound(tmp_path / "clip.mp4")
    assert np.abs(decoded[:, : int(0.9 * rate)]).max() > 0.25 and np.abs(decoded[:, int(1.2 * rate) :]).max() < 0.01


def test_a_rounding_of_the_last_frame_does_not_cost_the_copy(tmp_path):
    """50 frames last 2 s; sound of 1.98 s is still copied."""
    source = media.coded(tmp_path / "a.mp3", "libmp3lame", media.tone(44100, 1.98, 2), 44100)
    write(tmp_path / "clip.mp4", audio=Soundtrack((source,)))
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert container.streams.audio[0].codec_context.codec.canonical_name == "mp3"


def test_the_sound_of_a_video_is_taken(tmp_path):
    source = media.wav(tmp_path / "speech.wav", media.tone(44100, 3, 2), 44100)
    write(tmp_path / "source.mp4", 60, audio=Soundtrack((source,)))
    info = write(tmp_path / "clip.mp4", audio=Soundtrack((tmp_path / "source.mp4",)))
    assert (info.audio_rate, info.audio_channels) == (44100, 2)


def test_speakers_together_are_summed_without_clipping(tmp_path):
    first = media.wav(tmp_path / "a.wav", media.tone(44100, 2, 1, 300, 0.9), 44100)
    second = media.wav(tmp_path / "b.wav", media.tone(48000, 1, 2, 300, 0.9), 48000)
    info = write(tmp_path / "clip.mp4", audio=Soundtrack((first, second)))
    assert (info.audio_rate, info.audio_channels) == (44100, 2)
    decoded, rate = media.decoded_sound(tmp_path / "clip.mp4")
    together, alone = decoded[0, rate // 4 : rate * 3 // 4], decoded[0, rate * 5 // 4 : rate * 7 // 4]
    assert np.abs(together).max() == pytest.approx(0.95, abs=0.01)
    assert np.abs(alone).max() == pytest.approx(0.95 / 2, abs=0.01)


def test_a_mix_that_does_not_clip_keeps_its_level(tmp_path):
    sounds = [Waveform(media.tone(48000, 2, 1, frequency, 0.3).T, 48000) for frequency in (300, 700)]
    write(tmp_path / "clip.mp4", audio=Soundtrack(tuple(sounds)))
    decoded, rate = media.decoded_sound(tmp_path / "clip.mp4")
    spectrum = np.abs(np.fft.rfft(decoded[0, : rate * 3 // 2])) / (rate * 3 // 4)
    assert spectrum[450] == pytest.approx(0.3, abs=0.02) and spectrum[1050] == pytest.approx(0.3, abs=0.02)


def test_speakers_one_after_another(tmp_path):
    first = media.wav(tmp_path / "a.wav", media.tone(48000, 0.8, 1, 300), 48000)
    second = media.wav(tmp_path / "b.wav", media.tone(44100, 0.7, 1, 900), 44100)
    write(tmp_path / "clip.mp4", audio=Soundtrack((first, second), "add"))
    decoded, rate = media.decoded_sound(tmp_path / "clip.mp4")
    for start, stop, frequency in ((0.1, 0.7, 300), (0.9, 1.4, 900)):
        piece = decoded[0, int(start * rate) : int(stop * rate)]
        assert np.argmax(np.abs(np.fft.rfft(piece))) / (stop - start) == pytest.approx(frequency, abs=4)
    assert np.abs(decoded[0, int(1.6 * rate) :]).max() < 0.01


def test_odd_rates_and_many_channels_become_what_aac_has(tmp_path):
    high = media.wav(tmp_path / "high.wav", media.tone(192000, 2.5, 2), 192000, "PCM_24")
    assert write(tmp_path / "high.mp4", audio=Soundtrack((high,))).audio_rate == 96000
    many = media.wav(tmp_path / "many.wav", media.tone(48000, 2.5, 8, level=0.9), 48000)
    assert write(tmp_path / "many.mp4", audio=Soundtrack((many,))).audio_channels == 2
    decoded, _ = media.decoded_sound(tmp_path / "many.mp4")
    assert 0.9 < np.abs(decoded).max() < 1.0


def test_unusable_sound_is_refused_before_a_frame_is_made(tmp_path):
    (tmp_path / "text.wav").write_text("not a sound")
    media.video(tmp_path / "mute.mp4", media.numbered_frames(3))
    for name, says in (("gone.wav", "no file .*gone.wav"), ("text.wav", "text.wav is a text file, not a sound file"),
                       ("mute.mp4", "mute.mp4 holds no sound")):  # fmt: skip
        with pytest.raises(InputError, match=says):
            Soundtrack((tmp_path / name,))
    with pytest.raises(InputError, match="names no sound"):
        Soundtrack(())
    with pytest.raises(InputError, match="audio_type 'both'"):
        Soundtrack((Waveform(np.zeros(100), 16000),), "both")
    for samples, rate in ((np.full(100, np.nan), 16000), (np.zeros((100, 2)), 16000), (np.zeros(100), 0)):
        with pytest.raises(InputError, match="[Ss]ound"):
            Waveform(samples, rate)


def test_sound_that_vanished_does_not_take_the_pictures_with_it(tmp_path):
    source = media.wav(tmp_path / "speech.wav", media.tone(16000, 2), 16000)
    writer = VideoWriter(tmp_path / "clip.mp4", 64, 48, 25, audio=Soundtrack((source,)))
    writer.write(media.numbered_frames(50))
    source.unlink()
    with pytest.raises(OutputError, match="All its pictures are in .*partial"):
        writer.close()
    assert probe(writer.partial).frames == 50 and not (tmp_path / "clip.mp4").exists()


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


# Sound


def test_sound_is_added_without_encoding_pictures_again(tmp_path):
    lengths = (72, 1, 30, 72)  # the encoder begins anew at each write, also after a single frame
    frames = media.numbered_frames(sum(lengths))
    part = VideoPart(tmp_path / "part.mp4", 64, 48, 25)
    for stop, length in zip(itertools.accumulate(lengths), lengths, strict=True):
        part.write(frames[stop - length : stop])
    part.close()
    sound = media.wav(tmp_path / "speech.wav", media.tone(44100, 10, 2), 44100)
    path = with_sound(part.path, tmp_path / "clip.mp4", 25, audio=Soundtrack((sound,)))
    info = probe(path)
    assert info.frames == 175 and info.duration_s == pytest.approx(7.0)
    assert info.audio_duration_s == pytest.approx(7.0, abs=0.03)
    with av.open(str(path)) as container:
        decoded = [
            (frame.time, media.index_of(frame.to_ndarray(format="rgb24"))) for frame in container.decode(video=0)
        ]
    assert decoded == [(pytest.approx(k / 25), k % 45) for k in range(175)]
    assert part.path.exists()


def test_publishing_a_file_where_it_is_already_leaves_no_other_name(tmp_path):
    finished, path = tmp_path / "video.mp4", tmp_path / "talk.mp4"
    finished.write_bytes(b"new")
    path.write_bytes(b"old")
    for _ in range(2):
        assert publish(finished, path, overwrite=True) == path
    assert path.samefile(finished) and sorted(tmp_path.iterdir()) == [path, finished]
