"""Fragments of an mp4: boxes that are appended to a file and make it playable up to there.

The layout is that of ISO/IEC 14496-12: a header (ftyp, moov) once, then moof and mdat for each fragment.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

KEY_SAMPLE, OTHER_SAMPLE = 0x02000000, 0x01010000
BASE_IS_MOOF = 0x020000
# Of every sample: duration, size, flags, composition offset; and where the first one's data are.
SAMPLE_FIELDS = 0x000F01


@dataclass(frozen=True)
class Sample:
    """One coded picture or piece of sound. duration, delay (from decoding to showing): ticks of its track."""

    data: bytes
    duration: int
    delay: int = 0
    is_key: bool = True


@dataclass(frozen=True)
class Track:
    """A track's samples of one fragment, in decoding order. number: from 1. start: ticks, when the first is decoded."""

    number: int
    start: int
    samples: Sequence[Sample]


def fragment(sequence: int, tracks: Sequence[Track]) -> bytes:
    """One fragment of a file. sequence: its number, from 1. Tracks without samples are left out."""
    tracks = [track for track in tracks if track.samples]
    length = len(_moof(sequence, tracks, 0))
    data = b"".join(sample.data for track in tracks for sample in track.samples)
    return _moof(sequence, tracks, length + 8) + _box(b"mdat", data)


def _moof(sequence: int, tracks: Sequence[Track], offset: int) -> bytes:
    """offset: of the first sample's data from the beginning of the moof."""
    parts = [_box(b"mfhd", struct.pack(">II", 0, sequence))]
    for track in tracks:
        parts.append(_traf(track, offset))
        offset += sum(len(sample.data) for sample in track.samples)
    return _box(b"moof", b"".join(parts))


def _traf(track: Track, offset: int) -> bytes:
    header = _box(b"tfhd", struct.pack(">II", BASE_IS_MOOF, track.number))
    time = _box(b"tfdt", struct.pack(">IQ", 1 << 24, track.start))
    samples = b"".join(
        struct.pack(
            ">IIII", item.duration, len(item.data), KEY_SAMPLE if item.is_key else OTHER_SAMPLE, item.delay
        )
        for item in track.samples
    )  # fmt: skip
    run = _box(b"trun", struct.pack(">IIi", SAMPLE_FIELDS, len(track.samples), offset) + samples)
    return _box(b"traf", header + time + run)


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content
