"""What holds of what a CPU computes with one thread or with several (docs/architecture.md says it)."""

import pytest
import torch
from support import recipes
from support.tiny import tiny_transformer, tiny_vae

from wanvideo.sampling.loop import seeded_noise


@pytest.fixture(autouse=True)
def threads_of_this_process():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def step_and_decode(num_threads, models, inputs):
    """A step of a window and its frames."""
    torch.set_num_threads(num_threads)
    velocity = models[0](**inputs)
    return velocity, models[1].decode(inputs["latents"] - velocity)


def test_as_many_threads_compute_the_same_and_more_the_same_but_for_rounding():
    """Sums are split by threads: their order changes the last of float32's 24 bits, which hundreds of sums carry on;
    2^-10 is an eighth of what one step of a frame's bytes stands for."""
    models, inputs = (tiny_transformer(num_layers=1), tiny_vae()), recipes.transformer_inputs(2, 4, 4, 1, 500, 9)
    one, two, again = (step_and_decode(count, models, inputs) for count in (1, 2, 2))
    for of_one, of_two, of_two_again in zip(one, two, again, strict=True):
        assert torch.equal(of_two, of_two_again)
        assert (of_one - of_two).abs().max() <= 2**-10


def test_noise_is_the_same_whatever_the_threads():
    drawn = []
    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)
        drawn.append(seeded_noise(5, 1)((16, 21, 60, 104)))
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])
