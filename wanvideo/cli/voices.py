"""`voices`: the languages that text is spoken in, and the voices of each."""

from __future__ import annotations

import textwrap

from ..audio.voices import FOLDER, LANGUAGES, check_installed
from ..errors import UnsupportedError
from .parser import Parser

EXAMPLE = """
In a job: "tts_audio": {"text": "(s1) Hello. (s2) Good morning.", "human1_voice": "af_heart", "human2_voice": "am_adam"}
with --audio_mode tts. A voice may also be the path of a voice file (.pt)."""


def main(argv: list[str]) -> int:
    """Print the table, and how it is used."""
    Parser("python -m wanvideo voices", description=__doc__).parse_args(argv)
    for language in LANGUAGES:
        print(textwrap.fill(" ".join(language.voices), 110, initial_indent=f"{language.name:<21}",
                            subsequent_indent=" " * 21))  # fmt: skip
    print(EXAMPLE)
    try:
        check_installed()
        print(f"Model and voices are taken from {FOLDER} if they are there, else Kokoro downloads them when it speaks.")
    except UnsupportedError as error:
        print(error)
    return 0
