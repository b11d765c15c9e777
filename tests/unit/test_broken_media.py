"""Damaged, mislabeled, hostile and uncommon sounds, pictures and videos: each is used as players do, or answered."""

import io
import os
import struct
import tracemalloc
import zlib
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image
from support import media_files as media

from wanvideo.audio.decode import SoundFile
from wanvideo.audio.load import from_array, load_audio
from wanvideo.audio.wav_header import read_wav_header
from wanvideo.errors import InputError
from wanvideo.video.animation import AnimatedPicture
from wanvideo.video.picture import load_picture, read_no_other_kinds
from wanvideo.video.reader import VideoFrames, is_video, open_frames, picture_size, probe
from wanvideo.video.soundtrack import Soundtrack, Waveform, add_soundtrack


def decoded(path):
    return np.concatenate(list(SoundFile(path).pieces()))


def muxed(source, path, seconds=1):
    with av.open(str(path), "w", format="mp4") as output:
        for packet in add_soundtrack(output, Soundtrack((source,)), Fraction(seconds)):
            output.mux(packet)
    return path


@pytest.mark.parametrize("has_argument", [True, False])
def test_a_title_that_is_no_text_is_read_by_every_version_of_the_decoder(tmp_path, monkeypatch, has_argument):
    """PyAV 19 takes any title, and no `metadata_errors` any more."""
    opened, asked = av.open, []
    allowed = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "replace"}

    def of_version(*args, metadata_errors=None, **options):
        asked.append(metadata_errors)
        if metadata_errors and not has_argument:
            raise TypeError("open() got an unexpected keyword argument 'metadata_errors'")
        return opened(*args, **options, **allowed)

    data = media.wav(tmp_path / "a.wav", media.tone(16000, 0.1), 16000).read_bytes()
    title = b"LIST" + struct.pack("<I4s4sI", 16, b"INFO", b"INAM", 4) + b"Caf\xe9"
    path = tmp_path / "b.wav"
    path.write_bytes(data[:4] + struct.pack("<I", len(data) - 8 + len(title)) + data[8:12] + title + data[12:])
    monkeypatch.setattr(av, "open", of_version)
    tried = ["replace"] if has_argument else ["replace", None]
    assert len(decoded(path)) == 1600 and asked == 2 * tried  # its format, then its samples


# Sound: the data decide


@pytest.mark.parametrize("channels", [1, 2, 8])
@pytest.mark.parametrize("kind", ["WAV PCM_U8", "WAV PCM_16", "WAV PCM_24", "WAV PCM_32", "WAV FLOAT", "WAV DOUBLE",
                                  "FLAC PCM_16", "FLAC PCM_24", "AIFF PCM_16", "CAF PCM_24"])  # fmt: skip
def test_whole_numbers_are_read_exactly(tmp_path, kind, channels):
    """libsndfile is the reference."""
    container, subtype = kind.split()
    samples = np.random.default_rng(0).uniform(-1, 1, (3000, channels))
    samples[:2] = [[1.0], [-1.0]]
    path = tmp_path / "sound"
    soundfile.write(path, samples, 16000, subtype, format=container)
    expected, _ = soundfile.read(path, dtype="float32", always_2d=True)
    assert np.array_equal(decoded(path), expected)
    sound = load_audio(path)
    assert np.array_equal(sound.read(0, 3000), expected.mean(1))


def test_joined_mp3_and_chained_ogg_are_used_to_the_end(tmp_path):
    media.coded(tmp_path / "one.mp3", "libmp3lame", media.tone(24000, 1.2), 24000)
    media.coded(tmp_path / "two.mp3", "libmp3lame", media.tone(24000, 2.1), 24000)
    soundfile.write(tmp_path / "one.ogg", media.tone(24000, 1.2), 24000)
    soundfile.write(tmp_path / "two.ogg", media.tone(24000, 2.1), 24000)
    for suffix in ("mp3", "ogg"):
        path = tmp_path / f"joined.{suffix}"
        path.write_bytes(b"".join((tmp_path / f"{name}.{suffix}").read_bytes() for name in ("one", "two")))
        sound = load_audio(path)
        assert sound.duration_s == pytest.approx(3.3, abs=0.12)
        assert np.abs(sound.read(3 * 16000, 3 * 16000 + 1600)).max() > 0.1


def test_a_sound_that_changes_its_form_goes_on_or_is_said_to_end(tmp_path, caplog):
    for rate, channels in ((24000, 1), (48000, 2)):
        media.coded(tmp_path / f"{rate}.mp3", "libmp3lame", media.tone(rate, 1.0, channels), rate)
        soundfile.write(tmp_path / f"{rate}.ogg", media.tone(rate, 1.0, channels), rate)
    for suffix in ("mp3", "ogg"):
        parts = [(tmp_path / f"{rate}.{suffix}").read_bytes() for rate in (24000, 48000)]
        (tmp_path / f"both.{suffix}").write_bytes(b"".join(parts))
    assert load_audio(tmp_path / "both.mp3").duration_s == pytest.approx(2.0, abs=0.15)
    assert len(decoded(tmp_path / "both.ogg")) / 24000 > 1.9 or "both.ogg ends after 1.02 s" in caplog.text


@pytest.mark.skipif("libopus" not in av.codecs_available, reason="FFmpeg is built without Opus")
def test_a_chain_of_two_coders_is_no_soundtrack_that_is_copied(tmp_path):
    media.coded(tmp_path / "one.opus", "libopus", media.tone(48000, 0.5, 2), 48000)
    soundfile.write(tmp_path / "two.ogg", media.tone(16000, 0.5, 2), 16000)
    path = tmp_path / "chain.opus"
    path.write_bytes((tmp_path / "one.opus").read_bytes() + (tmp_path / "two.ogg").read_bytes())
    assert load_audio(path).duration_s >= 0.5
    sound, rate = media.decoded_sound(muxed(path, tmp_path / "chain.mp4"))
    assert sound.shape[1] / rate >= 0.95 and np.abs(sound[:, : rate // 3]).max() > 0.1


def test_a_sound_that_ends_early_is_used_and_said(tmp_path, caplog):
    path = media.wav(tmp_path / "cut.wav", media.tone(16000, 2.0), 16000)
    path.write_bytes(path.read_bytes()[:32044])
    assert load_audio(path).duration_s == pytest.approx(1.0)
    assert "cut.wav ends after 1.00 s; its header says 2.00 s" in caplog.text


@pytest.mark.parametrize("length", [0, 1000, 2**32 - 1])
def test_a_recorder_that_crashed_left_a_wrong_length(tmp_path, length):
    path = media.wav(tmp_path / "crashed.wav", media.tone(16000, 2.0) + 0.01, 16000)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"data") + 4, length)
    path.write_bytes(data)
    assert load_audio(path).duration_s == pytest.approx(2.0)


def test_chunks_behind_the_samples_are_no_sound(tmp_path, caplog):
    path = media.wav(tmp_path / "named.wav", media.tone(16000, 1.0), 16000)
    whole = path.read_bytes()
    for padding in (b"", bytes(512)):  # of whole blocks, as recorders have them
        path.write_bytes(whole + b"LIST" + struct.pack("<I", 12) + b"INFOIART" + bytes(4) + padding)
        assert load_audio(path).num_samples == 16000 and not caplog.text
    path.write_bytes(whole + whole)
    assert load_audio(path).num_samples == 16000 and "second recording" in caplog.text


def test_a_damaged_packet_is_silence_of_its_length_and_said_once(tmp_path, caplog):
    path = media.coded(tmp_path / "speech.m4a", "aac", media.tone(16000, 2.0), 16000)
    whole = decoded(path)
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(audio=0) if packet.size][15]
        place, size = packet.pos, packet.size
    data = bytearray(path.read_bytes())
    data[place : place + size] = b"\xff" * size
    path.write_bytes(data)
    sound = SoundFile(path)
    for _ in range(2):
        samples = np.concatenate(list(sound.pieces()))
        assert samples.shape == whole.shape and not samples[14 * 1024 + 64 : 15 * 1024 - 64].any()
        assert np.array_equal(samples[18 * 1024 :], whole[18 * 1024 :])
    assert caplog.text.count("is damaged") == 1 and "(1, the first at 0.9" in caplog.text


def without_decoder(path, name):
    """Gives the first track whose codec is called `name` one that nobody knows."""
    data = bytearray(path.read_bytes())
    place = data.index(name, data.index(b"stsd"))
    data[place : place + 4] = b"zzzz"
    path.write_bytes(data)
    return path


def test_the_first_track_that_has_a_decoder_is_used(tmp_path):
    with av.open(str(tmp_path / "two.mov"), "w") as container:
        for kind in ("pcm_s16be", "pcm_s16le"):
            container.add_stream(kind, rate=16000, layout="mono")
        for stream, level in zip(container.streams, (0.1, 0.5), strict=True):
            samples = np.full((1, 16000), level * 32767, np.int16)
            frame = av.AudioFrame.from_ndarray(samples, "s16", "mono")
            frame.sample_rate, frame.pts = 16000, 0
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                container.mux(packet)
    assert load_audio(tmp_path / "two.mov").read(0, 9).max() == pytest.approx(0.1, abs=1e-3)
    path = without_decoder(tmp_path / "two.mov", b"twos")
    assert load_audio(path).read(0, 9).max() == pytest.approx(0.5, abs=1e-3)
    heard, _ = media.decoded_sound(muxed(path, tmp_path / "out.mp4"))
    assert np.abs(heard[:, 8000:9000]).max() == pytest.approx(0.5, abs=0.05)
    without_decoder(path, b"sowt")
    for reader in (load_audio, lambda path: Soundtrack((path,))):
        with pytest.raises(InputError, match="No sound track of .*two.mov has a decoder"):
            reader(path)


def test_a_video_track_without_a_decoder_is_answered(tmp_path):
    path = without_decoder(media.film(tmp_path / "film.mov"), b"avc1")
    for reader in (probe, is_video, VideoFrames, picture_size):
        with pytest.raises(InputError, match="No video track of .*film.mov has a decoder"):
            reader(path)
    assert load_audio(path).duration_s == pytest.approx(0.5, abs=0.06)


def test_sound_of_telephones_is_read(tmp_path):
    soundfile.write(tmp_path / "gsm.wav", media.tone(8000, 1.0), 8000, subtype="GSM610")
    assert load_audio(tmp_path / "gsm.wav").duration_s == pytest.approx(1.0, abs=0.03)


# Sound: what is accepted can be muxed


@pytest.mark.parametrize(
    ("rate", "channels", "level", "says"),
    [(1, 1, 0.3, "1 samples a second. From 4000"), (10**6, 1, 0.3, "1000000 samples a second. From 4000 to 768000"),
     (16000, 9, 0.3, "9 channels. From 1 to 8"), (16000, 1, 1e30, "where full scale is 1; up to 100"),
     (16000, 1, np.nan, "NaN")],
)  # fmt: skip
def test_what_no_soundtrack_holds_is_answered_at_once(tmp_path, rate, channels, level, says):
    samples = np.full((4000, channels), level, np.float32)
    path = media.wav(tmp_path / "sound.wav", samples, rate, "FLOAT")
    readers = [lambda: load_audio(path), lambda: from_array(samples.T, rate), lambda: Waveform(samples.T, rate)]
    for reader in readers:
        with pytest.raises(InputError, match=says) as error:
            reader()
        assert str(error.value).count("\n") <= 2


@pytest.mark.parametrize("channels", [1, 3, 4, 7, 8])
@pytest.mark.parametrize("level", [0.3, 90.0])
def test_what_is_accepted_can_be_muxed(tmp_path, channels, level):
    samples = media.tone(48000, 1.0, channels, level=level)
    path = media.wav(tmp_path / "sound.wav", samples, 48000, "FLOAT")
    load_audio(path)
    for source in (path, Waveform(samples.T, 48000)):
        heard, rate = media.decoded_sound(muxed(source, tmp_path / "out.mp4"))
        assert rate == 48000 and np.abs(heard).max() > 0.2


def test_huge_values_that_come_in_later_do_not_end_a_video(tmp_path, caplog):
    samples = np.full((48000, 1), 0.1, np.float32)
    samples[24000:24100] = [[1e30], [np.nan]] * 50
    path = media.wav(tmp_path / "sound.wav", samples, 48000, "FLOAT")
    muxed(path, tmp_path / "out.mp4")
    assert "values that no soundtrack can hold" in caplog.text


# Color


def coded_red(path, transfer, primaries, codes):
    """A 10-bit video of one color, coded as Y'CbCr of BT.2020 in limited range."""
    red, green, blue = codes
    luma = 0.2627 * red + 0.678 * green + 0.0593 * blue
    planes = (64 + 876 * luma, 512 + 896 * (blue - luma) / 1.8814, 512 + 896 * (red - luma) / 1.4746)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv444p10le"
        context = stream.codec_context
        context.color_trc, context.color_primaries, context.colorspace, context.color_range = transfer, primaries, 9, 1
        frame = av.VideoFrame(64, 48, "yuv444p10le")
        for plane, level in zip(frame.planes, planes, strict=True):
            plane.update(np.full(plane.buffer_size // 2, round(level), np.uint16).tobytes())
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return path


def light_of(color):
    """Linear light of BT.2020, times SDR white, of an SDR color of Rec. 709."""
    matrix = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
    return matrix @ (np.array(color) / 255) ** 2.4


def hlg(light):
    scene = (light / 10) ** (1 / 1.2)
    high = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), high)


def pq(light):
    m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
    power = (light / 100) ** m1
    return ((c1 + c2 * power) / (1 + c3 * power)) ** m2


@pytest.mark.parametrize(
    ("transfer", "coded", "name"), [(18, hlg, "HLG"), (16, pq, "PQ"), (14, lambda light: light ** (1 / 2.4), "BT.2020")]
)
@pytest.mark.parametrize("color", [(200, 30, 30), (30, 180, 60), (128, 128, 128), (0, 0, 0)])
def test_wide_and_high_range_video_has_the_colors_of_sdr(tmp_path, caplog, transfer, coded, name, color):
    path = coded_red(tmp_path / "phone.mkv", transfer, 9, coded(light_of(color)))
    with caplog.at_level("INFO", "wanvideo"):
        assert picture_size(path) == (64, 48)
        with VideoFrames(path) as video:
            assert np.abs(video.frame_at(0.0).astype(int) - color).max() <= 4
    assert caplog.text.count(f"is {name} video; its colors are brought to BT.709 SDR") == 1


@pytest.mark.parametrize(("transfer", "coded"), [(18, hlg), (16, pq)])
def test_highlights_are_compressed_not_cut(tmp_path, transfer, coded):
    levels = []
    for light in (0.5, 1.0, 2.0, 4.0, 9.9):
        with VideoFrames(coded_red(tmp_path / f"{light}.mkv", transfer, 9, coded(np.full(3, light)))) as video:
            levels.append(int(video.frame_at(0.0)[5, 5, 0]))
    assert levels == sorted(set(levels)) and levels[1] > 225 and levels[-1] >= 250


# Only files of known kinds, and only this file


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [("live.m3u8", b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nhttp://127.0.0.1:1/a.ts\n", "a playlist"),
     ("list.txt", b"ffconcat version 1.0\nfile 'a.mp4'\n", "a playlist"),
     ("live.mpd", b"<?xml version='1.0'?>\n<MPD></MPD>", "a playlist"),
     ("logo.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing.*Export it as PNG"),
     ("logo.svg", b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- x -->\n<svg/>", "an SVG drawing"),
     ("logo.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "an EPS or PostScript drawing"),
     ("notes.txt", b"hello\n", "a text file")],
)  # fmt: skip
def test_drawings_playlists_and_text_are_named(tmp_path, name, data, says):
    (tmp_path / name).write_bytes(data)
    for reader in (load_audio, load_picture, is_video, picture_size, probe, VideoFrames, open_frames):
        with pytest.raises(InputError, match=says):
            reader(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_pipes_devices_and_folders_are_answered_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, says in ((tmp_path / "pipe", "a pipe or a device"), (os.devnull, "a pipe or a device"),
                       (tmp_path, "is a folder"), (tmp_path / "a\0b", "cannot be opened")):  # fmt: skip
        for reader in (
            load_audio,
            load_picture,
            is_video,
            picture_size,
            probe,
            VideoFrames,
            lambda x: Soundtrack((x,)),
        ):
            with pytest.raises(InputError, match=says):
                reader(path)


@pytest.mark.parametrize("kind", ["hls", "concat"])
def test_no_other_file_is_opened_whatever_the_first_bytes_are(tmp_path, monkeypatch, kind):
    """FFmpeg itself refuses playlists, even if their beginning were not known."""
    monkeypatch.setattr("wanvideo.audio.container.REFUSED", ())
    media.film(tmp_path / "film.ts")
    lists = {"hls": "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nfilm.ts\n#EXT-X-ENDLIST\n",
             "concat": "ffconcat version 1.0\nfile film.ts\n"}  # fmt: skip
    (tmp_path / "list").write_text(lists[kind])
    for reader in (load_audio, VideoFrames):
        with pytest.raises(InputError, match="list cannot be read as"):
            reader(tmp_path / "list")


def test_pictures_of_other_formats_are_not_opened(tmp_path):
    (tmp_path / "plain.ppm").write_text("P3 2 1 255\n1 2 3 4 5 6\n")  # text, and a picture
    assert load_picture(tmp_path / "plain.ppm").tolist() == [[[1, 2, 3], [4, 5, 6]]]
    Image.new("RGB", (8, 8)).save(tmp_path / "a.pcx")
    with pytest.raises(InputError, match="is not a picture that can be read"):
        load_picture(tmp_path / "a.pcx")


# Limits


def png(width, height, *chunks):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + bytes(-(-width // 8))) * height, 9)
    extra = b"".join(chunk(*item) for item in chunks)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [9000, 13300, 40000])
def test_a_picture_of_many_pixels_is_refused_by_its_header(tmp_path, size):
    (tmp_path / "bomb.png").write_bytes(png(size, size) if size < 10000 else png(size, 1))
    data = bytearray((tmp_path / "bomb.png").read_bytes())
    struct.pack_into(">II", data, 16, size, size)
    struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    (tmp_path / "bomb.png").write_bytes(data)
    for reader in (load_picture, picture_size, is_video):
        with pytest.raises(InputError, match="bomb.png has .*pixels. At most 67 million are read"):
            reader(tmp_path / "bomb.png")


def test_a_picture_with_a_bomb_in_its_text_is_answered(tmp_path):
    text = b"a\0\0" + zlib.compress(bytes(80 * 2**20), 9)
    (tmp_path / "text.png").write_bytes(png(8, 8, (b"zTXt", text)))
    for reader in (load_picture, picture_size, is_video):
        with pytest.raises(InputError, match="text.png cannot be read"):
            reader(tmp_path / "text.png")


def test_a_chunk_that_claims_gigabytes_takes_none(tmp_path):
    data = png(8, 8)
    place = data.index(b"IEND") - 4
    (tmp_path / "long.png").write_bytes(data[:place] + struct.pack(">I", 2**32 - 8) + b"IDAT" + bytes(8))
    tracemalloc.start()
    with suppress(InputError):
        load_picture(tmp_path / "long.png")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 10e6


def test_a_damaged_animation_is_answered(tmp_path):
    (tmp_path / "cut.png").write_bytes(png(8, 8, (b"acTL", bytes(8)), (b"fcTL", bytes(3))))
    for reader in (load_picture, picture_size, is_video):
        with pytest.raises(InputError, match="cut.png cannot be read"):
            reader(tmp_path / "cut.png")


def test_frames_of_many_pixels_are_refused(tmp_path):
    path = media.video(tmp_path / "wide.mp4", media.numbered_frames(3, 720, 1280), sample_aspect_ratio=Fraction(100))
    for reader in (VideoFrames, picture_size):
        with pytest.raises(InputError, match="wide.mp4 has 128000x720 pixels. At most 36 million"):
            reader(path)


def test_a_sound_longer_than_a_day_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("wanvideo.audio.decode.MAX_DURATION_S", 1.0)
    path = media.wav(tmp_path / "long.wav", media.tone(16000, 1.5), 16000)
    with pytest.raises(InputError, match="long.wav lasts more than"):
        load_audio(path)


def test_an_animated_webp_gives_its_frames_by_time(tmp_path):
    moving = [Image.new("RGBA", (16, 12), (k * 60, 255 - k, 7, 255)) for k in range(4)]
    path = tmp_path / "moving.webp"
    moving[0].save(path, save_all=True, append_images=moving[1:], duration=[100, 300, 100, 50], lossless=True)
    assert is_video(path) and picture_size(path) == (16, 12)
    frames = open_frames(path)
    assert frames.num_frames == 4 and frames.duration_s == pytest.approx(0.55)
    for time_s, index in ((0.0, 0), (0.45, 2), (0.1, 1), (0.39, 1), (9.0, 3), (-1.0, 0)):
        assert tuple(frames.frame_at(time_s)[3, 3]) == (index * 60, 255 - index, 7)
    frames.close()


def test_the_app_s_process_opens_no_program_as_a_picture(tmp_path, monkeypatch):
    Image.init()
    monkeypatch.setattr(Image, "ID", [*Image.OPEN])  # all, whatever was started before
    Image.new("RGB", (8, 8)).save(tmp_path / "program.png", "EPS")
    assert Image.open(tmp_path / "program.png").format == "EPS"
    read_no_other_kinds()
    with pytest.raises(Image.UnidentifiedImageError):
        Image.open(tmp_path / "program.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    assert Image.open(tmp_path / "picture.png").format == "PNG"


def test_of_chunks_without_end_some_are_read(tmp_path, monkeypatch):
    sound, picture = media.wav(tmp_path / "a.wav", media.tone(16000, 0.1), 16000), tmp_path / "a.webp"
    moving = [Image.new("RGB", (16, 12), (k * 60, 0, 7)) for k in range(2)]
    moving[0].save(picture, save_all=True, append_images=moving[1:], duration=100)
    for path in (Path(sound), picture):
        with path.open("ab") as file:
            file.write(b"JUNK\0\0\0\0" * 10**6)
    reads = []

    class Counted(io.BufferedReader):
        def read(self, *size):
            reads.append(size)
            return super().read(*size)

    monkeypatch.setattr(Path, "open", lambda self, mode: Counted(io.FileIO(self, mode.replace("b", ""))))
    assert read_wav_header(Path(sound)).stated_s == 0.1 and len(reads) < 500_000
    reads.clear()
    frames = AnimatedPicture(picture)
    assert frames.num_frames == 2 and len(reads) < 500_000
    frames.close()


@pytest.mark.parametrize(("version", "options"), [("17.0.0", {}), ("18.1.0", {"max_pixels": "36000000"})])
def test_a_pyav_that_would_end_the_process_is_given_no_options(tmp_path, monkeypatch, version, options):
    """Before 18 it frees as many of them as there are tracks at last, and has as many as there were at first."""
    given, real = [], av.open
    monkeypatch.setattr(av, "__version__", version)
    monkeypatch.setattr(av, "open", lambda *args, **named: given.append(named["options"]) or real(*args, **named))
    load_audio(media.wav(tmp_path / "a.wav", media.tone(16000, 0.5), 16000))
    assert given and all(item == options for item in given)
