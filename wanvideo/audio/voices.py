"""Voices that speak text: what a speech synthesizer does, those that are used, their languages and their voices."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from .. import checks
from ..errors import InputError, UnsupportedError

FOLDER = Path("weights/Kokoro-82M")  # where the reference has it
RATE = 24000  # Hz, of all voices, so that they may speak with one another
KOKORO, ESPEAK = "Kokoro", "eSpeak"
PACKAGES = {KOKORO: "kokoro", ESPEAK: "espeakng-loader"}  # what pip installs; modules have _ in place of -
PLAIN = "espeak_"  # eSpeak's voices begin with it
# Of its own list: a woman's and a man's way of speaking that are clear in every language.
WOMAN, MAN = "f2", "m3"


@dataclass(frozen=True)
class Language:
    """A language that voices of one synthesizer speak.

    Args:
        code: the first letter of Kokoro's voices, eSpeak's name of the language. voices: their names, women first.
        most: characters that are spoken at once; 0: the synthesizer splits long text itself.
    """

    code: str
    name: str
    voices: tuple[str, ...]
    most: int = 0
    synthesizer: str = KOKORO


def _language(code: str, name: str, women: str, men: str, most: int = 0) -> Language:
    names = [f"{code}{kind}_{voice}" for kind, those in (("f", women), ("m", men)) for voice in those.split()]
    return Language(code, name, tuple(names), most)


def _plain(code: str, name: str) -> Language:
    return Language(code, name, (f"{PLAIN}{code}_f", f"{PLAIN}{code}_m"), synthesizer=ESPEAK)


LANGUAGES = (
    _language("a", "American English", "heart alloy aoede bella jessica kore nicole nova river sarah sky",
              "adam echo eric fenrir liam michael onyx puck santa"),
    _language("b", "British English", "alice emma isabella lily", "daniel fable george lewis"),
    _language("z", "Mandarin Chinese", "xiaobei xiaoni xiaoxiao xiaoyi", "yunjian yunxi yunxia yunyang", 80),
    _language("e", "Spanish", "dora", "alex santa", 250),
    _language("f", "French", "siwis", "", 250),
    _language("h", "Hindi", "alpha beta", "omega psi", 250),
    _language("i", "Italian", "sara", "nicola", 250),
    _language("j", "Japanese", "alpha gongitsune nezumi tebukuro", "kumo", 80),
    _language("p", "Brazilian Portuguese", "dora", "alex santa", 250),
    # Not Japanese: eSpeak reads no kanji.
    _plain("en-us", "American English"), _plain("en-gb", "British English"), _plain("cmn", "Mandarin Chinese"),
    _plain("yue", "Cantonese"), _plain("es", "Spanish"), _plain("es-419", "Latin American Spanish"),
    _plain("fr", "French"), _plain("de", "German"), _plain("it", "Italian"), _plain("pt", "Portuguese"),
    _plain("pt-br", "Brazilian Portuguese"), _plain("nl", "Dutch"), _plain("pl", "Polish"), _plain("ru", "Russian"),
    _plain("uk", "Ukrainian"), _plain("tr", "Turkish"), _plain("ar", "Arabic"), _plain("hi", "Hindi"),
    _plain("id", "Indonesian"), _plain("ko", "Korean"), _plain("vi", "Vietnamese"),
)  # fmt: skip
VOICES = tuple(voice for language in LANGUAGES for voice in language.voices)


class Voice(Protocol):
    """A speech synthesizer. Nothing is loaded before the first `speak`."""

    def speak(self, text: str, voice: str, language: Language) -> tuple[np.ndarray, int]:
        """Samples [N] float32, full scale 1, and their rate in Hz; the same text gives the same samples.

        Args: voice: a name of VOICES, or the path of a voice file.
        Raises: UnsupportedError when it is not installed or its model cannot be had.
        """


def language_of(voice: str) -> Language:
    """The language of a voice, by its name or its file's. Raises: InputError for a voice that is not known."""
    name = Path(voice).stem if voice.endswith(".pt") else voice
    known = next((language for language in LANGUAGES if name in language.voices), None)
    if known is None and name != voice and name[1:3] in ("f_", "m_"):  # a voice of one's own
        known = next((language for language in LANGUAGES if language.code == name[:1]), None)
    if known is None or (name != voice and known.synthesizer != KOKORO):
        near = checks.meant(voice, VOICES)
        raise InputError(
            f"The voice {checks.brief(voice)} is not known.{near} Use one that `python -m wanvideo voices` lists."
        )
    return known


def check_installed(*voices: str) -> None:
    """Raises: UnsupportedError when a voice's package is missing; InputError for a voice that is not known."""
    missing = {language_of(voice).synthesizer for voice in voices if not is_installed(language_of(voice).synthesizer)}
    if KOKORO in missing:
        raise UnsupportedError(
            "Speech is made by Kokoro, which is not installed. Run pip install kokoro, or choose a voice whose name "
            f"begins with {PLAIN} (plain, small, offline: pip install espeakng-loader)."
        )
    if ESPEAK in missing:
        raise UnsupportedError("Speech is made by eSpeak, which is not installed. Run pip install espeakng-loader.")


def is_installed(synthesizer: str) -> bool:
    """Whether the package of KOKORO or ESPEAK is there."""
    return importlib.util.find_spec(PACKAGES[synthesizer].replace("-", "_")) is not None
