"""The sound of the finished video: the user's own, whole, in step with the pictures."""

import itertools

import av
import numpy as np
import pytest
from support import media_files as media
from support.media_files import write_video as write

from wanvideo.errors import InputError, OutputError
from wanvideo.video.part import VideoPart
from wanvideo.video.reader import probe
from wanvideo.video.soundtrack import Soundtrack, Waveform
from wanvideo.video.writer import VideoWriter, with_sound


def onset(samples, rate):
    """Seconds at which the sound begins."""
    return int(np.argmax(np.abs(samples).max(0) > 0.2)) / rate


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
