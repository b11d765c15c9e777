"""The Wan2.1 image-to-video transformer with the MultiTalk / InfiniteTalk audio adapter.

Legend: T latent frames, H W latent rows and columns, L = T * H/2 * W/2 video tokens, D width, N heads, S speakers.
A forward is one video: there is no batch axis. Module names are those of the official checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError, InputError
from ..geometry import PATCH
from ..ops.attention.backends import Backend, choose
from ..ops.attention.regions import FrameRegions
from ..ops.attention.rope import sinusoid, video_rope
from ..ops.compiled import CompileBackend, compile_modules, release_modules
from ..ops.linear.layer import Linear
from ..ops.norm import layer_norm
from ..ops.residual import Residual
from ..protocols import AllTokens, BlockProvider, ResidentBlocks, StepWeights, TokenSplit, WeightSource
from .audio_adapter import AudioConfig, AudioContext, AudioCrossAttention, AudioProjection, speaker_regions
from .transformer_layers import EPS, ContextKeys, CrossAttention, FeedForward, KeysValues, SelfAttention, TextContext

HEAD_WIDTH = 128
NEEDED = "Use a Wan2.1 transformer, e.g. wan2.1_i2v_480p_14B_fp16.safetensors."
TEXT_TOKENS = 512  # a prompt is padded to this many tokens, and the padding is attended to

AroundBlocks = Callable[[Tensor, Tensor, Callable[[Tensor], Tensor]], Tensor]
Transform = Callable[[Backend], Backend]


@dataclass(frozen=True)
class TransformerConfig:
    """All sizes of a transformer, read from its tensors."""

    dim: int
    ffn_dim: int
    num_layers: int
    in_dim: int
    out_dim: int
    text_dim: int
    freq_dim: int
    image_dim: int | None
    audio: AudioConfig | None

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> TransformerConfig:
        """Args: shapes of the tensors by their official names. Raises: CheckpointError when it cannot be this model."""
        try:
            dim, in_dim = shapes["patch_embedding.weight"][:2]
            config = cls(
                dim=dim,
                ffn_dim=shapes["blocks.0.ffn.0.weight"][0],
                num_layers=1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")),
                in_dim=in_dim,
                out_dim=shapes["head.head.weight"][0] // PATCH**2,
                text_dim=shapes["text_embedding.0.weight"][1],
                freq_dim=shapes["time_embedding.0.weight"][1],
                image_dim=shapes["img_emb.proj.1.weight"][1] if "img_emb.proj.1.weight" in shapes else None,
                audio=AudioConfig.from_shapes(shapes) if "audio_proj.proj1.weight" in shapes else None,
            )
        except KeyError as missing:
            raise CheckpointError(f"This is no Wan transformer: the tensor {missing} is missing. {NEEDED}") from None
        if config.dim % HEAD_WIDTH:
            raise CheckpointError(
                f"A Wan transformer has heads of {HEAD_WIDTH}; a width of {config.dim} is no multiple of it. {NEEDED}"
            )
        return config

    @property
    def num_heads(self) -> int:
        return self.dim // HEAD_WIDTH


class WanBlock(nn.Module):
    """Self-attention, attention to prompt and picture, attention to speech, feed-forward."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dim, heads = config.dim, config.num_heads
        self.modulation = nn.Parameter(torch.empty(1, 6, dim))
        self.self_attn = SelfAttention(dim, heads)
        self.norm3 = nn.LayerNorm(dim, eps=EPS)
        self.cross_attn = CrossAttention(dim, heads, config.image_dim is not None)
        self.ffn = FeedForward(dim, config.ffn_dim)
        if config.audio:
            self.norm_x = nn.LayerNorm(dim, eps=EPS)
            self.audio_cross_attn = AudioCrossAttention(dim, heads, config.audio.token_dim)

    def forward(
        self,
        stream: Residual,
        modulation: Tensor,
        rope: Tensor,
        text: TextContext,
        text_kv: ContextKeys,
        audio: AudioContext | None,
        audio_kv: KeysValues | None,
    ) -> None:
        """stream [L, D], to which the block adds its changes, modulation [6, D] float32; audio comes with its keys."""
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = self.modulation[0].float() + modulation
        attn, cross, ffn = self.self_attn, self.cross_attn, self.ffn

        normed = stream.norm(1 + scale, shift, EPS, attn.q.input_dtype)
        query, key, value = attn.project(normed, rope)
        regions = None if audio is None else audio.regions
        changed, shares = attn(query, key, value, regions)
        stream.add(changed, gate)
        labels = None if audio is None or shares is None else audio.labels(shares)
        del query, key, value, changed  # as large as what the feed-forward needs
        normed = stream.norm(*_affine(self.norm3), EPS, cross.q.input_dtype)
        stream.add(cross(normed, text, text_kv))
        if audio is not None and audio_kv is not None:
            audio_attn = self.audio_cross_attn
            absorbed = audio_attn.absorbs(stream.hidden, audio_kv)
            normed = stream.norm(*_affine(self.norm_x), EPS, audio_attn.input_dtype(absorbed))
            stream.add(audio_attn(normed, audio_kv, labels, absorbed), audio.scale)
        normed = stream.norm(1 + ffn_scale, ffn_shift, EPS, ffn[0].input_dtype)
        stream.add(ffn(normed), ffn_gate)


def _affine(norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    return norm.weight, norm.bias


class ImageEmbedding(nn.Module):
    def __init__(self, image_dim: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.LayerNorm(image_dim), Linear(image_dim, image_dim), nn.GELU(), Linear(image_dim, dim), nn.LayerNorm(dim)
        )

    def forward(self, image_embeds: Tensor) -> Tensor:
        embeds: Tensor = self.proj(image_embeds)
        return embeds


class Head(nn.Module):
    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.empty(1, 2, dim))
        self.head = Linear(dim, out_dim)

    def forward(self, hidden: Tensor, time: Tensor) -> Tensor:
        """hidden [L, D], time [D] float32 -> patches [L, out_dim] float32."""
        shift, scale = self.modulation[0].float() + time
        weight, bias = self.head.weight.float(), self.head.bias.float()
        parts = (layer_norm(part, 1 + scale, shift, EPS) for part in hidden.split(8192))
        return torch.cat([_with_lora(self.head, part, F.linear(part, weight, bias)) for part in parts])


class WanBlocks(nn.ModuleList):
    if TYPE_CHECKING:  # torch's list says of its members only that they are modules

        def __iter__(self) -> Iterator[WanBlock]: ...


class WanTransformer(nn.Module):
    """Velocity of the noise-to-video flow.

    Source: WanModel (i2v) of Wan2.1 with the audio layers of MultiTalk / InfiniteTalk. The residual stream, time
    embedding, modulation and the output head are float32 whatever the weights are: in bf16 the 160 sums of the stream
    alone would be most of the distance to float32.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config, dim = config, config.dim
        self.patch_embedding = nn.Conv3d(config.in_dim, dim, (1, PATCH, PATCH), (1, PATCH, PATCH))
        self.text_embedding = nn.Sequential(Linear(config.text_dim, dim), nn.GELU("tanh"), Linear(dim, dim))
        self.time_embedding = nn.Sequential(Linear(config.freq_dim, dim), nn.SiLU(), Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), Linear(dim, 6 * dim))
        self.img_emb = ImageEmbedding(config.image_dim, dim) if config.image_dim else None
        self.audio_proj = AudioProjection(config.audio) if config.audio else None
        self.blocks = WanBlocks(WanBlock(config) for _ in range(config.num_layers))
        self.head = Head(dim, config.out_dim * PATCH**2)
        self.block_provider: BlockProvider = ResidentBlocks()  # where blocks' weights are is decided outside
        self.token_split: TokenSplit = AllTokens()  # and so is which tokens are computed here
        self.source: WeightSource | None = None  # the files of its weights; None where they came from memory
        self.loras: StepWeights | None = None  # what was done to its weights, which may change from step to step
        self.compiled: tuple[str | None, CompileBackend] = (None, "inductor")  # mode and backend
        self.weights_version = 0  # counts changes of weights, after which contexts are made anew

    @staticmethod
    def keep_float32(name: str) -> bool:
        """Parameters that are small and sensitive stay in float32 whatever dtype the model is loaded in."""
        return "norm" in name or name.endswith("modulation") or name.startswith(("patch_embedding.", "time_embedding."))

    @property
    def device(self) -> torch.device:
        return self.patch_embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return _linear(self.text_embedding[0]).weight.dtype

    def find_attention(self, name: str, needs_lse: bool = False) -> Backend:
        """What `set_attention` would use."""
        return choose(name, self.device, self.dtype, HEAD_WIDTH, self.config.num_heads, needs_lse)

    def set_attention(self, name: str, transform: Transform | None = None, needs_lse: bool = False) -> str:
        """Use a backend of ops.backends for self-attention; returns the name of the one that is used.

        Attention to prompt and picture keeps its own kernel, and takes queries and keys in the backend's dtype.
        Args: transform: makes another backend of it, which may need its log-sum-exp.
        """
        backend = self.find_attention(name, needs_lse)
        backend = backend if transform is None else transform(backend)
        for block in self.blocks:
            if block.cross_attn.query_dtype != backend.query_dtype:
                block.cross_attn.query_dtype = backend.query_dtype
                self.weights_version += 1  # keys that are kept have the other dtype
            block.self_attn.backend = backend
        return backend.name

    def compile_blocks(self, mode: str | None, backend: CompileBackend = "inductor") -> None:
        """Compile the forward of every block in a mode of request.COMPILE_MODES; None: run them as written again."""
        if (mode, backend) == self.compiled:
            return
        release_modules(self.blocks)
        if mode is not None:
            compile_modules(self.blocks, mode, backend)
        self.compiled = mode, backend

    def set_step(self, step: int) -> None:
        """Say which step of a window comes next, counted from 0; LoRAs may have another strength in it."""
        if self.loras is not None and self.loras.set_step(self, step):
            self.weights_version += 1

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        text_embeds: Tensor,
        image_embeds: Tensor | None = None,
        condition: Tensor | None = None,
        audio: Tensor | None = None,
        speaker_masks: Tensor | None = None,
    ) -> Tensor:
        """One whole call; samplers use the parts below, so that what steps share is computed once.

        Args:
            latents: [16, T, H, W] at noise level timestep / 1000. timestep: [1], 0 to 1000.
            text_embeds: [n, text_dim], n at most 512. image_embeds: [1, 257, image_dim] or None.
            condition: [20, T, H, W], mask (4) and latents (16) of what is known, or None.
            audio: [S, 4(T - 1) + 1, 5, layers, channels] or None.
            speaker_masks: [S + 1, rows, columns], the background last; needed from two speakers on.
        Returns: velocity [16, T, H, W] float32.
        """
        text = self.text_context(text_embeds, image_embeds)
        context = None if audio is None else self.audio_context(audio, speaker_masks, *latents.shape[2:])
        return self.denoise(latents, timestep, condition, text, context)

    def denoise(
        self,
        latents: Tensor,
        timestep: Tensor,
        condition: Tensor | None,
        text: TextContext,
        audio: AudioContext | None,
        skip: frozenset[int] = frozenset(),
        around: AroundBlocks | None = None,
    ) -> Tensor:
        """One step of a window whose contexts are made. Same shapes as `forward`.

        Args:
            skip: blocks that are left out.
            around: called with hidden [L, D], modulation [6, D] and what runs the blocks, in place of running them.
                Running them writes over the hidden that they are given.
        """
        self._renew(text, audio)
        if self.loras is not None:
            self.loras.prepare(self.device)
        grid = latents.shape[1], latents.shape[2] // PATCH, latents.shape[3] // PATCH
        self.token_split.start(grid[0], grid[1] * grid[2])
        hidden, time, modulation = self.embed(latents, timestep, condition)
        rope = self.token_split.take(video_rope(*grid, HEAD_WIDTH, hidden.device))
        if around is None:
            hidden = self.run_blocks(hidden, modulation, rope, text, audio, skip)
        else:
            hidden = around(hidden, modulation, lambda x: self.run_blocks(x, modulation, rope, text, audio, skip))
        return self.unpatch(self.token_split.join(self.head(hidden, time)), grid)

    def text_context(self, text_embeds: Tensor, image_embeds: Tensor | None) -> TextContext:
        """What all steps share about text_embeds [n, text_dim] and image_embeds [1, 257, image_dim] or None."""
        if text_embeds.shape[0] > TEXT_TOKENS:
            raise InputError(
                f"A prompt has {text_embeds.shape[0]} tokens; the model takes at most {TEXT_TOKENS}. Shorten it."
            )
        if text_embeds.shape[1] != self.config.text_dim:
            raise InputError(
                f"The text embeddings are {text_embeds.shape[1]} wide, this model takes {self.config.text_dim}. "
                "Encode the prompt with the UMT5-XXL encoder."
            )
        # The model attends to 512 tokens, most of them padding and all of that alike: one stands for all.
        pad_count = TEXT_TOKENS - text_embeds.shape[0]
        padded = F.pad(text_embeds.to(self.device, self.dtype), (0, 0, 0, min(pad_count, 1)))
        picture = None
        if image_embeds is not None and self.img_emb is not None:
            if image_embeds.shape[-1] != self.config.image_dim:
                raise InputError(
                    f"The image embeddings are {image_embeds.shape[-1]} wide, this model takes "
                    f"{self.config.image_dim}. Encode the picture with CLIP ViT-H/14 (clip_vision_h.safetensors)."
                )
            picture = image_embeds[0].to(self.device, self.dtype)
        made = self._embed_context(padded, picture)
        return TextContext(made[0], max(pad_count, 1), made[1], (padded, picture), self.weights_version)

    def _embed_context(self, text: Tensor, picture: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self.text_embedding(text), None if picture is None or self.img_emb is None else self.img_emb(picture)

    def _renew(self, text: TextContext, audio: AudioContext | None) -> None:
        """Make anew what contexts hold if weights have changed since."""
        if text.version != self.weights_version:
            text.text, text.image = self._embed_context(*text.embeds)
            text.keys_values.clear()
            text.version = self.weights_version
        if audio is not None and audio.version != self.weights_version:
            audio.tokens = self._audio_tokens(audio.features)
            audio.keys_values.clear()
            audio.version = self.weights_version

    def _audio_tokens(self, features: Tensor) -> Tensor:
        """[S, F, 5, layers, channels] -> [T, S * A, C]."""
        if self.audio_proj is None:
            raise InputError("This transformer has no audio adapter. Load one (InfiniteTalk or MultiTalk) with it.")
        layers, channels = features.shape[-2:]
        if layers * channels != self.audio_proj.config.feature_dim:
            raise InputError(
                f"The audio features are {layers} layers of {channels}, this model takes "
                f"{self.audio_proj.config.feature_dim} numbers a frame. Encode the sound with chinese-wav2vec2-base."
            )
        tokens: Tensor = self.audio_proj(features.to(self.device))
        return tokens.transpose(0, 1).flatten(1, 2)

    def audio_context(
        self, audio: Tensor, speaker_masks: Tensor | None, height: int, width: int, scale: float = 1.0
    ) -> AudioContext:
        """What all steps of a window share about audio [S, F, 5, layers, channels]; height and width of the latents."""
        speakers, tokens, regions = audio.shape[0], self._audio_tokens(audio), None
        if speakers > 1:
            if speaker_masks is None:
                raise InputError(f"{speakers} speakers need masks that say who is where.")
            masks = speaker_masks.to(self.device)
            members = speaker_regions(masks, speakers, height // PATCH, width // PATCH)
            regions = FrameRegions(members, self.token_split.first_frame(len(tokens), members.shape[1]))
        return AudioContext(tokens, speakers, regions, scale, audio, self.weights_version)

    def embed(self, latents: Tensor, timestep: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Latents to tokens, and the step's time: hidden [L, D], time [D] and modulation [6, D], all float32."""
        video = latents if condition is None else torch.cat((latents, condition.to(latents)))
        if video.shape[0] != self.config.in_dim:
            raise InputError(
                f"The model takes {self.config.in_dim} channels, the latents and their condition have "
                f"{video.shape[0]}. Give an image-to-video model a condition picture, and a text-to-video model none."
            )
        weight = self.patch_embedding.weight
        patches = video.to(weight).unflatten(2, (-1, PATCH)).unflatten(4, (-1, PATCH))
        patches = self.token_split.take(patches.permute(1, 2, 4, 0, 3, 5).flatten(3).flatten(0, 2))
        hidden = F.linear(patches, weight.flatten(1), self.patch_embedding.bias).float()
        time = self.time_embedding(sinusoid(timestep, self.config.freq_dim).to(_linear(self.time_embedding[0]).weight))
        modulation = _linear_float32(_linear(self.time_projection[1]), F.silu(time.float()))
        return hidden, time[0].float(), modulation.view(6, self.config.dim)

    def run_blocks(
        self,
        hidden: Tensor,
        modulation: Tensor,
        rope: Tensor,
        text: TextContext,
        audio: AudioContext | None,
        skip: frozenset[int] = frozenset(),
    ) -> Tensor:
        """hidden [L, D], which is written over, through all blocks.

        Each block's keys and values are made when it first runs, then kept.
        """
        stream = Residual(hidden, self.dtype)
        for index, block in enumerate(self.block_provider(self.blocks)):
            if index in skip:
                continue
            if index not in text.keys_values:
                text.keys_values[index] = block.cross_attn.keys_values(text)
            if audio is not None and index not in audio.keys_values:
                audio.keys_values[index] = block.audio_cross_attn.keys_values(audio)
            audio_kv = audio.keys_values[index] if audio is not None else None
            block(stream, modulation, rope, text, text.keys_values[index], audio, audio_kv)
        return stream.sum()

    def unpatch(self, patches: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """[L, 4 * 16] -> [16, T, H, W]."""
        frames, rows, columns = grid
        video = patches.view(frames, rows, columns, PATCH, PATCH, self.config.out_dim)
        return video.permute(5, 0, 1, 3, 2, 4).reshape(self.config.out_dim, frames, rows * PATCH, columns * PATCH)


def _linear(layer: nn.Module) -> Linear:
    assert isinstance(layer, Linear), "every storage format of a weight is one"
    return layer


def _linear_float32(layer: Linear, x: Tensor) -> Tensor:
    """A linear layer in float32 whose weight is widened a slice at a time."""
    slices = zip(layer.weight.chunk(6), layer.bias.chunk(6), strict=True)
    return _with_lora(layer, x, torch.cat([F.linear(x, weight.float(), bias.float()) for weight, bias in slices], -1))


def _with_lora(layer: Linear, x: Tensor, out: Tensor) -> Tensor:
    return out if layer.lora is None else layer.lora(x, out)
