"""eSpeak NG through the package `espeakng_loader`, which brings the library and its data: plain voices, offline."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from .. import checks
from ..errors import InputError, UnsupportedError
from .voices import MAN, RATE, WOMAN, Language, check_installed

PROGRAM = Path(__file__).with_name("espeak_process.py")
MOST_S = 300  # it speaks 20,000 characters in a few seconds
NAMES = {"en-gb": "en-gb-x-rp"}  # where the language alone is another voice


class EspeakVoice:
    """Each text is spoken by a process of its own (see `espeak_process`)."""

    def speak(self, text: str, voice: str, language: Language) -> tuple[np.ndarray, int]:
        check_installed(voice)
        import espeakng_loader

        way = WOMAN if voice.endswith("_f") else MAN
        name = f"{NAMES.get(language.code, language.code)}+{way}"
        command = [
            sys.executable, "-I", str(PROGRAM), espeakng_loader.get_library_path(),
            str(espeakng_loader.get_data_path()), name,
        ]  # fmt: skip
        try:
            spoken = subprocess.run(
                command, input=text.replace("\0", " ").encode(errors="replace"), capture_output=True, timeout=MOST_S
            )
        except (OSError, subprocess.TimeoutExpired) as cause:
            raise _unspoken(language, type(cause).__name__) from cause
        if spoken.returncode != 0 or len(spoken.stdout) < 4:
            said = spoken.stderr.decode(errors="replace").strip().splitlines()
            raise _unspoken(language, said[-1][:200] if said else f"it ended with {spoken.returncode}")
        rate = int.from_bytes(spoken.stdout[:4], "little")
        samples = np.frombuffer(spoken.stdout, "<i2", offset=4)
        if not samples.any():
            raise InputError(f"The text {checks.brief(text)} has nothing that can be spoken. Write words.")
        return _at_rate(samples.astype(np.float32) / 2**15, rate), RATE


def _at_rate(samples: np.ndarray, rate: int) -> np.ndarray:
    import soxr

    return samples if rate == RATE else soxr.resample(samples, rate, RATE).astype(np.float32)


def _unspoken(language: Language, why: str) -> UnsupportedError:
    return UnsupportedError(
        f"eSpeak could not speak {language.name} ({why}). Install it again: pip install --force-reinstall "
        "espeakng-loader."
    )
