"""Damaged sounds, pictures and videos through the library's readers: every one is used or answered."""

import io
import itertools
import pathlib
import random
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from fractions import Fraction

import av
import numpy as np
import soundfile
from PIL import Image
from support import media_files

from wanvideo.audio.load import load_audio
from wanvideo.errors import TalkError
from wanvideo.geometry import WindowPlan
from wanvideo.video.picture import load_mask, load_picture
from wanvideo.video.reader import is_video, open_frames, picture_size, probe
from wanvideo.video.soundtrack import Soundtrack, add_soundtrack
from wanvideo.video.source import SourceReferences, SourceVideo

BOUNDARIES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)
HEAD_BYTES = 256  # where most of a file's fields are
RATE, SECONDS = 16000, 0.5
MOMENTS_S = (0.0, 0.3, 0.1, 100.0)


def cases(rng: random.Random, folder: pathlib.Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """(name, what reads a file) without end; each file is written to `folder` when its case is called."""
    seeds = {path.name: path.read_bytes() for path in _seeds(folder)}
    for number in itertools.count():
        name = rng.choice(sorted(seeds))
        data, done = bytearray(seeds[name]), []
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            mutation = rng.choice(MUTATIONS)
            mutation(data, rng, seeds)
            done.append(mutation.__name__.strip("_"))
        case = f"media {number} {name} {'+'.join(done)}"
        yield case, Case(folder / f"case{pathlib.Path(name).suffix}", bytes(data))


class Case:
    """A file's bytes, which are written and read when it is called."""

    def __init__(self, path: pathlib.Path, data: bytes) -> None:
        self.path, self.data = path, data

    def __call__(self) -> None:
        """Raises: the last reader's answer where no reader can use the file, or what else was raised."""
        self.path.write_bytes(self.data)
        answers = []
        for reader in READERS:
            try:
                reader(self.path)
            except TalkError as error:
                answers.append(error)
        if len(answers) == len(READERS):
            raise answers[-1]


def _read_sound(path: pathlib.Path) -> None:
    for block in load_audio(path).blocks():
        assert np.isfinite(block).all()


def _mux_sound(path: pathlib.Path) -> None:
    with av.open(io.BytesIO(), "w", format="mp4") as output:
        for packet in add_soundtrack(output, Soundtrack((path,)), Fraction(1)):
            output.mux(packet)


def _read_frames(path: pathlib.Path) -> None:
    with closing(open_frames(path)) as frames:
        assert frames.num_frames >= 0 and frames.duration_s >= 0
        for moment in MOMENTS_S:
            assert frames.frame_at(moment).dtype == np.uint8


def _read_references(path: pathlib.Path) -> None:
    with closing(SourceVideo(path, 32, 32, fps=25)) as source:
        references = SourceReferences(source, WindowPlan(33, window=13, overlap=5))
        assert all(reference.isfinite().all() for reference in map(references.__getitem__, range(len(references))))


READERS = (
    _read_sound, _mux_sound, _read_frames, _read_references, is_video, picture_size, probe, load_picture, load_mask
)  # fmt: skip


def _flip(data: bytearray, rng: random.Random, _: dict[str, bytes]) -> None:
    for _ in range(rng.choice((1, 3, 30))):
        if data:
            data[_place(data, rng)] ^= 1 << rng.randrange(8)


def _truncate(data: bytearray, rng: random.Random, _: dict[str, bytes]) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _duplicate(data: bytearray, rng: random.Random, _: dict[str, bytes]) -> None:
    start, stop = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
    data[stop:stop] = data[start:stop]


def _remove(data: bytearray, rng: random.Random, _: dict[str, bytes]) -> None:
    start = rng.randrange(len(data) + 1)
    del data[start : start + rng.choice((1, 4, 100, 1000))]


def _blank(data: bytearray, rng: random.Random, _: dict[str, bytes]) -> None:
    start = rng.randrange(len(data) + 1)
    stop = min(len(data), start + rng.choice((8, 100, 600)))
    data[start:stop] = bytes(stop - start)


def _boundary(data: bytearray, rng: random.Random, _: dict[str, bytes]) -> None:
    size = rng.choice((1, 2, 3, 4, 8))
    start = _place(data, rng)
    value = rng.choice(BOUNDARIES) & (2 ** (8 * size) - 1)
    data[start : start + size] = value.to_bytes(size, rng.choice(("little", "big")))


def _join(data: bytearray, rng: random.Random, seeds: dict[str, bytes]) -> None:
    data += seeds[rng.choice(sorted(seeds))]


MUTATIONS = (_flip, _flip, _truncate, _duplicate, _remove, _blank, _boundary, _boundary, _boundary, _join)


def _place(data: bytearray, rng: random.Random) -> int:
    """An offset, as often among the first bytes, in the last ones, and anywhere."""
    end = max(1, len(data))
    return rng.choice((rng.randrange(min(HEAD_BYTES, end)), end - 1 - rng.randrange(min(HEAD_BYTES, end)),
                       rng.randrange(end)))  # fmt: skip


def _seeds(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Whole files of all kinds, in a folder of their own."""
    folder = folder / "whole"
    folder.mkdir(parents=True, exist_ok=True)
    tone = media_files.tone(RATE, SECONDS, 2)
    for name, subtype in (("pcm.wav", "PCM_16"), ("float.wav", "FLOAT"), ("deep.flac", "PCM_24"), ("a.ogg", "VORBIS"),
                          ("gsm.wav", "GSM610"), ("a.aiff", "PCM_16")):  # fmt: skip
        mono = tone[:, :1] if subtype == "GSM610" else tone
        soundfile.write(folder / name, mono, RATE, subtype=subtype)
        yield folder / name
    for name, codec in (("a.mp3", "libmp3lame"), ("a.m4a", "aac"), ("a.opus", "libopus")):
        with suppress(av.codec.codec.UnknownCodecError):  # FFmpeg is built without some coders
            yield media_files.coded(folder / name, codec, media_files.tone(48000, SECONDS, 2), 48000)
    pictures = [Image.fromarray(np.roll(_picture(), 5 * shift, 1)) for shift in range(4)]
    for name in ("a.png", "a.jpg", "a.webp", "a.gif", "a.tiff", "a.bmp", "a.tga"):
        pictures[0].save(folder / name)
        yield folder / name
    for name in ("moving.png", "moving.gif", "moving.webp"):
        pictures[0].save(folder / name, save_all=True, append_images=pictures[1:], duration=100)
        yield folder / name
    pictures[0].convert("RGBA").quantize(16).save(folder / "palette.png", transparency=1)
    yield folder / "palette.png"
    for name, codec in (("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.ts", "mpeg2video"),
                        ("a.webm", "libvpx-vp9"), ("a.mov", "mjpeg")):  # fmt: skip
        settings = {"pix_fmt": "yuvj420p"} if codec == "mjpeg" else {}
        yield media_files.video(folder / name, media_files.numbered_frames(12), codec=codec, keyframe=6, **settings)
    yield media_files.film(folder / "film.mp4")
    yield media_files.film(folder / "film.mkv")


def _picture() -> np.ndarray:
    rows, columns = np.mgrid[0:48, 0:64]
    return np.stack([rows * 5, columns * 4, (rows + columns) % 256], -1).astype(np.uint8)
