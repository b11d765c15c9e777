"""`voices`: the languages that text is spoken in, and the voices of each."""

from __future__ import annotations

import textwrap

from ..audio.voices import ESPEAK, FOLDER, KOKORO, LANGUAGES, PACKAGES, is_installed
from .parser import Parser

EXAMPLE = """
In a job: "tts_audio": {"text": "(s1) Hello. (s2) Good morning.", "human1_voice": "af_heart", "human2_voice": "am_adam"}
with --audio_mode tts. A voice may also be the path of a voice file of Kokoro (.pt).
"""
ABOUT = {
    KOKORO: f"Kokoro-82M sounds natural. Its files are taken from {FOLDER}, else it downloads them when it speaks.",
    ESPEAK: "eSpeak NG sounds plain. All of it is in its package (20 MB), so it speaks offline once that is installed.",
}


def main(argv: list[str]) -> int:
    """Print the table, and how it is used."""
    Parser("python -m wanvideo voices", description=__doc__).parse_args(argv)
    for synthesizer, about in ABOUT.items():
        package = PACKAGES[synthesizer]
        here = "" if is_installed(synthesizer) else f" It is not installed: pip install {package}."
        print(f"{about}{here}\n")
        for language in (known for known in LANGUAGES if known.synthesizer == synthesizer):
            print(textwrap.fill(" ".join(language.voices), 110, initial_indent=f"{language.name:<24}",
                                subsequent_indent=" " * 24))  # fmt: skip
        print()
    print(EXAMPLE, end="")
    return 0
