"""Models with random weights made on the device: what benchmarks run on when no checkpoint is at hand."""

from __future__ import annotations

import torch
from torch import nn

from ..checkpoints.quantize import pack_linears
from ..models.audio_adapter import AudioConfig
from ..models.transformer import TransformerConfig, WanTransformer
from ..models.vae import VAEConfig, WanVAE


def full_config() -> TransformerConfig:
    """The published sizes of Wan2.1-I2V-14B with its audio adapter."""
    audio = AudioConfig(feature_dim=12 * 768, window=5, hidden_dim=512, num_tokens=32, token_dim=768)
    return TransformerConfig(
        dim=5120, ffn_dim=13824, num_layers=40, in_dim=36, out_dim=16,
        text_dim=4096, freq_dim=256, image_dim=1280, audio=audio,
    )  # fmt: skip


def fill_(module: nn.Module, generator: torch.Generator) -> None:
    """Weights in place, scaled so that activations keep their size: norms near 1, matrices ~ N(0, 0.49 / fan_in)."""
    for name, parameter in module.named_parameters():
        if parameter.dim() < 2:
            is_bias = name.endswith("bias")
            parameter.data.normal_(0.0 if is_bias else 1.0, 0.05 if is_bias else 0.1, generator=generator)
        else:
            fan_in = parameter[0].numel()
            parameter.data.normal_(0.0, 0.7 / fan_in**0.5, generator=generator)


def random_transformer(
    config: TransformerConfig,
    device: str | torch.device,
    dtype: torch.dtype,
    quantize: str | None = None,
    seed: int = 0,
    rest: str | torch.device | None = None,
) -> WanTransformer:
    """A transformer whose weights are made on a device, block by block.

    Args: quantize: fp8, int8 or fp4 for the blocks' matrices. rest: where it is put as it is made; None: it stays.
    """
    with torch.device("meta"):
        model = WanTransformer(config)
    generator = torch.Generator(device).manual_seed(seed)
    for part in model.children():
        for unit in part if isinstance(part, nn.ModuleList) else (part,):
            unit.to(dtype).to_empty(device=device)
            fill_(unit, generator)
            if unit is not part and quantize:
                pack_linears(unit, quantize)
            if rest is not None:
                unit.to(rest)
    for name, parameter in model.named_parameters():
        if model.keep_float32(name):
            parameter.data = parameter.data.float()
    return model.eval().requires_grad_(False)


def random_vae(config: VAEConfig, device: str | torch.device, dtype: torch.dtype, seed: int = 1) -> WanVAE:
    """A VAE with random weights; its norms are near 1, so that frames stay finite."""
    with torch.device("meta"):
        model = WanVAE(config)
    model = model.to(dtype).to_empty(device=device).requires_grad_(False)
    generator = torch.Generator(device).manual_seed(seed)
    fill_(model, generator)
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            parameter.normal_(1.0, 0.1, generator=generator)
    return model.eval()
