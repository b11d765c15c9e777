"""Tiny real models with weights drawn by name."""

import torch
from support import recipes

from wanvideo.models.transformer import TransformerConfig, WanTransformer
from wanvideo.models.vae import VAEConfig, WanVAE


def tiny_transformer(num_layers=2, adapter=True, dtype=torch.float32, dim=recipes.TINY["dim"]):
    state = recipes.transformer_state_dict(5, num_layers=num_layers, dim=dim)
    if adapter:
        state |= recipes.adapter_state_dict(5, num_layers=num_layers, dim=dim)
    with torch.device("meta"):
        model = WanTransformer(TransformerConfig.from_shapes({key: tuple(value.shape) for key, value in state.items()}))
    kept = {key: value if model.keep_float32(key) else value.to(dtype) for key, value in state.items()}
    model.load_state_dict(kept, assign=True)
    return model.eval().requires_grad_(False)


def tiny_vae(seed=5, dim=recipes.VAE_DIM, dtype=torch.float32):
    state = recipes.vae_state_dict(seed, dim)
    with torch.device("meta"):
        model = WanVAE(VAEConfig.from_shapes({key: tuple(value.shape) for key, value in state.items()}))
    model.load_state_dict({key: value.to(dtype) for key, value in state.items()}, assign=True)
    return model.eval().requires_grad_(False)
