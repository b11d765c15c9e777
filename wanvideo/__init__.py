"""Wan2.1-I2V-14B with the MultiTalk / InfiniteTalk audio adapter: a picture and speech in, a talking video out.

The names below are the public library; each is imported when it is first asked for, so `import wanvideo` costs nothing.
"""

from importlib import import_module

__version__ = "0.1.0"

_PUBLIC = {
    "AudioEncoder": ".models.wav2vec2",
    "ClipVisionEncoder": ".models.clip_vision",
    "Conditioning": ".sampling.loop",
    "LoopSettings": ".sampling.loop",
    "LoraUse": ".lora.use",
    "TalkError": ".errors",
    "TalkRequest": ".request",
    "TalkingVideoPipeline": ".pipeline",
    "TextEncoder": ".models.text_encoder",
    "VideoGeometry": ".geometry",
    "WanTransformer": ".models.transformer",
    "WanVAE": ".models.vae",
    "Window": ".sampling.loop",
    "WindowPlan": ".geometry",
    "WindowState": ".sampling.state",
    "apply_loras": ".lora.apply",
    "load_audio_encoder": ".checkpoints.load",
    "load_clip_vision": ".checkpoints.load",
    "load_text_encoder": ".checkpoints.load",
    "load_tokenizer": ".text.tokenizer",
    "load_transformer": ".checkpoints.load",
    "load_vae": ".checkpoints.load",
    "run_windows": ".sampling.loop",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name], __name__), name)
