"""The transformer against reference vectors and against diffusers' implementation."""

import json

import pytest
import torch
from safetensors import safe_open
from support import recipes

from wanvideo.errors import InputError
from wanvideo.models.transformer import TransformerConfig, WanTransformer

DATA = __import__("pathlib").Path(__file__).parent / "data"
CASES = ("no_audio", "one_speaker", "two_speakers")


def build(state):
    with torch.device("meta"):
        model = WanTransformer(TransformerConfig.from_shapes({key: tuple(value.shape) for key, value in state.items()}))
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def tiny():
    state = recipes.transformer_state_dict(5) | recipes.adapter_state_dict(5)
    assert recipes.fingerprint(state) == "faccf5e0075e7021"
    return build(state)


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
    half = build({k: v if tiny.keep_float32(k) else v.bfloat16() for k, v in tiny.state_dict().items()})
    speakers = CASES.index(name)
    inputs = recipes.transformer_inputs(4, 8, 8, speakers, 400, 3)
    assert torch.nn.functional.cosine_similarity(half(**inputs).flatten(), tiny(**inputs).flatten(), 0) >= 0.999
