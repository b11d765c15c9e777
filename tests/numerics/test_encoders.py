"""Text, image and audio encoder against reference vectors and against transformers' own output."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support import recipes
from support.encoders import DATA, clip_state, tiny_audio_encoder, tiny_clip, tiny_text_encoder

from wanvideo.audio.features import count_frames
from wanvideo.errors import CheckpointError, InputError
from wanvideo.models.clip_vision import ClipVisionConfig, encode_tiled, preprocess
from wanvideo.models.text_encoder import TextEncoderConfig, clean, encode_prompts
from wanvideo.models.wav2vec2 import AudioEncoderConfig


def cases(name):
    with safe_open(DATA / f"{name}.safetensors", "pt") as file:
        return json.loads(file.metadata()["cases"])


@pytest.mark.parametrize("name", ["text_0", "text_1"])
def test_text_encoder(name):
    about, vectors = cases("text_encoder"), load_file(DATA / "text_encoder.safetensors")
    assert recipes.fingerprint(recipes.t5_state_dict(about["weights_seed"])) == about["weights_fingerprint"]
    ids, mask, expected = (vectors[f"{name}/{part}"] for part in ("ids", "mask", "output"))
    outputs = tiny_text_encoder(about["weights_seed"]).encode(ids, mask)
    for row, output in enumerate(outputs):
        length = int(mask[row].sum())
        assert output.shape == (length, 32)
        assert (output - expected[row, :length]).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["image_0", "image_1"])
def test_clip_vision(name):
    about, vectors = cases("clip_vision"), load_file(DATA / "clip_vision.safetensors")
    assert recipes.fingerprint(recipes.clip_state_dict(about["weights_seed"])) == about["weights_fingerprint"]
    pixels, image, expected = (vectors[f"{name}/{part}"] for part in ("pixels", "image", "output"))
    assert (preprocess(pixels, 70) - image).abs().max() <= 1e-5
    assert (tiny_clip(about["weights_seed"]).encode(pixels) - expected).abs().max() <= 1e-5


def in_pieces(images, tiles, whole):
    """encode_tiled, of an encoder whose 3 x 3 patches are the means of a picture's ninths; also what it was given."""
    given = []

    def encode(pictures):
        given.append(tuple(pictures.shape))
        patches = torch.nn.functional.adaptive_avg_pool2d(pictures.movedim(-1, 1), 3).flatten(2).mT
        return torch.cat((patches.mean(1, keepdim=True), patches), 1)

    return encode_tiled(encode, images, tiles, whole), given


@pytest.mark.parametrize(("height", "width"), [(36, 24), (37, 29), (41, 24)])
@pytest.mark.parametrize("tiles", [2, 4])
def test_pieces_of_a_picture_of_any_size(height, width, tiles):
    images = torch.rand(2, height, width, 3)
    tokens, given = in_pieces(images, tiles, 0.0)
    assert given == [(2, height, width, 3), (2 * tiles * tiles, height // tiles, width // tiles, 3)]
    covered = images[:, : height // tiles * tiles, : width // tiles * tiles]
    assert tokens.shape == (2, 10, 3)
    if covered.shape[1] % (3 * tiles) == covered.shape[2] % (3 * tiles) == 0:
        torch.testing.assert_close(tokens, in_pieces(covered, 1, 1.0)[0])
    torch.testing.assert_close(in_pieces(images, tiles, 0.25)[0], 0.75 * tokens + 0.25 * in_pieces(images, 1, 1.0)[0])


def test_a_picture_smaller_than_its_pieces_is_refused():
    with pytest.raises(InputError, match="3x40 cannot be cut into 4 pieces"):
        in_pieces(torch.rand(1, 40, 3, 3), 4, 0.5)


@pytest.mark.parametrize("name", ["speech_2.37s", "speech_1.00s", "quiet_1.00s", "silence_0.80s"])
def test_audio_encoder(name):
    about, vectors = cases("wav2vec"), load_file(DATA / "wav2vec.safetensors")
    assert recipes.fingerprint(recipes.wav2vec_state_dict(about["weights_seed"])) == about["weights_fingerprint"]
    encoder, wave, case = tiny_audio_encoder(), vectors[f"{name}/wave"].float(), about["cases"][name]
    assert count_frames(len(wave), 25) == case["frames"]
    if f"{name}/conv" in vectors:
        steps, interpolated = vectors[f"{name}/conv"], vectors[f"{name}/conv_interpolated"]
        assert (encoder.extract(wave, len(steps)).frames(0, len(steps)) - steps).abs().max() <= 1e-5
        assert (encoder.extract(wave, case["frames"]).frames(0, case["frames"]) - interpolated).abs().max() <= 1e-5
    features = encoder.features(wave, case["frames"])
    assert (features - vectors[f"{name}/features_raw"]).abs().max() <= 1e-5


def test_audio_encoder_is_transformers_where_nothing_is_interpolated():
    """With as many frames as steps the interpolation is the identity, and the layers' outputs are hidden states."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    oracle = Wav2Vec2Model(Wav2Vec2Config(**recipes.WAV2VEC)).eval()
    encoder = tiny_audio_encoder()
    oracle.load_state_dict(encoder.state_dict())
    wave = recipes.waveform(1.3, 4)
    with torch.no_grad():
        steps = oracle.feature_extractor(wave[None]).shape[-1]
        expected = oracle(wave[None], output_hidden_states=True).hidden_states[1:]
    assert (encoder.features(wave, steps) - torch.cat(expected).transpose(0, 1)).abs().max() <= 1e-5


@pytest.mark.parametrize(("seconds", "fps"), [(31.7, 25), (21.0, 60), (0.03, 25)])
def test_convolutions_in_pieces_are_those_of_the_whole(seconds, fps):
    encoder, wave = tiny_audio_encoder(), recipes.waveform(seconds, 5)
    wave = wave * torch.linspace(0.1, 1, len(wave))
    frames = count_frames(len(wave), fps)
    whole = encoder.feature_extractor(wave[None])
    expected = torch.nn.functional.interpolate(whole, frames, mode="linear", align_corners=True)[0].T
    clip = encoder.extract(wave, frames)
    extracted = clip.frames(0, frames)
    assert (extracted - expected).abs().max() <= 1e-6 * expected.abs().max()
    parts = [encoder.extract(wave, frames).frames(0, frames // 3)] if frames > 2 else []
    parts += [clip.frames(frames // 3, frames // 2)] if frames > 2 else []
    parts += [clip.frames(frames // 2, frames)]
    assert torch.equal(torch.cat(parts), extracted)


def test_half_precision_encodes_the_same():
    encoder, wave = tiny_audio_encoder(), recipes.waveform(2.0, 6)
    exact = encoder.features(wave, 50)
    for dtype in (torch.float16, torch.bfloat16):
        halved = tiny_audio_encoder().to(dtype).features(wave, 50)
        assert halved.dtype == dtype
        assert torch.nn.functional.cosine_similarity(halved.float().flatten(1), exact.flatten(1)).min() > 0.99


def test_the_positional_convolution_is_in_float32_on_cpus(monkeypatch):
    """oneDNN computes it wrongly in bf16 on CPUs with AMX."""
    dtypes, conv1d = [], torch.nn.functional.conv1d
    monkeypatch.setattr(
        torch.nn.functional, "conv1d", lambda x, *args, **how: dtypes.append(x.dtype) or conv1d(x, *args, **how)
    )
    frames = torch.randn(50, 16).bfloat16()
    assert tiny_audio_encoder().bfloat16().encode(frames).dtype == torch.bfloat16
    assert dtypes == [torch.float32]


def test_prompts_are_cleaned_and_cut(caplog):
    assert clean("  a &amp;amp; b\n\tc ") == "a & b c"
    assert clean("It\u2019s \u201cfine\u201d, \u2018he\u201b says") == "It's \"fine\", 'he' says"
    assert clean("&ldquo;yes&rdquo;") == '"yes"'
    assert clean("\uff21\uff0c\u3000\u4e2d\uff01 \ufb01ne e\u0301 \u2026") == "A, \u4e2d! fine \u00e9 \u2026"

    class Words:
        def __call__(self, text, add_special_tokens):
            return {"input_ids": [2 + len(word) for word in text.split()] + [1]}

    encoder = tiny_text_encoder(61)
    short, long = encode_prompts(encoder, Words(), ["one two", "word " * 600])
    assert short.shape == (3, 32) and long.shape == (512, 32) and "is cut to 512" in caplog.text


def test_a_tokenizer_of_another_encoder_is_refused():
    tokens = torch.tensor([[5, 128, 1]])
    with pytest.raises(CheckpointError, match="gives token 128, and the encoder has 128"):
        tiny_text_encoder(61).encode(tokens, torch.ones_like(tokens))


def test_strangers_are_named():
    state = {key: tuple(value.shape) for key, value in clip_state(62).items()}
    siglip = {key: shape for key, shape in state.items() if not key.endswith("class_embedding")}
    with pytest.raises(CheckpointError, match="SigLIP"):
        ClipVisionConfig.from_shapes(siglip)
    large = state | {"vision_model.embeddings.patch_embedding.weight": (1024, 3, 14, 14)}
    with pytest.raises(CheckpointError, match="1024 wide"):
        ClipVisionConfig.from_shapes(large)
    with pytest.raises(CheckpointError, match="XLSR"):
        AudioEncoderConfig.from_shapes({"feature_extractor.conv_layers.1.layer_norm.weight": (512,)})
    for config, message in (
        (ClipVisionConfig, "CLIP"), (TextEncoderConfig, "UMT5"), (AudioEncoderConfig, "chinese-wav2vec2-base"),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match=message):
            config.from_shapes({})


def test_published_sizes():
    h14 = ClipVisionConfig.from_shapes(
        {"vision_model.embeddings.patch_embedding.weight": (1280, 3, 14, 14),
         "vision_model.embeddings.class_embedding": (1280,),
         "vision_model.embeddings.position_embedding.weight": (257, 1280),
         "vision_model.encoder.layers.31.mlp.fc1.weight": (5120, 1280),
         "vision_model.encoder.layers.0.mlp.fc1.weight": (5120, 1280)}
    )  # fmt: skip
    assert (h14.num_heads, h14.num_layers, h14.image_size) == (16, 32, 224)
