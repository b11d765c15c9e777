"""Nodes that make speech from text."""

from __future__ import annotations

import torch

from .nodes_audio import AUDIO
from .nodes_base import Node, checked, choice, text
from .nodes_common import stop_if_interrupted
from .wanvideo.audio.tts import TURN, InstalledVoices, speak, turns
from .wanvideo.audio.voices import VOICES, check_installed
from .wanvideo.job import TextToSpeak

EXAMPLE = "(s1) Good morning. Did you sleep well? (s2) Very well, thank you."


class WanVideoTextToSpeech(Node):
    CATEGORY = AUDIO
    SEARCH_ALIASES = ["tts", "kokoro", "speech", "voice", "dialogue"]
    REQUIRED = {
        "text": text(EXAMPLE, multiline=True),
        "voice_1": choice("af_heart", *VOICES),
        "voice_2": choice("am_adam", *VOICES),
        "voice_3": choice("bf_emma", *VOICES),
    }
    RETURN_TYPES = ("AUDIO", "AUDIO", "AUDIO", "AUDIO")
    RETURN_NAMES, FUNCTION = ("audio_1", "audio_2", "audio_3", "dialogue"), "process"

    @classmethod
    def VALIDATE_INPUTS(cls, text=None, voice_1=None, voice_2=None, voice_3=None):
        def check() -> None:
            cls.known(text=text, voice_1=voice_1, voice_2=voice_2, voice_3=voice_3)
            voices, said = (voice_1, voice_2, voice_3), {0}
            if text is not None:
                said = {person for person, _ in turns(_speech(text, *voices))}
            check_installed(*(voices[person] for person in said if voices[person] is not None))

        return checked(check)

    def process(self, text=EXAMPLE, voice_1="af_heart", voice_2="am_adam", voice_3="bf_emma"):
        dialogue = speak(_speech(text, voice_1, voice_2, voice_3), InstalledVoices())
        stop_if_interrupted()
        silence = torch.zeros(len(dialogue.whole))
        tracks = [silence if track is None else torch.from_numpy(track) for track in dialogue.tracks]
        tracks += [silence] * (3 - len(tracks)) + [torch.from_numpy(dialogue.whole)]
        return tuple({"waveform": track[None, None], "sample_rate": dialogue.rate} for track in tracks)


def _speech(said: str, *voices: str) -> TextToSpeak:
    """Of one person where the text has no turns."""
    return TextToSpeak(said, voices if TURN.search(said) else voices[:1])


NODES = (WanVideoTextToSpeech,)
