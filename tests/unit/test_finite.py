"""Windows that are no numbers end a run with what is likely to have made them so; what was finished is kept."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from support import jobs
from support.sampling import SETTINGS, conditioning
from support.tiny import tiny_transformer, tiny_vae
from support.toys import PngFolder

from wanvideo import TalkingVideoPipeline, run_windows
from wanvideo.checkpoints.quantize import pack_linears
from wanvideo.errors import UnsupportedError
from wanvideo.geometry import VideoGeometry
from wanvideo.lora.apply import apply_loras
from wanvideo.lora.use import LoraUse
from wanvideo.ops.attention import backends
from wanvideo.ops.linear.formats import FORMATS, format_of
from wanvideo.sampling import finite
from wanvideo.sampling.clip import empty_condition, sample_clip
from wanvideo.sampling.sampler import WindowInputs

NAN = float("nan")


def poison(model, name="blocks.1.self_attn.o.bias", value=NAN):
    with torch.no_grad():
        model.get_parameter(name)[3] = value


def message_of(transformer, vae=None, taken=0, **options):
    """What a run says after so many windows."""
    windows = run_windows(transformer, vae or tiny_vae(), conditioning(), SETTINGS, 7, **options)
    for index in range(taken):
        assert next(windows).index == index
    with pytest.raises(UnsupportedError) as raised:
        next(windows)
    assert str(raised.value).count("\n") <= 2, raised.value
    return str(raised.value)


@pytest.mark.parametrize("value", [NAN, float("inf"), -float("inf")])
def test_is_finite(value):
    x = torch.zeros(3, 4, 5)
    assert finite.is_finite(x)
    x[1, 2, 3] = value
    assert not finite.is_finite(x)


def test_a_weight_that_is_no_number():
    transformer = tiny_transformer()
    poison(transformer)
    said = message_of(transformer)
    assert "Window 1 of 3: " in said and "numbers of its latents are NaN" in said and "damaged transformer" in said
    assert "use" not in said.partition("\n")[2]  # nothing else is to blame


def test_everything_in_use_is_named():
    """float16, a LoRA, 8-bit attention and quantized weights; one by one they are blamed only where they are used."""
    transformer = tiny_transformer(dtype=torch.float16)
    rows, columns = transformer.blocks[0].ffn[0].weight.shape
    shapes = {"A": (2, columns), "B": (rows, 2)}
    lora = {f"blocks.0.ffn.0.lora_{which}.weight": torch.zeros(shape) for which, shape in shapes.items()}
    apply_loras(transformer, [LoraUse(lora, 1.5)])
    pack_linears(transformer.blocks, "fp8")
    for block in transformer.blocks:
        block.self_attn.backend = replace(backends.BACKENDS["sdpa"], name="fp8")
    suspects = list(finite._suspects(transformer))
    assert [suspect.split()[0] for suspect in suspects] == ["float16", "LoRA", "attention", "weights"], suspects
    assert "1.5" in suspects[1] and suspects[2:] == ["attention fp8 (use sdpa)", "weights in fp8 (use bf16 ones)"]
    with pytest.raises(UnsupportedError) as raised:
        finite.check_latents(torch.full((16, 3, 4, 6), NAN), "Window 2", transformer, {})
    assert all(suspect in str(raised.value) for suspect in suspects) and str(raised.value).count("\n") == 2
    assert not list(finite._suspects(tiny_transformer(dtype=torch.bfloat16)))


def test_what_a_window_began_with_is_named_before_its_models():
    with pytest.raises(UnsupportedError, match="Window 2 of 5: 32 of 64.*\n.*they were in the speech: look"):
        finite.check_latents(
            torch.tensor([NAN, 0.0]).repeat(32), WindowInputs(1, 5).name, tiny_transformer(),
            {"known frames": torch.zeros(3), "speech": torch.tensor([0.0, NAN]), "source": None},
        )  # fmt: skip
    assert WindowInputs(1, None).name == "Window 2"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_pixels_that_are_no_numbers(dtype):
    vae = tiny_vae()
    poison(vae, "conv2.bias")
    said = message_of(tiny_transformer(), vae)
    assert "Window 1 of 3: all numbers of its pixels are NaN" in said and "damaged VAE" in said
    with pytest.raises(UnsupportedError) as raised:
        finite.check_pixels(torch.full((3, 2, 4, 4), NAN), "Window 1", dtype)
    assert ("float16" in str(raised.value)) == (dtype == torch.float16)


def test_a_clip_that_is_no_number():
    transformer = tiny_transformer()
    poison(transformer)
    given, geometry = conditioning(), VideoGeometry(48, 32, 9)
    with pytest.raises(UnsupportedError, match="Window 1 of 1"):
        sample_clip(
            transformer, geometry, empty_condition(geometry), SETTINGS, lambda shape: torch.zeros(shape),
            text_embeds=given.text_embeds[0], image_embeds=given.image_embeds[:1],
        )  # fmt: skip


def test_windows_before_are_kept(tmp_path):
    """The sink is abandoned with all of the first window's frames."""
    pipeline, sink = TalkingVideoPipeline(jobs.official_files(), jobs.OPTIONS), PngFolder(tmp_path / "frames")
    frames = []

    def spoil(report):
        if report.window_index == 1 and report.step_index == 0:
            poison(pipeline.engine.transformer)

    with pytest.raises(UnsupportedError, match="(?s)Window 2 of .*Windows before this one are kept"):
        for window in pipeline.run(jobs.request(tmp_path, seed=3), on_step=spoil, sinks=[sink]):
            frames.append(window.frames)
    assert sink.end == ["abandoned"]
    kept = torch.from_numpy(np.stack([np.asarray(Image.open(path)) for path in sorted(sink.path.iterdir())]))
    assert len(frames) == 1 and torch.equal(kept, frames[0])


def test_a_run_goes_on_from_its_last_good_window():
    models, good = (tiny_transformer(), tiny_vae()), []

    def spoil(report):
        if report.window_index == 1:
            poison(models[0])

    with pytest.raises(UnsupportedError, match="Window 2 of 3"):
        for window in run_windows(*models, conditioning(), SETTINGS, 7, spoil):
            good.append(window)
    whole = list(run_windows(tiny_transformer(), tiny_vae(), conditioning(), SETTINGS, 7))
    again = list(run_windows(tiny_transformer(), tiny_vae(), conditioning(), SETTINGS, 7, state=good[-1].state))
    assert [window.index for window in good + again] == [0, 1, 2]
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(good + again, whole, strict=True))


@pytest.mark.parametrize("name", FORMATS)
def test_a_layer_knows_its_format(name):
    assert format_of(FORMATS[name].empty((32, 256))) == name
    assert format_of(tiny_transformer(num_layers=1).blocks[0].ffn[0]) is None
