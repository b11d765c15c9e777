"""What stands behind the samples of a wav file, whose header may give them a wrong length."""

from __future__ import annotations

from enum import Enum
from pathlib import Path


class WavTail(Enum):
    """NOTHING: or chunks that are no sound. SAMPLES: the sound goes on. RECORDING: a second file follows."""

    NOTHING = "nothing"
    SAMPLES = "samples"
    RECORDING = "recording"


def wav_tail(path: Path) -> WavTail:
    """What follows the end that a wav file's header gives to its samples; a recorder that crashed leaves it too early.

    NOTHING for every other kind of file, and where the header gives an end behind that of the file.
    """
    size, has_samples = path.stat().st_size, False
    with path.open("rb") as file:
        if file.read(4) != b"RIFF":
            return WavTail.NOTHING
        file.seek(8)
        if file.read(4) != b"WAVE":
            return WavTail.NOTHING
        while len(chunk := file.read(8)) == 8:
            name, length = chunk[:4], int.from_bytes(chunk[4:], "little")
            end = file.tell() + length
            if has_samples and name == b"RIFF":
                return WavTail.RECORDING
            if has_samples and (end > size or not _is_name(name)):
                return WavTail.SAMPLES
            if end > size:
                break
            has_samples = has_samples or (name == b"data" and length > 0)
            file.seek(end + length % 2)
    return WavTail.NOTHING


def _is_name(name: bytes) -> bool:
    return all(0x20 <= byte < 0x7F for byte in name)
