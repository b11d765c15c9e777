"""Speech without a synthesizer: a voice of plain tones, and a stand-in for the package `kokoro`."""

import importlib.machinery
import sys
import types
from types import SimpleNamespace

import numpy as np
import torch

RATE = 24000


class ToneVoice:
    """A tone for each voice's name, as long as the text; notes what it was asked."""

    def __init__(self):
        self.asked = []

    def speak(self, text, voice, language):
        self.asked.append((text, voice, language.code))
        time = np.arange(RATE // 20 * len(text)) / RATE
        pitch = 100 + sum(map(ord, voice)) % 200
        return (0.4 * np.sin(2 * np.pi * pitch * time)).astype(np.float32), RATE


def install_kokoro(monkeypatch):
    """Put a package `kokoro` in place with the signatures of release 0.9. Returns: what was asked of it."""
    asked = SimpleNamespace(models=[], pipelines=[], spoken=[])

    class KModel:
        def __init__(self, repo_id=None, config=None, model=None):
            asked.models.append((repo_id, config, model))

        def to(self, device):
            return self

        def eval(self):
            return self

    class KPipeline:
        def __init__(self, lang_code, repo_id=None, model=True):
            asked.pipelines.append(lang_code)

        def __call__(self, text, voice=None, speed=1):
            for piece in text:
                asked.spoken.append((piece, voice))
                length = torch.arange(RATE // 20 * len(piece))
                sound = 0.4 * torch.sin(length / RATE * 6.28 * 180) + 1e-3 * torch.randn(len(length))
                yield SimpleNamespace(audio=sound)

    module = types.ModuleType("kokoro")
    module.__spec__ = importlib.machinery.ModuleSpec("kokoro", None)
    module.KModel, module.KPipeline = KModel, KPipeline
    monkeypatch.setitem(sys.modules, "kokoro", module)
    return asked
