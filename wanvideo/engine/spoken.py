"""Speech made from text, as files: spoken once, then found there, so that a run goes on with the same sound.

In the folder of all speech, a folder for each text: s1.wav, s2.wav, ... of its persons, and sum.wav, all of it.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..audio.tts import InstalledVoices, speak, turns
from ..audio.voices import Voice
from ..durable import write_atomically
from ..errors import OutputError
from ..job import TextToSpeak, named_sounds, parse_speech, read_object
from ..untrusted import answered

WHOLE = "sum.wav"  # the last that is written


def spoken_files(speech: TextToSpeak, folder: Path, voice: Voice | None = None) -> tuple[str | None, ...]:
    """The sound file of each person, None for one who says nothing; spoken once, and found there the next time.

    Args: folder: of all speech; this one's is named by what is said and who says it.
    Raises: as `speak`; OutputError when the files cannot be written.
    """
    place = folder.expanduser() / digest_of(speech)
    said = {person for person, _ in turns(speech)}
    names = tuple(str(place / f"s{person + 1}.wav") if person in said else None for person in range(len(speech.voices)))
    if not (place / WHOLE).is_file():
        dialogue = speak(speech, voice or InstalledVoices())
        with answered(str(place), OutputError, "written"):
            place.mkdir(parents=True, exist_ok=True)
            for name, track in zip(names, dialogue.tracks, strict=True):
                if name is not None and track is not None:
                    write_atomically(Path(name), _wav(track, dialogue.rate))
            write_atomically(place / WHOLE, _wav(dialogue.whole, dialogue.rate))
    return names


def is_spoken(speech: TextToSpeak, folder: Path) -> bool:
    """Whether `spoken_files` has nothing left to do."""
    return (folder.expanduser() / digest_of(speech) / WHOLE).is_file()


def spoken_job(data: dict[str, Any] | str | Path, folder: Path, voice: Voice | None = None) -> dict[str, Any]:
    """A job whose "tts_audio" is spoken: the same one with the files in "cond_audio".

    Args: data: the job, or the path of its JSON file. folder, voice: as of `spoken_files`.
    """
    job = read_object(data, "a job")
    return named_sounds(job, spoken_files(parse_speech(job), folder, voice))


def digest_of(speech: TextToSpeak) -> str:
    """Of what is said and who says it."""
    return hashlib.blake2b(json.dumps([speech.text, *speech.voices]).encode(), digest_size=12).hexdigest()


def _wav(samples: NDArray[np.float32], rate: int) -> bytes:
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="PCM_16")
    return file.getvalue()
