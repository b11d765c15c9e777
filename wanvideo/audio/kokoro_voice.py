"""Kokoro-82M through the package `kokoro`: its weights, its voices' files, and long text in pieces that it takes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import checks
from ..errors import InputError, TalkError, UnsupportedError
from ..untrusted import answered, regular_file
from .voices import FOLDER, RATE, VOICES, Language, check_installed

if TYPE_CHECKING:
    from torch import Tensor

REPOSITORY = "hexgrad/Kokoro-82M"
MOST_SOUNDS, STYLE = 510, (1, 256)  # a voice has a style for each number of sounds that are spoken at once
SENTENCE = re.compile(r"[^.!?;。！？；…\n]*(?:[.!?;。！？；…]+[\"'”’»)]*|\n|$)")


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

        check_installed(voice)
        try:
            file = voice_file(voice)
            style = Path(voice).stem if file is None else read_voice(file)
            pipeline = self._pipeline(language, file)
            with torch.inference_mode(), torch.random.fork_rng():
                torch.manual_seed(0)  # the excitation of its vocoder is noise
                spoken = pipeline(list(sentences(text, language.most)), voice=style, speed=1)
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


def read_voice(file: Path) -> Tensor:
    """The styles of a voice, [510, 1, 256] float32. Nothing of its file is run, whichever PyTorch is installed.

    Raises: CheckpointError when it is damaged or holds more than a tensor, InputError when it is no voice.
    """
    from ..checkpoints.torch_file import read_tensor

    with answered(str(file)):
        styles = read_tensor(regular_file(file, "the file of a voice"))
    if styles.shape[1:] != STYLE or len(styles) < MOST_SOUNDS or not styles.is_floating_point():
        raise InputError(f"{file} holds {list(styles.shape)}, and a voice of Kokoro {[MOST_SOUNDS, *STYLE]}. Name one.")
    return styles.float()


def _local_model(file: Path | None) -> dict[str, str]:
    """The model beside a voice's file, as Kokoro publishes both."""
    folder = FOLDER if file is None else file.parent.parent
    weights = sorted(folder.glob("kokoro-*.pth"))
    if not weights or not (folder / "config.json").is_file():
        return {}
    return {"config": str(folder / "config.json"), "model": str(weights[0])}
