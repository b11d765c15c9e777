"""What other nodes hand over as AUDIO, IMAGE, MASK, LATENT and CONDITIONING: brought to one form, or answered."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.pack import load_pack, node

NODES = load_pack().NODE_CLASS_MAPPINGS
media, job, audio, video = (
    sys.modules[f"pack_under_test.{name}"] for name in ("nodes_media", "nodes_job", "nodes_audio", "nodes_video")
)


@pytest.fixture(autouse=True)
def temporary_files(tmp_path, monkeypatch):
    """Outside of ComfyUI they lie in the working folder."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("shape", [(1, 1, 160), (1, 2, 160), (2, 160), (160,), (3, 2, 160)])
def test_a_sound_of_any_shape_is_channels_of_samples(shape, caplog):
    wave = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    samples, rate = media.samples_of({"waveform": wave, "sample_rate": 16000.0}, "audio_1")
    assert samples.shape == (shape[-2] if len(shape) > 1 else 1, 160) and rate == 16000
    assert samples.dtype == np.float32 and np.array_equal(samples.ravel(), wave.ravel()[: samples.size].numpy())
    assert ("audio_1 holds a batch of 3: the first one is used." in caplog.text) == (len(shape) > 2 and shape[0] > 1)


@pytest.mark.parametrize(
    "given, said",
    [
        ({"waveform": torch.zeros(0, 1, 160), "sample_rate": 16000}, "audio_1 is empty"),
        ({"waveform": torch.zeros(1, 1, 0), "sample_rate": 16000}, "audio_1 is empty"),
        ({"waveform": torch.zeros(1, 1, 1, 160), "sample_rate": 16000}, "Sound of shape"),
        ({"waveform": None, "sample_rate": 16000}, "audio_1 is no AUDIO but dict"),
        ({"waveform": torch.zeros(1, 1, 160), "sample_rate": None}, "audio_1 is no AUDIO but dict"),
        ({"waveform": torch.zeros(1, 1, 160)}, "audio_1 is no AUDIO but dict"),
        ([torch.zeros(1, 160), 16000], "audio_1 is no AUDIO but list"),
    ],
)
def test_what_is_no_sound_is_told(given, said):
    with pytest.raises(ValueError, match=said):
        media.samples_of(given, "audio_1")


@pytest.mark.parametrize("shape", [(4, 6), (1, 4, 6), (1, 1, 4, 6), (1, 4, 6, 1)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bool, torch.uint8])
def test_a_mask_of_any_shape_is_a_batch_of_rows(shape, dtype):
    mask = (torch.arange(24) % 2).reshape(shape).to(dtype)
    found = media.masks_of(mask, "mask_1")
    assert found.shape == (1, 4, 6) and found.dtype == torch.float32
    assert torch.equal(found.ravel(), (torch.arange(24) % 2).float())
    assert torch.equal(audio.regions(None, {"mask_1": mask}), found) and torch.equal(audio.regions(mask, {}), found)
    options = node("WanVideoSourceOptions").process(keep_mask=mask)[0]
    assert torch.equal(options.keep_mask, found)


@pytest.mark.parametrize("mask", [torch.zeros(0, 4, 6), torch.zeros(2, 3, 4, 6), torch.zeros(6), None, "mask", [[1]]])
def test_what_is_no_mask_is_told(mask):
    with pytest.raises(ValueError, match="keep_mask is no MASK but"):
        media.masks_of(mask, "keep_mask")


@pytest.mark.parametrize("image", [torch.zeros(48, 64, 3), torch.zeros(0, 48, 64, 3), torch.zeros(1, 48, 64, 1), 5])
def test_what_is_no_picture_is_told_before_anything_is_loaded(image):
    for call in (
        lambda: node("WanVideoSpeakers").process(image),
        lambda: node("WanVideoTalkingPreset").process("01_ultra_fast", image),
        lambda: node("WanVideoEncode").encode(None, image),
        lambda: node("WanVideoTalk").talk(None, image=image),
    ):
        with pytest.raises(ValueError, match="Pictures of shape .* are not usable"):
            call()


def test_latents_of_another_model_are_told(caplog):
    assert media.latents_of({"samples": torch.zeros(2, 16, 3, 6, 8)}).shape == (16, 3, 6, 8)
    assert "samples holds a batch of 2" in caplog.text
    for wrong in (torch.zeros(1, 4, 6, 8), torch.zeros(1, 48, 3, 6, 8), torch.zeros(0, 16, 3, 6, 8), None, 5):
        with pytest.raises(ValueError, match=r"samples are latents of shape \[.*Encode with WanVideoEncode"):
            node("WanVideoDecode").decode(None, {"samples": wrong})
    for wrong in (None, torch.zeros(1, 16, 3, 6, 8)):
        with pytest.raises(ValueError, match="samples is no LATENT but"):
            node("WanVideoDecode").decode(None, wrong)
    with pytest.raises(ValueError, match="samples are latents of shape"):
        media.latents_of({})
    with pytest.raises(ValueError, match="noise_mask, which is not supported"):
        media.check_no_mask({"samples": torch.zeros(1, 16, 3, 6, 8), "noise_mask": torch.ones(1, 6, 8)})


def test_a_video_whose_latents_another_node_has_changed_is_decoded_anew():
    frames, latents = torch.zeros(5, 4, 4, 3), torch.ones(1, 16, 2, 6, 8)
    video = job.TalkingVideo(SimpleNamespace(images=lambda: frames), latents)
    samples = job.TalkingLatents(talking_video=video, output_path="x.mp4", samples=latents)
    assert node("WanVideoDecode").decode(None, samples)[0] is frames
    assert node("WanVideoPassImagesFromSamples").decode(samples.copy()) == (frames, "x.mp4")
    changed = samples.copy()
    changed["samples"] = latents * 0.5
    assert not job.is_talking_video(changed)
    with pytest.raises(ValueError, match="vae is not connected"):
        node("WanVideoDecode").decode(None, changed)
    with pytest.raises(ValueError, match="latents without finished frames"):
        node("WanVideoPassImagesFromSamples").decode(changed)
    several = job.TalkingLatents(talking_video=job.TalkingVideo(video.recording, None), output_path="x.mp4")
    assert node("WanVideoDecode").decode(None, several.copy())[0] is frames
    with pytest.raises(ValueError, match="latents do not join to one video"):
        several.copy()["samples"]


def test_conditioning_is_the_prompts_of_windows():
    bridge, one, two = node("WanVideoTextEmbedBridge").process, torch.ones(1, 3, 8), torch.ones(1, 5, 8).half()
    found = bridge([[one, {}], (two, {})], [[one, {}]])[0]
    assert [item.shape[0] for item in found.positive] == [3, 5] and found.negative.shape == (3, 8)
    zeroed = bridge([[one, {}]], [[torch.zeros(1, 3, 8), {}]])[0]
    assert zeroed.negative.shape == (1, 8), "what ConditioningZeroOut gives"
    assert bridge([[one, {}]], [])[0].negative is None
    for wrong in ([], [[]], [[None, {}]], [[torch.ones(3, 8), {}]], [[torch.ones(1, 0, 8), {}]], None, 5):
        with pytest.raises(ValueError, match="positive holds no encoded text"):
            bridge(wrong)


class Switch:
    """A node of another pack."""


def test_what_a_switch_may_have_left_out_holds_nothing_up(monkeypatch):
    """ComfyUI runs a sampler once nothing is left of its answer: what is there already counts, None too."""
    registered = SimpleNamespace(NODE_CLASS_MAPPINGS={"Switch": Switch, **NODES})
    monkeypatch.setitem(sys.modules, "nodes", registered)
    links = {"multitalk_embeds": ["1", 0], "image_embeds": ["2", 0], "text_embeds": ["1", 0], "model": ["4", 0]}
    graph = {
        "1": {"class_type": "Switch"}, "2": {"class_type": "WanVideoEmptyEmbeds"}, "4": {"class_type": "Switch"},
        "9": {"class_type": "WanVideoSampler", "inputs": {**links, "steps": 4}},
    }  # fmt: skip
    identity = SimpleNamespace(has_audio=True)
    model = job.VideoModel(SimpleNamespace(checkpoint=SimpleNamespace(identity=identity)), None, None)
    given = {"model": model, "steps": 4, "multitalk_embeds": None, "image_embeds": None, "text_embeds": None}
    needs, dynamic = node("WanVideoSampler").check_lazy_status, SimpleNamespace(get_node=graph.get)
    assert needs(unique_id="9", graph=dynamic, **given) == ["multitalk_embeds", "image_embeds"]
    clip = job.PlainClip(job.VideoGeometry(64, 64, 13), None, None)
    assert needs(unique_id="9", graph=dynamic, **given | {"image_embeds": clip}) == ["multitalk_embeds", "text_embeds"]
    graph["1"]["class_type"] = "MultiTalkSilentEmbeds"
    assert needs(unique_id="9", graph=dynamic, **given) == ["multitalk_embeds"]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int64])
def test_whole_numbers_are_no_picture(dtype):
    """Levels of 0..255 would all be white."""
    with pytest.raises(ValueError, match=f"Pictures of {dtype} are not usable. Give levels from 0 to 1"):
        node("WanVideoSpeakers").process(torch.ones(1, 48, 64, 3).to(dtype), 64, 48)


@pytest.mark.parametrize("wrong", [torch.full((48, 64, 3), float("nan")), torch.ones(48, 64, 3, dtype=torch.uint8)])
def test_a_video_in_memory_that_has_no_levels_leaves_no_file(tmp_path, wrong):
    frames = [torch.rand(48, 64, 4), wrong]
    given = SimpleNamespace(get_components=lambda: SimpleNamespace(images=frames, frame_rate=25))
    with pytest.raises(ValueError, match="are not usable|no numbers"):
        video.video_file(given)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_masks_of_another_shape_than_the_picture_s_are_said(caplog):
    masks = torch.zeros(2, 60, 60)
    masks[0, :, :30], masks[1, :, 30:] = 1, 1
    node("WanVideoSpeakers").process(torch.rand(1, 48, 64, 3), 64, 48, masks=masks)
    assert "The masks are 60x60 and the picture is 64x48: their middle is taken" in caplog.text
    caplog.clear()
    node("WanVideoSpeakers").process(torch.rand(1, 48, 64, 3), 64, 48, masks=masks[:, :45])
    assert not caplog.text
