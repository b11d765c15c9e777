"""Text to speech: a dialogue in (s1) / (s2) turns becomes a track for each person, all on one time line.

Legend: N samples.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .. import checks
from ..errors import InputError
from ..job import TextToSpeak
from .espeak_voice import EspeakVoice
from .kokoro_voice import KokoroVoice
from .voices import ESPEAK, KOKORO, Language, Voice, language_of

TURN = re.compile(r"[(（]\s*[sS]\s*(\d{1,3})\s*[)）]")


@dataclass(frozen=True, eq=False)
class Dialogue:
    """What persons say, one after another.

    Args:
        tracks: samples [N] float32 of each person, zeros while others speak; None for one who says nothing.
        rate: Hz.
    """

    tracks: tuple[np.ndarray | None, ...]
    rate: int

    @property
    def whole(self) -> np.ndarray:
        """All of it, [N]: the sum of the tracks."""
        spoken = [track for track in self.tracks if track is not None]
        whole: np.ndarray = np.stack(spoken).sum(0, dtype=np.float32)
        return whole


class InstalledVoices:
    """Every voice by the synthesizer that has it."""

    def __init__(self) -> None:
        self._makers: dict[str, Voice] = {KOKORO: KokoroVoice(), ESPEAK: EspeakVoice()}

    def speak(self, text: str, voice: str, language: Language) -> tuple[np.ndarray, int]:
        return self._makers[language.synthesizer].speak(text, voice, language)


def turns(speech: TextToSpeak) -> Iterator[tuple[int, str]]:
    """(person's index, text) of each turn. One person needs no (s1).

    Raises: InputError for a turn of somebody without a voice, text before the first turn, or nothing to say.
    """
    num_people = len(speech.voices)
    first, *rest = TURN.split(speech.text)
    if first.strip() and num_people > 1:
        raise InputError(
            f'The text of "tts_audio" begins with {checks.brief(first.strip())}, which nobody says. '
            "Begin each turn with (s1), (s2), ..."
        )
    said = [(1, first), *((int(number), text) for number, text in zip(rest[::2], rest[1::2], strict=True))]
    said = [(number, text.strip()) for number, text in said if text.strip()]
    if not said:
        raise InputError('The text of "tts_audio" is empty. Write what is said.')
    for number, text in said:
        if not 1 <= number <= num_people:
            raise InputError(
                f'The turn (s{number}) in the text of "tts_audio" is of a person without a voice. '
                f'Name "human{number}_voice", or use (s1) to (s{num_people}).'
            )
        yield number - 1, text


def speak(speech: TextToSpeak, voice: Voice) -> Dialogue:
    """Speak all turns. Everything is checked before the first one. Raises: InputError; UnsupportedError of `voice`."""
    languages = [language_of(name) for name in speech.voices]
    said = list(turns(speech))
    pieces, rate = [], 0
    for person, text in said:
        samples, rate = voice.speak(text, speech.voices[person], languages[person])
        pieces.append(np.clip(samples, -1, 1))
    tracks = []
    for person in range(len(speech.voices)):
        own = [piece if who == person else np.zeros_like(piece) for (who, _), piece in zip(said, pieces, strict=True)]
        tracks.append(np.concatenate(own) if any(who == person for who, _ in said) else None)
    return Dialogue(tuple(tracks), rate)
