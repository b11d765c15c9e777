"""What of a request, its files and the machine decides the frames, as a run's manifest has it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..audio.load import SAMPLE_RATE
from ..checkpoints.checkpoint import Checkpoint
from ..errors import OutputError
from ..geometry import WindowPlan
from ..keep import CRF
from ..lora.use import LoraUse
from ..protocols import References
from ..request import EngineOptions, LoraFile, ModelFiles, TalkRequest, draw_seed
from ..runs.identity import MACHINE, SAMPLE, digest_of, digest_of_each, flat, identify, identify_media
from ..runs.manifest import DRAWN, Manifest, Plan
from ..sampling.conditioning import Conditioning
from ..sampling.setup import SamplingSetup
from .engine import Engine
from .files import ResolvedFiles
from .inputs import Inputs
from .recorded import speech_digest

PLACING = {"blocks_to_stream", "prefetch", "device"}  # options that change no number
UNNAMED = {"output", "reference", "speakers", "max_frames"}  # what a request names stands for what is in it
MODELS = ("transformer", "adapter", "vae", "text_encoder", "clip_vision", "wav2vec")


@dataclass(frozen=True)
class Job:
    """All that a run was asked for, to ask for it again."""

    request: TalkRequest
    files: ModelFiles
    options: EngineOptions

    def to_json(self) -> dict[str, Any]:
        """With the folder that relative paths are seen from."""
        return {name: dataclasses.asdict(part) for name, part in vars(self).items()} | {"folder": str(Path.cwd())}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str) -> Job:
        """Raises: OutputError when there is none, or it is not what `to_json` made."""
        try:
            files = {**data["files"], "loras": tuple(_lora(lora) for lora in data["files"]["loras"])}
            return cls(
                TalkRequest.from_json(data["request"]), ModelFiles(**files), EngineOptions(**data["options"])
            )  # fmt: skip
        except (KeyError, TypeError) as error:
            raise OutputError(f"The job in {where} is damaged ({error}). Give the request again.") from None


def manifest_of(job: Job, inputs: Inputs, files: ResolvedFiles, engine: Engine, output: Path | None) -> Manifest:
    """Of a request through files and options, whichever face it came from."""
    request = job.request
    asked = {name: value for name, value in request.to_json().items() if name not in UNNAMED}
    identity = flat(asked) | _that_count(job.options) | {"reference": identify_media(request.reference)}
    if request.keep is not None and request.keep.mask is not None:
        identity["keep.mask"] = identify_media(request.keep.mask)
    for number, speaker in enumerate(request.speakers, 1):
        mask = speaker.mask and identify_media(speaker.mask)
        identity[f"speaker {number}"] = (
            f"box {speaker.box}, mask {mask}, {'with' if speaker.audio else 'without'} sound"
        )
    identity |= identity_of_models({name: getattr(files, name) for name in MODELS}, engine.host.device)
    if request.seed is None:
        identity["seed"] = DRAWN
    identity["tokenizer"] = identify([files.tokenizer] if files.tokenizer else [])
    identity |= identity_of_loras(engine.loras)
    identity |= {"cuts": str(inputs.plan.cuts), "crf": str(request.file_crf)}
    sound = {
        f"sound of speaker {number}": identify_media(speaker.audio)
        for number, speaker in enumerate(request.speakers, 1)
        if speaker.audio is not None
    }
    sound |= {"max_frames": str(request.max_frames), "frames": str(inputs.num_frames)}
    plan = plan_of(inputs.geometry.width, inputs.geometry.height, request.fps, inputs.plan, request.file_crf)
    where, seed = None if output is None else str(output.absolute()), draw_seed() if request.seed is None else None
    can_grow = inputs.tracks is None or len(inputs.tracks[0]) / SAMPLE_RATE > (inputs.num_frames + 1) / request.fps
    return Manifest(identity, sound, plan, job.to_json(), where, seed=seed, can_grow=can_grow)


def manifest_of_conditioning(
    conditioning: Conditioning, setup: SamplingSetup, seed: int, engine: Engine,
    pictures: Mapping[str, str] | None = None, crf: int = CRF,
) -> Manifest:  # fmt: skip
    """Of what was encoded, where nobody knows any more from which files.

    Args: pictures: what decides the references, by name, where they are many; None: they themselves.
        crf: x264's quality of the file.
    """
    height, width = conditioning.references[0].shape[-2:]
    settings = setup.settings
    windows = WindowPlan(conditioning.total_frames, settings.window_frames, settings.motion_frames, conditioning.cuts)
    identity = flat(dataclasses.asdict(settings)) | _that_count(engine.options) | {
        "seed": str(seed), "fps": str(conditioning.fps), "size": f"{width}x{height}", "crf": str(crf),
        "prompts": digest_of(*conditioning.text_embeds), "prompt starts": str(conditioning.text_starts),
        "negative prompt": digest_of(conditioning.negative_text_embeds),
        "image embeds": _digest_of_pictures(conditioning.image_embeds), "samples": digest_of(conditioning.samples),
        "masks": digest_of(conditioning.speaker_masks), "cuts": str(conditioning.cuts),
        "vae precision": engine.vae_precision,
    }  # fmt: skip
    identity |= pictures or {"reference": _digest_of_pictures(conditioning.references)}
    identity |= identity_of_models(engine.checkpoints, engine.host.device) | identity_of_loras(engine.loras)
    overlapping = settings.window_frames, settings.motion_frames
    speech = speech_digest(conditioning, overlapping, "", range(len(windows)))
    sound = {"speech": speech, "frames": str(windows.total_frames)}
    return Manifest(identity, sound, plan_of(width, height, conditioning.fps, windows, crf))


def _digest_of_pictures(pictures: References | None) -> str:
    """Of pictures, or their embeddings, which are read one by one."""
    return digest_of() if pictures is None else digest_of_each(pictures[index] for index in range(len(pictures)))


def plan_of(width: int, height: int, fps: float, windows: WindowPlan, crf: int) -> Plan:
    """A run's numbers. windows: of a known length."""
    return Plan(width, height, float(fps), windows.total_frames or 0, len(windows), crf)


def identity_of_models(models: Mapping[str, Checkpoint | None], device: torch.device) -> dict[str, str]:
    """Of models by their names, and of what they compute with."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    found = dict(zip(MACHINE, (__version__, torch.__version__, name), strict=True))
    return found | {f"{name} model": _identity(model) for name, model in models.items() if model is not None}


def _identity(model: Checkpoint) -> str:
    """Of its files, or of the start of each tensor where it came from memory."""
    if model.paths:
        return identify(model.paths)
    return digest_of(*(model.source.tensor(key).flatten()[:SAMPLE] for key in sorted(model.source)))


def identity_of_loras(loras: Iterable[LoraUse]) -> dict[str, str]:
    """Of LoRAs and how they are used, in their order."""
    found = {}
    for number, lora in enumerate(loras, 1):
        file = "in memory" if lora.path is None else identify([Path(lora.path).expanduser()])
        blocks = "all" if lora.blocks is None else sorted(lora.blocks)
        found[f"LoRA {number}"] = f"{file}, strength {lora.strength}, blocks {blocks}, {lora.skip_layers} {lora.merge}"
    return found


def _that_count(options: EngineOptions) -> dict[str, str]:
    return flat({name: value for name, value in dataclasses.asdict(options).items() if name not in PLACING})


def _lora(data: Mapping[str, Any]) -> LoraFile:
    strength = data["strength"]
    return LoraFile(data["path"], tuple(strength) if isinstance(strength, list) else strength)
