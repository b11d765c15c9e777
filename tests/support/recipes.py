"""Deterministic tiny weights and inputs, so that reference vectors need no stored weights.

Every tensor is drawn from its own generator, seeded by its name, and rounded through float16. The vectors in
tests/numerics/data were made from the same draws; `fingerprint` proves it before anything is compared.
"""

import hashlib
import math
import zlib

import torch

TINY = dict(dim=256, ffn_dim=384, num_layers=2, text_dim=48, in_dim=36, out_dim=16, freq_dim=256, image_dim=1280)
TINY_AUDIO = dict(window=5, vae_scale=4, layers=4, channels=24, hidden=40, output_dim=56, tokens=6)
VAE_DIM = 8

WAV2VEC = dict(
    hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64, conv_dim=[16] * 7,
    conv_kernel=[10, 3, 3, 3, 3, 2, 2], conv_stride=[5, 2, 2, 2, 2, 2, 2], num_conv_pos_embeddings=128,
    num_conv_pos_embedding_groups=16, feat_extract_norm="group", conv_bias=False, do_stable_layer_norm=False,
    hidden_act="gelu", feat_extract_activation="gelu", layer_norm_eps=1e-5,
)  # fmt: skip
T5 = dict(vocab_size=128, dim=32, dim_attn=32, dim_ffn=80, num_heads=4, num_layers=2, num_buckets=32)
CLIP = dict(image_size=70, patch_size=14, dim=48, mlp_ratio=4, num_heads=4, num_layers=3, out_dim=24)


def tensor(name, shape, seed, scale=1.0, shift=0.0):
    """Standard normal * scale + shift, exactly representable in float16."""
    generator = torch.Generator().manual_seed((zlib.crc32(name.encode()) ^ (seed * 0x9E3779B1)) & 0x7FFFFFFF)
    return (torch.randn(shape, generator=generator) * scale + shift).half().float()


def fingerprint(tensors):
    digest = hashlib.sha256()
    for key in sorted(key for key, value in tensors.items() if value is not None):
        digest.update(key.encode() + tensors[key].contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def weight(name, shape, seed):
    """Matrices ~ N(0, 0.49 / fan_in), biases ~ N(0, 0.05^2), norms ~ N(1, 0.1^2)."""
    if name.endswith("modulation") or len(shape) >= 2:
        return tensor(name, shape, seed, 0.7 / math.prod(shape[1:]) ** 0.5)
    return tensor(name, shape, seed, 0.05) if name.endswith("bias") else tensor(name, shape, seed, 0.1, 1.0)


def _linear(name, rows, columns):
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _affine(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def transformer_shapes(dim, ffn_dim, num_layers, text_dim, in_dim, out_dim, freq_dim, image_dim):
    """Key -> shape of a Wan2.1 I2V transformer in the official layout."""
    shapes = {"patch_embedding.weight": (dim, in_dim, 1, 2, 2), "patch_embedding.bias": (dim,)}
    for name, width in (("text_embedding", text_dim), ("time_embedding", freq_dim)):
        shapes |= _linear(f"{name}.0", dim, width) | _linear(f"{name}.2", dim, dim)
    shapes |= _linear("time_projection.1", 6 * dim, dim) | _linear("head.head", 4 * out_dim, dim)
    shapes |= _affine("img_emb.proj.0", image_dim) | _linear("img_emb.proj.1", image_dim, image_dim)
    shapes |= _linear("img_emb.proj.3", dim, image_dim) | _affine("img_emb.proj.4", dim)
    shapes["head.modulation"] = (1, 2, dim)
    for n in range(num_layers):
        block = f"blocks.{n}."
        shapes |= {f"{block}modulation": (1, 6, dim), **_affine(f"{block}norm3", dim)}
        shapes |= _linear(f"{block}ffn.0", ffn_dim, dim) | _linear(f"{block}ffn.2", dim, ffn_dim)
        for part, matrices, norms in (("self_attn", "qkvo", "qk"), ("cross_attn", "q k v o k_img v_img", "q k k_img")):
            for m in matrices.split() if " " in matrices else matrices:
                shapes |= _linear(f"{block}{part}.{m}", dim, dim)
            for m in norms.split() if " " in norms else norms:
                shapes[f"{block}{part}.norm_{m}.weight"] = (dim,)
    return shapes


def adapter_shapes(dim, num_layers, window, vae_scale, layers, channels, hidden, output_dim, tokens):
    """Key -> shape of a MultiTalk / InfiniteTalk audio adapter in the official layout."""
    frame = layers * channels
    shapes = _affine("audio_proj.norm", output_dim)
    shapes |= _linear("audio_proj.proj1", hidden, window * frame)
    shapes |= _linear("audio_proj.proj1_vf", hidden, (window + vae_scale - 1) * frame)
    shapes |= _linear("audio_proj.proj2", hidden, hidden) | _linear("audio_proj.proj3", tokens * output_dim, hidden)
    for n in range(num_layers):
        attention = f"blocks.{n}.audio_cross_attn"
        shapes |= _affine(f"blocks.{n}.norm_x", dim) | _linear(f"{attention}.q_linear", dim, dim)
        shapes |= _linear(f"{attention}.kv_linear", 2 * dim, output_dim) | _linear(f"{attention}.proj", dim, dim)
    return shapes


def transformer_state_dict(seed, **changes):
    return {key: weight(key, shape, seed) for key, shape in transformer_shapes(**{**TINY, **changes}).items()}


def adapter_state_dict(seed, **changes):
    sizes = {"dim": TINY["dim"], "num_layers": TINY["num_layers"], **TINY_AUDIO, **changes}
    return {key: weight(key, shape, seed) for key, shape in adapter_shapes(**sizes).items()}


def speaker_masks(height, width, speakers):
    """[speakers + 1, 8 height, 8 width]: side by side, the background last; None for fewer than two."""
    if speakers < 2:
        return None
    masks, strip = torch.zeros(speakers + 1, 8 * height, 8 * width), 8 * width // speakers
    for k in range(speakers):
        masks[k, height : 7 * height, k * strip + 4 : (k + 1) * strip - 4] = 1
    masks[speakers] = (masks[:speakers].sum(0) == 0).float()
    return masks


def transformer_inputs(frames, height, width, speakers, t, seed, text_dim=TINY["text_dim"]):
    """Inputs of one call, by the transformer's argument names; frames, height and width are latent sizes."""

    def draw(name, *shape):
        return tensor(f"in.{name}", shape, seed)

    audio = None
    if speakers:
        feature = TINY_AUDIO["window"], TINY_AUDIO["layers"], TINY_AUDIO["channels"]
        audio = draw("audio", speakers, 4 * (frames - 1) + 1, *feature)
    return dict(
        latents=draw("latents", 16, frames, height, width), condition=draw("condition", 20, frames, height, width),
        image_embeds=draw("image_embeds", 1, 257, 1280), text_embeds=draw("text_embeds", 37, text_dim),
        timestep=torch.tensor([float(t)]), speaker_masks=speaker_masks(height, width, speakers), audio=audio,
    )  # fmt: skip


def _conv(name, out, into, *kernel):
    return {f"{name}.weight": (out, into, *kernel), f"{name}.bias": (out,)}


def _residual(name, into, out):
    shapes = {f"{name}.residual.0.gamma": (into, 1, 1, 1), f"{name}.residual.3.gamma": (out, 1, 1, 1)}
    shapes |= _conv(f"{name}.residual.2", out, into, 3, 3, 3) | _conv(f"{name}.residual.6", out, out, 3, 3, 3)
    return shapes if into == out else shapes | _conv(f"{name}.shortcut", out, into, 1, 1, 1)


def _middle(name, width):
    shapes = _residual(f"{name}.0", width, width) | _residual(f"{name}.2", width, width)
    shapes |= {f"{name}.1.norm.gamma": (width, 1, 1)} | _conv(f"{name}.1.to_qkv", 3 * width, width, 1, 1)
    return shapes | _conv(f"{name}.1.proj", width, width, 1, 1)


def vae_shapes(dim=VAE_DIM, latent=16):
    """Key -> shape of a Wan2.1 VAE in the official layout (194 keys); dim 96 gives the published file's shapes."""
    shapes = _conv("conv1", 2 * latent, 2 * latent, 1, 1, 1) | _conv("conv2", latent, latent, 1, 1, 1)
    shapes |= _conv("encoder.conv1", dim, 3, 3, 3, 3) | _conv("encoder.head.2", 2 * latent, 4 * dim, 3, 3, 3)
    shapes |= _middle("encoder.middle", 4 * dim) | {"encoder.head.0.gamma": (4 * dim, 1, 1, 1)}
    index, width = 0, dim
    for level, out in enumerate((dim, 2 * dim, 4 * dim, 4 * dim)):
        for _ in range(2):
            shapes |= _residual(f"encoder.downsamples.{index}", width, out)
            index, width = index + 1, out
        if level < 3:
            shapes |= _conv(f"encoder.downsamples.{index}.resample.1", width, width, 3, 3)
            if level > 0:
                shapes |= _conv(f"encoder.downsamples.{index}.time_conv", width, width, 3, 1, 1)
            index += 1
    shapes |= _conv("decoder.conv1", 4 * dim, latent, 3, 3, 3) | _middle("decoder.middle", 4 * dim)
    index, width = 0, 4 * dim
    for level, out in enumerate((4 * dim, 4 * dim, 2 * dim, dim)):
        for _ in range(3):
            shapes |= _residual(f"decoder.upsamples.{index}", width, out)
            index, width = index + 1, out
        if level < 3:
            shapes |= _conv(f"decoder.upsamples.{index}.resample.1", width // 2, width, 3, 3)
            if level < 2:
                shapes |= _conv(f"decoder.upsamples.{index}.time_conv", 2 * width, width, 3, 1, 1)
            index, width = index + 1, width // 2
    return shapes | {"decoder.head.0.gamma": (dim, 1, 1, 1)} | _conv("decoder.head.2", 3, dim, 3, 3, 3)


def vae_state_dict(seed, dim=VAE_DIM):
    """gamma ~ N(1, 0.1^2), bias ~ N(0, 0.05^2), convolutions ~ N(0, 1.96 / fan_in), its last layer a fifth."""
    weights = {}
    for key, shape in vae_shapes(dim).items():
        if key.endswith("gamma"):
            weights[key] = tensor(key, shape, seed, 0.1, 1.0)
        else:
            scale = 0.05 if key.endswith("bias") else 1.4 / math.prod(shape[1:]) ** 0.5
            weights[key] = tensor(key, shape, seed, scale)
            if key.startswith("decoder.head.2"):
                weights[key] = (weights[key] * 0.2).half().float()
    return weights


def tiny_vae_shapes(widths=(256, 128, 64, 64)):
    """Key -> shape of the decoder of a tiny video autoencoder (TAEHV); these widths are the published ones."""
    shapes = _conv("decoder.1", widths[0], 16, 3, 3)
    for level, times in enumerate((1, 2, 2)):
        start, width, out = 3 + 6 * level, widths[level], widths[level + 1]
        for block in range(start, start + 3):
            shapes |= _conv(f"decoder.{block}.conv.0", width, 2 * width, 3, 3)
            shapes |= _conv(f"decoder.{block}.conv.2", width, width, 3, 3)
            shapes |= _conv(f"decoder.{block}.conv.4", width, width, 3, 3)
        shapes[f"decoder.{start + 4}.conv.weight"] = (times * width, width, 1, 1)
        shapes[f"decoder.{start + 5}.weight"] = (out, width, 3, 3)
    return shapes | _conv("decoder.22", 3, widths[3], 3, 3)


def tiny_vae_state_dict(seed, widths=(256, 128, 64, 64)):
    """bias ~ N(0, 0.05^2), the last one around 0.5; weights ~ N(0, 1 / fan_in)."""
    weights = {}
    for key, shape in tiny_vae_shapes(widths).items():
        scale = 0.05 if key.endswith("bias") else 1 / math.prod(shape[1:]) ** 0.5
        weights[key] = tensor(key, shape, seed, scale, 0.5 if key == "decoder.22.bias" else 0.0)
    return weights


def waveform(seconds, seed, sample_rate=16000):
    """[seconds * sample_rate] float32 in about -0.5..0.5: four chirps under a 3 Hz envelope."""
    z = tensor("wave", (4, 4), seed).double()
    t = torch.arange(int(seconds * sample_rate), dtype=torch.float64) / sample_rate
    sound = torch.zeros_like(t)
    for j in range(4):
        frequency, sweep, phase = 120 + 400 * z[j, 0].abs(), 300 * z[j, 1], z[j, 2]
        level = 0.05 + 0.05 * z[j, 3].abs()
        sound += level * torch.sin(2 * math.pi * (frequency * t + 0.5 * sweep * t * t) + phase)
    return (sound * (0.6 - 0.4 * torch.cos(2 * math.pi * 3 * t))).half().float()


def wav2vec_state_dict(seed):
    """A tiny Wav2Vec2Model in the published naming (weight_g, weight_v, no prefix)."""
    c, h, f = WAV2VEC["conv_dim"][0], WAV2VEC["hidden_size"], WAV2VEC["intermediate_size"]
    groups = WAV2VEC["num_conv_pos_embedding_groups"]
    shapes = {"masked_spec_embed": (h,), **_affine("feature_projection.layer_norm", c)}
    shapes |= _linear("feature_projection.projection", h, c) | _affine("encoder.layer_norm", h)
    shapes |= _affine("feature_extractor.conv_layers.0.layer_norm", c)
    position = "encoder.pos_conv_embed.conv"
    shapes |= {f"{position}.bias": (h,), f"{position}.weight_g": (1, 1, 128)}
    shapes |= {f"{position}.weight_v": (h, h // groups, 128)}
    for i, kernel in enumerate(WAV2VEC["conv_kernel"]):
        shapes[f"feature_extractor.conv_layers.{i}.conv.weight"] = (c, c if i else 1, kernel)
    for i in range(WAV2VEC["num_hidden_layers"]):
        layer = f"encoder.layers.{i}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _linear(f"{layer}attention.{name}", h, h)
        shapes |= _linear(f"{layer}feed_forward.intermediate_dense", f, h)
        shapes |= _linear(f"{layer}feed_forward.output_dense", h, f)
        shapes |= _affine(f"{layer}layer_norm", h) | _affine(f"{layer}final_layer_norm", h)
    weights = {}
    for key, shape in shapes.items():
        if ".conv.weight" in key and "pos_conv" not in key:
            weights[key] = tensor(key, shape, seed, 1.7 / (shape[1] * shape[2]) ** 0.5)
        elif key.endswith("weight_g"):
            weights[key] = tensor(key, shape, seed, 0.1, 1.0)
        else:
            weights[key] = weight(key, shape, seed)
    return weights


def t5_state_dict(seed):
    """A tiny UMT5 encoder in the official Wan layout."""
    d, a, f = T5["dim"], T5["dim_attn"], T5["dim_ffn"]
    shapes = {"token_embedding.weight": (T5["vocab_size"], d), "norm.weight": (d,)}
    for i in range(T5["num_layers"]):
        block = f"blocks.{i}."
        shapes |= {f"{block}norm1.weight": (d,), f"{block}norm2.weight": (d,), f"{block}attn.o.weight": (d, a)}
        shapes |= {f"{block}attn.{name}.weight": (a, d) for name in "qkv"}
        shapes |= {
            f"{block}ffn.gate.0.weight": (f, d),
            f"{block}ffn.fc1.weight": (f, d),
            f"{block}ffn.fc2.weight": (d, f),
        }
        shapes[f"{block}pos_embedding.embedding.weight"] = (T5["num_buckets"], T5["num_heads"])
    return {k: tensor(k, s, seed) if "embedding" in k else weight(k, s, seed) for k, s in shapes.items()}


def t5_inputs(seed, lengths=(11, 5), width=16):
    """ids and mask [B, width] int64; 0 is padding, 1 the end token."""
    ids, mask = (torch.zeros(len(lengths), width, dtype=torch.long) for _ in range(2))
    for b, n in enumerate(lengths):
        ids[b, :n] = 2 + (tensor(f"ids.{b}", (n,), seed).abs() * 1000).long() % (T5["vocab_size"] - 2)
        ids[b, n - 1], mask[b, :n] = 1, 1
    return ids, mask


def clip_state_dict(seed):
    """The image half of a tiny open-clip-xlm-roberta checkpoint in the official layout."""
    d, p, m = CLIP["dim"], CLIP["patch_size"], CLIP["dim"] * CLIP["mlp_ratio"]
    tokens = (CLIP["image_size"] // p) ** 2 + 1
    shapes = {"cls_embedding": (1, 1, d), "pos_embedding": (1, tokens, d), "patch_embedding.weight": (d, 3, p, p)}
    shapes |= {"head": (d, CLIP["out_dim"]), **_affine("pre_norm", d), **_affine("post_norm", d)}
    for i in range(CLIP["num_layers"]):
        block = f"transformer.{i}."
        shapes |= _linear(f"{block}attn.to_qkv", 3 * d, d) | _linear(f"{block}attn.proj", d, d)
        shapes |= _linear(f"{block}mlp.0", m, d) | _linear(f"{block}mlp.2", d, m)
        shapes |= _affine(f"{block}norm1", d) | _affine(f"{block}norm2", d)
    named = {f"visual.{key}": shape for key, shape in shapes.items()}
    return {
        k: tensor(k, s, seed, 0.5) if "_embedding" in k and "patch" not in k else weight(k, s, seed)
        for k, s in named.items()
    }


def image(name, height, width, seed, tint=(0.0, 0.0, 0.0)):
    """[height, width, 3] float32 in 0..1: a few smooth waves a channel and a little grain, in steps of 1/255."""
    z = tensor("image." + name, (3, 4, 4), seed).double()
    y = (torch.arange(height, dtype=torch.float64) / height)[:, None]
    x = (torch.arange(width, dtype=torch.float64) / width)[None, :]
    channels = []
    for c in range(3):
        waves = (z[c, j, 3] * torch.sin(2 * math.pi * (z[c, j, 0] * x + z[c, j, 1] * y) + z[c, j, 2]) for j in range(4))
        channels.append(0.5 + tint[c] + sum(0.12 * wave for wave in waves))
    picture = torch.stack(channels, -1) + 0.03 * tensor("grain." + name, (height, width, 3), seed).double()
    return (picture.clamp(0, 1) * 255).round().float() / 255
