"""What nodes tell before anything is loaded, and what other packs may do with what they hand on."""

import itertools
import random
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from fuzz.widgets import cases
from support import recipes
from support.pack import load_pack, node

from wanvideo.checkpoints.checkpoint import recognize
from wanvideo.checks import brief
from wanvideo.errors import TalkError
from wanvideo.request import LoopSettings
from wanvideo.sampling.guidance import Guidance, Pass
from wanvideo.sampling.setup import SamplingSetup

NODES = load_pack().NODE_CLASS_MAPPINGS
common, job, audio, refused = (
    sys.modules[f"pack_under_test.{name}"] for name in ("nodes_common", "nodes_job", "nodes_audio", "nodes_refused")
)
NAN = float("nan")
WRONG = [
    ("WanVideoSampler", {"scheduler": "unipc", "steps": 4, "start_step": 9}, "start_step 9"),
    ("WanVideoSampler", {"cfg": NAN}, "cfg nan is not usable"),
    ("WanVideoSampler", {"steps": "ten"}, "steps 'ten' is not usable"),
    ("WanVideoSampler", {"scheduler": 5}, "scheduler is int"),
    ("WanVideoSampler", {"text_embeds": False}, "text_embeds is not connected"),
    ("WanVideoSampler", {"riflex_freq_index": 3}, "riflex_freq_index is not supported"),
    ("WanVideoSamplerv2", {"cfg": NAN}, "cfg nan is not usable"),
    ("WanVideoDecode", {"enable_vae_tiling": True, "tile_x": 64, "tile_stride_x": 96}, "cannot cover a picture"),
    ("WanVideoScheduler", {"scheduler": "deis"}, "The nearest one is"),
    ("WanVideoScheduler", {"scheduler": "unipc", "enhance_hf": True}, "enhance_hf is not supported"),
    ("WanVideoImageToVideoMultiTalk", {"width": 100}, "width 100 is not usable"),
    ("WanVideoImageToVideoMultiTalk", {"frame_window_size": 13, "motion_frame": 13}, "motion_frame 13 must be smaller"),
    ("WanVideoImageToVideoMultiTalk", {"start_image": False}, "needs to see who speaks"),
    ("WanVideoImageToVideoMultiTalk", {"source_video": None}, "needs to see who speaks"),
    ("WanVideoImageToVideoEncode", {"noise_aug_strength": 0.5}, "noise_aug_strength is not supported"),
    ("WanVideoEmptyEmbeds", {"height": 8096 + 8}, "height 8104 is not usable"),
    ("WanVideoSLG", {"blocks": "ten"}, "numbers of blocks"),
    ("WanVideoSLG", {"blocks": "\u00b2"}, "numbers of blocks"),
    ("WanVideoExperimentalArgs", {"cfg_zero_star": True}, "cfg_zero_star is not supported"),
    ("MultiTalkWav2VecEmbeds", {"audio_2": None, "audio_3": None}, "3 speakers need a mask each"),
    ("MultiTalkWav2VecEmbeds", {"audio_2": None, "mask_1": None}, "1 masks for 2 speakers"),
    ("MultiTalkWav2VecEmbeds", {"mask_1": None, "ref_target_masks": None}, "Use the batch or single masks"),
    ("MultiTalkWav2VecEmbeds", {"fps": float("inf")}, "fps inf is not usable"),
]
# What a check names and a graph has linked: an input that is not named here is missing.
LINKED = {
    "WanVideoSampler": {"text_embeds": None},
    "WanVideoImageToVideoMultiTalk": {"start_image": None},
    "WanVideoSamplerv2": {"text_embeds": None},
    "WanVideoDecode": {"tile_x": 272, "tile_y": 272, "tile_stride_x": 144, "tile_stride_y": 128},
    "MultiTalkWav2VecEmbeds": {"audio_1": None},
}


@pytest.mark.parametrize("kind, values, said", WRONG)
def test_a_wrong_value_is_told_when_a_graph_is_queued(kind, values, said):
    assert NODES[kind].VALIDATE_INPUTS(**LINKED.get(kind, {})) is True
    assert said in NODES[kind].VALIDATE_INPUTS(**(LINKED.get(kind, {}) | values))


LISTS = [
    (kind, name, spec[0]) for kind, cls in sorted(NODES.items())
    for name, spec in (cls.REQUIRED | cls.OPTIONAL).items()
    if isinstance(spec, tuple) and isinstance(spec[0], list)
]  # fmt: skip


@pytest.mark.parametrize("kind, name, offered", LISTS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_script_is_told_what_a_list_offers(kind, name, offered):
    """Before anything else: what the node needs beside the value is None here."""
    cls = NODES[kind]
    for value in ("confy", None, 1):
        others = dict.fromkeys(cls.REQUIRED) | {item: kinds[0] for node, item, kinds in LISTS if node == kind}
        with pytest.raises(ValueError, match="is not offered") as caught:
            getattr(cls(), cls.FUNCTION)(**(others | {name: value}))
        assert str(caught.value).startswith(f"{name} {brief(value)} is not offered.")
        assert f"Use one of {', '.join(offered)}." in str(caught.value)


def test_a_list_is_checked_where_its_value_has_no_name():
    with pytest.raises(ValueError, match="precision 'fp61' is not offered. Did you mean 'fp16'"):
        node("WanVideoVAELoader").loadmodel("vae.safetensors", "fp61")


def test_what_depends_on_a_linked_value_is_left_for_later():
    check = NODES["WanVideoSampler"].VALIDATE_INPUTS
    assert check(scheduler="unipc", steps=None, start_step=9, text_embeds=None) is True
    assert check(scheduler="unipc", steps=4, start_step=9, text_embeds=None, sigmas=None) is True
    assert NODES["WanVideoImageToVideoMultiTalk"].VALIDATE_INPUTS(width=None, motion_frame=81, start_image=None) is True


def test_a_sampler_asks_for_what_it_needs_only_once_the_rest_is_right():
    identity = SimpleNamespace(has_audio=True)
    model = job.VideoModel(SimpleNamespace(checkpoint=SimpleNamespace(identity=identity)), None, None)
    needs = node("WanVideoSampler").check_lazy_status
    linked = {"image_embeds": None, "multitalk_embeds": None, "text_embeds": None}
    assert needs(model=model, steps=4, scheduler="unipc", **linked) == ["multitalk_embeds"]
    clip = job.PlainClip(job.VideoGeometry(64, 64, 13), None, None)
    assert needs(model=model, steps=4, image_embeds=clip, text_embeds=None) == ["text_embeds"]
    prompts = job.Prompts((torch.zeros(1, 8),), torch.zeros(1, 8))
    assert needs(model=model, steps=4, image_embeds=clip, text_embeds=prompts) == []
    for wrong, said in (
        ({"steps": 2000}, "steps 2000"), ({"start_step": 9}, "start_step 9"), ({"cfg": NAN}, "guidance_scale nan"),
        ({"cfg": "much"}, "guidance_scale 'much'"), ({"sigmas": 5}, "sigmas are int"),
        ({"image_embeds": 5}, "image_embeds"),
        ({"text_embeds": job.Prompts((torch.zeros(1, 8),))}, "negative prompt"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            needs(**{"model": model, "steps": 4, "image_embeds": clip, "text_embeds": None} | wrong)


def test_a_picture_needs_a_model_that_takes_one():
    weights = {key: value for key, value in recipes.transformer_state_dict(5, in_dim=16).items() if "img" not in key}
    checkpoint = recognize(weights)
    model = job.VideoModel(SimpleNamespace(checkpoint=checkpoint), None, None)
    needs = node("WanVideoSampler").check_lazy_status
    geometry = job.VideoGeometry(64, 64, 13)
    clip = job.PlainClip(geometry, None, None)
    assert needs(model=model, steps=4, image_embeds=clip, text_embeds=None) == ["text_embeds"]
    for seen in (replace(clip, condition=torch.zeros(20, 4, 8, 8)), replace(clip, clip=object())):
        with pytest.raises(ValueError, match="text-to-video transformer.*takes no picture"):
            needs(model=model, steps=4, image_embeds=seen, text_embeds=None)


def test_embeds_are_read_as_the_dictionary_of_another_pack():
    features, masks = torch.rand(2, 30, 12, 8), torch.ones(2, 4, 4)
    embeds = audio.MultiTalkEmbeds(audio.TensorAudio(list(features), features[0, :1]), 20, 25.0, 0.5, 2.0, masks)
    assert list(embeds) == ["audio_features", "audio_scale", "audio_cfg_scale", "ref_target_masks"]
    assert [item.shape for item in embeds["audio_features"]] == [(20, 12, 8)] * 2
    assert embeds.get("audio_scale") == 0.5 and dict(embeds)["audio_cfg_scale"] == 2.0
    assert embeds["ref_target_masks"] is masks and "other" not in embeds and embeds.get("other") is None


def test_features_are_read_when_they_are_asked_for():
    """ComfyUI's own look at what is handed on, which takes place at each link, reads none."""
    reads = []
    source = SimpleNamespace(num_speakers=2, features=lambda *span: reads.append(span) or torch.rand(2, 20, 12, 8))
    embeds = audio.MultiTalkEmbeds(source, 20, 25.0)
    for value in embeds.values():
        assert not isinstance(value, list | tuple | dict)
    features = embeds["audio_features"]
    assert len(features) == 2 and not reads
    assert features[1].shape == (20, 12, 8) and [item.shape for item in features] == [(20, 12, 8)] * 2
    assert reads == [(0, 20)] * 2


def test_the_latent_of_several_windows_answers_whoever_decodes_it():
    frames = torch.zeros(5, 4, 4, 3)
    video = SimpleNamespace(recording=SimpleNamespace(images=lambda: frames))
    samples = job.TalkingLatents(talking_video=video, output_path="x.mp4")
    with pytest.raises(ValueError, match="Take its frames from WanVideoPassImagesFromSamples"):
        samples["samples"]
    assert samples["video"] is frames and samples.get("samples") is None
    with pytest.raises(KeyError):
        samples["other"]


@pytest.mark.parametrize("name", refused.KINDS)
def test_a_node_that_feeds_what_is_refused_says_what_to_do(name):
    assert NODES[name].VALIDATE_INPUTS("7").startswith(f"{name} is not supported by this pack: ")
    with pytest.raises(ValueError, match="is not supported by this pack"):
        node(name).refuse()


def test_emptied_numbers_are_the_defaults(monkeypatch):
    handlers = []
    monkeypatch.setattr(
        common, "PromptServer", SimpleNamespace(instance=SimpleNamespace(add_on_prompt_handler=handlers.append))
    )
    common.fill_emptied_inputs({"WanVideoSampler": NODES["WanVideoSampler"].numbers()})
    inputs = {"start_step": "", "end_step": None, "cfg": 2.0, "scheduler": ""}
    graph = {
        "1": {"class_type": "WanVideoSampler", "inputs": dict(inputs)},
        "2": {"class_type": "X", "inputs": {"a": ""}},
    }
    (fill,) = handlers
    assert fill({"prompt": graph})["prompt"]["1"]["inputs"] == inputs | {"start_step": 0, "end_step": -1}
    assert graph["2"]["inputs"] == {"a": ""}
    for odd in ({}, {"prompt": None}, {"prompt": {"1": 5, "2": {"class_type": ["x"], "inputs": 3}}}):
        assert fill(odd) is odd


def test_what_is_null_is_not_given(monkeypatch):
    """ComfyUI would check a linked sound, and encode the prompt "None"."""
    handlers = []
    monkeypatch.setattr(
        common, "PromptServer", SimpleNamespace(instance=SimpleNamespace(add_on_prompt_handler=handlers.append))
    )
    common.fill_emptied_inputs({"MultiTalkWav2VecEmbeds": NODES["MultiTalkWav2VecEmbeds"].numbers()})
    inputs = {"audio_1": ["3", 0], "audio_2": None, "mask_1": None, "fps": None, "multi_audio_type": None}
    graph = {
        "1": {"class_type": "MultiTalkWav2VecEmbeds", "inputs": inputs},
        "2": {"class_type": "X", "inputs": {"a": None}},
    }
    handlers[0]({"prompt": graph})
    assert graph["1"]["inputs"] == {"audio_1": ["3", 0], "fps": 25.0} and graph["2"]["inputs"] == {"a": None}


def test_a_cfg_for_each_step():
    make = node("CreateCFGScheduleFloatList").process
    assert make(5, 4.0, 2.0)[0] == [4.0, 3.5, 3.0, 2.5, 2.0]
    assert make(10, 4.0, 4.0, "linear", 0.0, 0.3)[0] == [4.0] * 4 + [1.0] * 6
    assert make(10, 4.0, 4.0, "linear", 0.5, 1.0)[0] == [1.0] * 5 + [4.0] * 5
    assert make(3, 0.0, 4.0, "ease_in")[0] == [0.0, 1.0, 4.0] and make(3, 0.0, 4.0, "ease_out")[0] == [0.0, 3.0, 4.0]
    with pytest.raises(ValueError, match="before start_percent"):
        make(10, start_percent=0.5, end_percent=0.4)


@pytest.mark.parametrize("value", [None, "none", [], NAN, 10**400, torch.tensor([0.5, 1.0])])
def test_a_linked_value_that_its_widget_cannot_have_is_told(value):
    """ComfyUI checks none that is linked, and nodes of other packs give anything."""
    for kind, name in (
        ("CreateCFGScheduleFloatList", "steps"), ("CreateCFGScheduleFloatList", "end_percent"),
        ("WanVideoBlockSwap", "blocks_to_swap"), ("WanVideoBlockSwap", "prefetch_blocks"),
        ("WanVideoVRAMManagement", "offload_percent"),
    ):  # fmt: skip
        if (name, value) != ("offload_percent", None):
            with pytest.raises(ValueError, match=f"^{name} .*Give one of these"):
                getattr(node(kind), NODES[kind].FUNCTION)(**{name: value})
    for kind, name in (("WanVideoSLG", "blocks"), ("WanVideoExperimentalArgs", "video_attention_split_steps")):
        if not isinstance(value, str):
            with pytest.raises(ValueError, match=f"^{name} .* is no text"):
                getattr(node(kind), NODES[kind].FUNCTION)(**{name: value})


def test_passes_that_a_step_does_not_need_are_not_run():
    settings = LoopSettings(guidance_scale=(4.0, 1.0, 2.0), audio_guidance_scale=1.0, steps=4, scheduler="unipc")
    setup = SamplingSetup.of(settings, has_audio=True)
    assert setup.passes == (Pass.COND, Pass.DROP_TEXT) and setup.needs_negative
    guidance = setup.guidance()
    outputs = {Pass.COND: torch.tensor(2.0), Pass.DROP_TEXT: torch.tensor(1.0)}
    seen = []
    for _ in range(4):
        passes = guidance.passes
        seen.append((len(passes), float(guidance.combine({which: outputs[which] for which in passes}))))
    assert seen == [(2, 5.0), (1, 2.0), (2, 3.0), (2, 3.0)]
    both = Guidance((1.0, 4.0), 3.0, drops_idle=True)
    assert both.passes == (Pass.COND, Pass.DROP_TEXT, Pass.UNCOND), "audio is compared without the prompt"


def test_widgets_with_boundary_values_and_wrong_types_are_answered(tmp_path):
    for what, call in itertools.islice(cases(random.Random(0), tmp_path), 1500):
        try:
            call()
        except TalkError as error:
            assert 0 < len(str(error).splitlines()) <= 3, what
