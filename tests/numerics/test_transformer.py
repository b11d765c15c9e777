"""The transformer against reference vectors and against diffusers' implementation."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from support import recipes
from support.tiny import tiny_transformer

from wanvideo.errors import InputError

DATA = Path(__file__).parent / "data"
CASES = ("no_audio", "one_speaker", "two_speakers")


@pytest.fixture(scope="module")
def tiny():
    model = tiny_transformer()
    assert recipes.fingerprint(model.state_dict()) == "faccf5e0075e7021"
    return model


@pytest.mark.parametrize("name", CASES)
def test_reference_vectors(tiny, name):
    with safe_open(DATA / "dit.safetensors", "pt") as file:
        case, expected = json.loads(file.metadata()[name]), file.get_tensor(name)
    inputs = recipes.transformer_inputs(*(case[key] for key in ("F", "H", "W", "speakers", "t", "seed")))
    assert recipes.fingerprint(inputs) == case["inputs_fingerprint"]
    velocity = tiny(**inputs)
    assert velocity.dtype == torch.float32 and velocity.shape == expected.shape
    assert (velocity - expected).abs().max() <= 2e-4


@pytest.mark.parametrize("name", CASES)
def test_bf16_stays_close(tiny, name):
    half = tiny_transformer(dtype=torch.bfloat16)
    speakers = CASES.index(name)
    inputs = recipes.transformer_inputs(4, 8, 8, speakers, 400, 3)
    assert torch.nn.functional.cosine_similarity(half(**inputs).flatten(), tiny(**inputs).flatten(), 0) >= 0.999


def test_depth_does_not_wear_out_bf16():
    """A residual stream in bf16 would lose as much again with every block."""
    weights, inputs = tiny_transformer(24), recipes.transformer_inputs(4, 8, 8, 1, 400, 3)
    for name, parameter in weights.named_parameters():  # so that only what is computed differs
        parameter.data = parameter.data.bfloat16().float()
    half = tiny_transformer(24, dtype=torch.bfloat16)
    for name, parameter in half.named_parameters():
        parameter.data = weights.get_parameter(name).data.to(parameter.dtype)
    exact, ours = weights(**inputs), half(**inputs)
    assert ((ours - exact).norm() / exact.norm()) <= 0.006


@pytest.mark.parametrize(
    ("change", "message"),
    [({"speaker_masks": None}, "need masks"), ({"text_embeds": torch.zeros(513, 48)}, "at most 512"),
     ({"text_embeds": torch.zeros(5, 4096)}, "UMT5"), ({"image_embeds": torch.zeros(1, 729, 1152)}, "ViT-H"),
     ({"condition": None}, "36 channels"), ({"speaker_masks": torch.zeros(3, 64, 64)}, "speaker 1"),
     ({"speaker_masks": torch.ones(2, 64, 64)}, "2 speaker masks")],
)  # fmt: skip
def test_inputs_that_do_not_fit_are_named(tiny, change, message):
    inputs = recipes.transformer_inputs(2, 8, 8, 2, 500, 1)
    with pytest.raises(InputError, match=message):
        tiny(**{**inputs, **change})


def test_a_transformer_without_adapter_refuses_audio():
    with pytest.raises(InputError, match="no audio adapter"):
        tiny_transformer(adapter=False)(**recipes.transformer_inputs(2, 4, 4, 1, 500, 1))


@pytest.mark.parametrize("speakers", [3, 4, 5, 6])
def test_more_speakers_take_neighboring_labels(tiny, speakers):
    inputs = recipes.transformer_inputs(2, 8, 24, speakers, 500, 1)
    velocity = tiny(**inputs)
    assert velocity.isfinite().all()
    swapped = {**inputs, "audio": inputs["audio"].flip(0)}
    assert (tiny(**swapped) - velocity).abs().max() > 1e-3


def test_padding_of_the_prompt_is_only_counted(tiny):
    """512 real tokens of padding give what the counted padding gives."""
    inputs = recipes.transformer_inputs(2, 4, 4, 0, 500, 1)
    padded = torch.nn.functional.pad(inputs["text_embeds"], (0, 0, 0, 512 - 37))
    assert (tiny(**inputs) - tiny(**{**inputs, "text_embeds": padded})).abs().max() <= 1e-5
