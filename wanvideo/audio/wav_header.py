"""What a wav file's header says of its samples, and what really stands behind them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

MAX_CHUNKS = 100_000  # files have a few
UNKNOWN_BYTES = 0x7FFF0000  # programs that write into a pipe state this length or more


class WavTail(Enum):
    """NOTHING: or chunks that are no sound. SAMPLES: the sound goes on. RECORDING: a second file follows."""

    NOTHING = "nothing"
    SAMPLES = "samples"
    RECORDING = "recording"


@dataclass(frozen=True)
class WavHeader:
    """Args: stated_s: length by the header; 0: none is stated. tail: what follows the end that it gives."""

    stated_s: float = 0.0
    tail: WavTail = WavTail.NOTHING


def read_wav_header(path: Path) -> WavHeader:
    """The chunks of a wav file; a recorder that crashed leaves the length of its samples too small, or too large.

    Returns: an empty header for every other kind of file.
    """
    size, stated_s, bytes_per_s = path.stat().st_size, 0.0, 0
    with path.open("rb") as file:
        if (start := file.read(12))[:4] != b"RIFF" or start[8:] != b"WAVE":
            return WavHeader()
        has_samples = is_followed = False  # by another chunk: what comes behind that is no sound
        for _ in range(MAX_CHUNKS):
            if len(chunk := file.read(8)) < 8:
                break
            name, length = chunk[:4], int.from_bytes(chunk[4:], "little")
            end = file.tell() + length
            if has_samples and name == b"RIFF":
                return WavHeader(stated_s, WavTail.RECORDING)
            if has_samples and (end > size or not _is_name(name)):
                return WavHeader(stated_s, WavTail.NOTHING if is_followed else WavTail.SAMPLES)
            is_followed = has_samples
            if name == b"fmt ":
                bytes_per_s = int.from_bytes(file.read(12)[8:], "little")
            if name == b"data" and 0 < length < UNKNOWN_BYTES:
                has_samples, stated_s = True, length / bytes_per_s if bytes_per_s else 0.0
            if end > size:
                break
            file.seek(end + length % 2)
    return WavHeader(stated_s)


def _is_name(name: bytes) -> bool:
    return all(0x20 <= byte < 0x7F for byte in name)
