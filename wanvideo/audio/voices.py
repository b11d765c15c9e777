"""Voices that speak text: what a speech synthesizer does, the one that is used, its languages and its voices."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .. import checks
from ..errors import InputError, TalkError, UnsupportedError

REPOSITORY = "hexgrad/Kokoro-82M"
FOLDER = Path("weights/Kokoro-82M")  # where the reference has it
RATE = 24000  # Hz, of Kokoro
SENTENCE = re.compile(r"[^.!?;。！？；…\n]*(?:[.!?;。！？；…]+[\"'”’»)]*|\n|$)")


@dataclass(frozen=True)
class Language:
    """A language that voices speak.

    Args:
        code: the first letter of its voices' names. voices: their names, those of women (xf_) first.
        most: characters that are spoken at once; 0: the synthesizer splits long text itself.
    """

    code: str
    name: str
    voices: tuple[str, ...]
    most: int = 0


def _language(code: str, name: str, women: str, men: str, most: int = 0) -> Language:
    names = [f"{code}{kind}_{voice}" for kind, those in (("f", women), ("m", men)) for voice in those.split()]
    return Language(code, name, tuple(names), most)


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
    known = next((language for language in LANGUAGES if language.code == name[:1] and name[1:3] in ("f_", "m_")), None)
    if known is None or (name == voice and voice not in VOICES):
        near = checks.meant(voice, VOICES)
        raise InputError(
            f"The voice {checks.brief(voice)} is not known.{near} Use one that `python -m wanvideo voices` lists."
        )
    return known


def sentences(text: str, most: int) -> Iterator[str]:
    """The text in pieces of whole sentences, of at most `most` characters where a sentence is not longer; 0: one."""
    if not most:
        yield text.strip()
        return
    piece = ""
    for sentence in SENTENCE.findall(text):
        if len(piece) + len(sentence) > most and piece.strip():
            yield piece.strip()
            piece = ""
        piece += sentence
        while len(piece) > most:  # one sentence: cut at its last comma or space, else where it must be
            cut = max((piece.rfind(sign, 0, most) for sign in ",，、 "), default=-1)
            cut = cut + 1 if cut > 0 else most
            yield piece[:cut].strip()
            piece = piece[cut:]
    if piece.strip():
        yield piece.strip()


class KokoroVoice:
    """Kokoro-82M through the package `kokoro`: weights from the voice file's folder, FOLDER, or its download.

    Args: device: of torch; None: the GPU if there is one.
    """

    def __init__(self, device: str | None = None) -> None:
        self._device = device
        self._model: Any = None
        self._pipelines: dict[str, Any] = {}

    def speak(self, text: str, voice: str, language: Language) -> tuple[np.ndarray, int]:
        import torch

        check_installed()
        try:
            file = voice_file(voice)
            pipeline = self._pipeline(language, file)
            with torch.inference_mode(), torch.random.fork_rng():
                torch.manual_seed(0)  # the excitation of its vocoder is noise
                spoken = pipeline(list(sentences(text, language.most)), voice=str(file or Path(voice).stem), speed=1)
                pieces = [result.audio.float().cpu().numpy() for result in spoken if result.audio is not None]
        except TalkError:
            raise
        except (Exception, SystemExit) as cause:  # noqa: BLE001 it downloads and installs parts of itself
            raise UnsupportedError(
                f"Kokoro could not speak {language.name} ({type(cause).__name__}: {str(cause)[:200]}).\n"
                f'Put its files into {FOLDER}, and for Chinese or Japanese pip install "misaki[zh]" or "misaki[ja]".'
            ) from cause
        if not pieces:
            raise InputError(f"The text {checks.brief(text)} has nothing that can be spoken. Write words.")
        return np.concatenate(pieces).astype(np.float32), RATE

    def _pipeline(self, language: Language, file: Path | None) -> Any:
        import kokoro
        import torch

        if language.code not in self._pipelines:
            device = self._device or ("cuda" if torch.cuda.is_available() else "cpu")
            if self._model is None:
                self._model = kokoro.KModel(repo_id=REPOSITORY, **_local_model(file)).to(device).eval()
            self._pipelines[language.code] = kokoro.KPipeline(language.code, repo_id=REPOSITORY, model=self._model)
        return self._pipelines[language.code]


def check_installed() -> None:
    """Raises: UnsupportedError without the package."""
    if importlib.util.find_spec("kokoro") is None:
        raise UnsupportedError("Speech is made by Kokoro, which is not installed. Run pip install kokoro.")


def voice_file(voice: str) -> Path | None:
    """The file of a voice on this machine, or None for one that Kokoro gets itself.

    Raises: InputError for a file that is not there and has no known voice's name.
    """
    name = Path(voice).stem if voice.endswith(".pt") else voice
    named = Path(voice).expanduser() if voice.endswith(".pt") else FOLDER / "voices" / f"{voice}.pt"
    if named.is_file():
        return named
    if voice.endswith(".pt") and name not in VOICES:
        raise InputError(f"There is no voice file {voice}. Name one, or a voice of `python -m wanvideo voices`.")
    return None


def _local_model(file: Path | None) -> dict[str, str]:
    """The model beside a voice's file, as Kokoro publishes both."""
    folder = FOLDER if file is None else file.parent.parent
    weights = sorted(folder.glob("kokoro-*.pth"))
    if not weights or not (folder / "config.json").is_file():
        return {}
    return {"config": str(folder / "config.json"), "model": str(weights[0])}
