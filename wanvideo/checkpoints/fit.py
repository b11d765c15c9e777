"""Whether the tensors of a file are those of the model that is built for them, before and while they are read."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..errors import CheckpointError
from .dialects import Kind
from .reader import TensorSource, few

SMALL = 1 << 16  # numbers of a tensor whose values are checked: norms, biases, scales, modulation
_OTHER_PARTS = "another model of an all-in-one file"
# Tensors that no result depends on: (how their names begin, why). A file may hold them in vain, or lack them.
HARMLESS: dict[Kind, tuple[tuple[str, str], ...]] = {
    Kind.TRANSFORMER: (
        ("first_stage_model.", _OTHER_PARTS),
        ("cond_stage_model.", _OTHER_PARTS),
        ("text_encoders.", _OTHER_PARTS),
        ("clip_vision.", _OTHER_PARTS),
        ("vae.", _OTHER_PARTS),
    ),
    Kind.VAE: (),
    Kind.TINY_VAE: (("encoder.", "only the decoder is used"),),
    Kind.TEXT_ENCODER: (
        ("encoder.embed_tokens.", "the same tensor as shared.weight"),
        ("decoder.", "only the encoder is used"),
        ("lm_head.", "only the encoder is used"),
        ("logit_scale", "of CLIP, which ComfyUI's CLIPSave writes beside any text encoder"),
        ("spiece_model", "the tokenizer, which load_tokenizer reads"),
    ),
    Kind.CLIP_VISION: (
        ("textual.", "only the image half is used"),
        ("text_model.", "only the image half is used"),
        ("text_projection.", "only the image half is used"),
        ("visual_projection.", "projects to the space shared with text, which is not used"),
        ("log", "the temperature of contrastive training (log_scale, logit_scale)"),
        ("vision_model.post_layernorm.", "the last norm, which the layer that is read comes before"),
        ("vision_model.embeddings.position_ids", "0, 1, 2, ..."),
    ),
    Kind.AUDIO_ENCODER: (
        ("quantizer.", "only for pre-training"),
        ("project_hid.", "only for pre-training"),
        ("project_q.", "only for pre-training"),
        ("lm_head.", "only for speech recognition"),
        ("masked_spec_embed", "only for training"),
    ),
    Kind.SYNCNET: (("num_batches_tracked.", "steps of training, which files of newer torches count"),),
}


def check_tensors(source: TensorSource, wanted: Mapping[str, Tensor], kind: Kind) -> None:
    """Compare names, shapes and dtypes with those of the empty model; nothing is read.

    Args: source: canonical names. wanted: the model's tensors. kind: says which do no harm when they are too many or
        missing.
    Raises: CheckpointError naming what is missing, left over, of another shape or no floating-point numbers.
    """
    harmless = tuple(start for start, _ in HARMLESS[kind])
    missing = [
        f"{name} {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name not in source and not name.startswith(harmless)
    ]
    surplus = [name for name in source if name not in wanted and not name.startswith(harmless)]
    misshapen = [
        f"{name} is {list(source.shape(name))}, not {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in source and source.shape(name) != tuple(tensor.shape)
    ]
    no_floats = [
        f"{name} {list(source.shape(name))} is {str(source.dtype(name)).removeprefix('torch.')}"
        for name, tensor in wanted.items()
        if name in source and tensor.is_floating_point() and not source.dtype(name).is_floating_point
    ]
    faults = [
        f"{len(names)} {what} ({few(names)})"
        for names, what in (
            (missing, "missing"), (surplus, "too many"), (misshapen, "of another size"),
            (no_floats, "no floating-point numbers"),
        )
        if names
    ]  # fmt: skip
    if faults:
        raise CheckpointError(
            f"{source.name} does not fit: of the {len(wanted)} tensors of its {kind.value}, {'; '.join(faults)}.\n"
            "It is incomplete, or made for another model. Download it again, or use another version of it."
        )


def check_finite(file: str, name: str, tensor: Tensor) -> Tensor:
    """A tensor that was read, as it is. The values of large matrices are not looked at, which would cost time.

    Raises: CheckpointError when a small one has a value that is no finite number.
    """
    if tensor.numel() <= SMALL and tensor.is_floating_point() and not tensor.float().isfinite().all():
        raise CheckpointError(
            f"{file} has values in {name} that are not finite numbers. It is damaged, or was trained or converted "
            "wrongly; download it again, or use another version of it."
        )
    return tensor
