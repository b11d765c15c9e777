"""Nodes called as plain Python, without a server: what scripts do, and what graphs rely on."""

import logging
import sys
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from support import media_files as media
from support.pack import load_pack, node

from wanvideo.synthetic.models import make_models

NODES = load_pack().NODE_CLASS_MAPPINGS
common = sys.modules["pack_under_test.nodes_common"]
SIZE = {"width": 64, "height": 48, "frame_window_size": 13, "motion_frame": 5}
FAST = {"steps": 2, "cfg": 1.0, "shift": 11.0, "seed": 3, "scheduler": "flowmatch_distill"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    make_models(folder, "tiny", "comfy")
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def parts(models):
    """What a graph has before its sampler."""
    file = {path.parent.name: str(path) for path in sorted(models.rglob("*.safetensors"))}
    adapter, several = (
        node("MultiTalkModelLoader").loadmodel(next(map(str, models.rglob(name))))[0]
        for name in ("*Single*", "*Multi*")
    )
    base = str(models / "diffusion_models" / "wan2.1_i2v_480p_14B_fp8_scaled.safetensors")
    text = node("WanVideoTextEncodeCached").process(
        file["text_encoders"], "fp32", "one|two", "bad", use_disk_cache=False
    )
    clip = node("LoadWanVideoClipTextEncoder").loadmodel(file["clip_vision"], "fp32")[0]
    return {
        "base": base,
        "adapter": adapter,
        "model": node("WanVideoModelLoader").loadmodel(base, "fp32", multitalk_model=adapter)[0],
        "model_for_several": node("WanVideoModelLoader").loadmodel(base, "fp32", multitalk_model=several)[0],
        "vae": node("WanVideoVAELoader").loadmodel(file["vae"], "fp32")[0],
        "text": text[0],
        "clip": clip,
        "speech_encoder": node("Wav2VecModelLoader").loadmodel(file["wav2vec2"])[0],
        "lora": file["loras"],
        "t5": node("LoadWanVideoT5TextEncoder").loadmodel(file["text_encoders"], "fp32")[0],
    }


def audio(seconds, rate=16000, channels=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {"waveform": torch.randn(1, channels, round(seconds * rate), generator=generator) * 0.1, "sample_rate": rate}


def picture(count=1, height=48, width=64):
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def speech(parts):
    return node("MultiTalkWav2VecEmbeds").process(parts["speech_encoder"], audio(0.8), num_frames=0)[0]


@pytest.fixture(scope="module")
def embeds(parts):
    return node("WanVideoImageToVideoMultiTalk").process(parts["vae"], **SIZE, start_image=picture())[0]


def sample(parts, embeds, speech, **changes):
    values = FAST | {"text_embeds": parts["text"], "multitalk_embeds": speech} | changes
    return node("WanVideoSampler").process(values.pop("model", parts["model"]), embeds, **values)[0]


def images(samples):
    return node("WanVideoPassImagesFromSamples").decode(samples)[0]


def test_the_same_inputs_give_the_same_video_and_are_left_alone(parts, embeds, speech):
    def given():
        return embeds.references, speech.audio.features(0, speech.num_frames), *parts["text"].positive

    before = [tensor.clone() for tensor in given()]
    first, second = (images(sample(parts, embeds, speech)) for _ in range(2))
    assert first.shape == (20, 48, 64, 3) and torch.equal(first, second)
    assert all(torch.equal(one, other) for one, other in zip(before, given(), strict=True))
    assert not torch.equal(first, images(sample(parts, embeds, speech, seed=4)))


def test_both_samplers_are_one(parts, embeds, speech):
    scheduler = node("WanVideoSchedulerv2").process("flowmatch_distill", 2, 11.0)[0]
    extra = node("WanVideoSamplerExtraArgs").process(multitalk_embeds=speech)[0]
    other = node("WanVideoSamplerv2").process(
        parts["model"], embeds, 1.0, 3, True, scheduler, parts["text"], extra_args=extra
    )[0]
    assert torch.equal(images(sample(parts, embeds, speech)), images(other))


def test_a_scheduler_node_gives_the_levels_that_the_name_gives(parts, embeds, speech):
    sigmas, steps, shift, name, start, end = node("WanVideoScheduler").process("flowmatch_distill", 2, 11.0)
    assert (steps, shift, name, start, end) == (2, 11.0, "flowmatch_distill", 0, -1) and len(sigmas) == 3
    linked = sample(parts, embeds, speech, sigmas=sigmas, steps=99)
    # Sockets carry float32, the schedule has doubles.
    torch.testing.assert_close(images(linked), images(sample(parts, embeds, speech)), atol=1.5 / 255, rtol=0)


def test_the_names_that_scripts_use(parts, embeds, speech, caplog):
    model = node("WanVideoModelLoader").load_model(
        model_name=parts["base"], base_precision="fp8_e4m3fn", load_device="main_device", auto_cpu_offload=True,
        compile_args=None, multitalk_model=parts["adapter"],
    )[0]  # fmt: skip
    assert model.options.quantize == "fp8" and model.options.blocks_to_stream == -1
    clip = node("WanVideoClipVisionEncode").encode(clip_vision=parts["clip"], image=picture())[0]
    assert clip.tokens.shape == (1, 257, 1280)
    sample(parts, embeds, speech, model=model, use_tf32=True, force_contiguous_tensors=True)
    assert not torch.backends.cuda.matmul.allow_tf32


def test_scripts_are_told_which_value_is_wrong_as_graphs_are(parts):
    for wrong in ({"base_precision": "fp9"}, {"quantization": "fp8"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            node("WanVideoModelLoader").load_model(parts["base"], **wrong)
    with pytest.raises(ValueError, match="fps"):
        node("MultiTalkWav2VecEmbeds").process(parts["speech_encoder"], audio(0.2), num_frames=33, fps=0)


@pytest.mark.parametrize("quantization", ["fp8_e4m3fn", "int8", "fp4"])
def test_quantized_models_with_a_lora_and_streamed_blocks(parts, embeds, speech, quantization, caplog):
    caplog.set_level(logging.INFO, "wanvideo")
    lora = node("WanVideoLoraSelect").getlorapath(parts["lora"], 0.8)[0]
    swap = node("WanVideoBlockSwap").setargs(2, prefetch_blocks=1)[0]
    model = node("WanVideoModelLoader").loadmodel(
        parts["base"], "fp32", quantization, multitalk_model=parts["adapter"], lora=lora, block_swap_args=swap
    )[0]
    resident = node("WanVideoSetBlockSwap").loadmodel(model, node("WanVideoBlockSwap").setargs(0)[0])[0]
    streamed = images(sample(parts, embeds, speech, model=model))
    assert "unmerged" in caplog.text
    assert torch.equal(streamed, images(sample(parts, embeds, speech, model=resident)))


def test_compiled_blocks_make_the_same_video(parts, embeds, speech, monkeypatch):
    settings = node("WanVideoTorchCompileSettings").set_args()[0]
    assert (settings.mode, settings.backend) == ("default", "inductor")
    plain = node("WanVideoModelLoader").loadmodel(parts["base"], "fp32", multitalk_model=parts["adapter"])[0]
    expected = images(sample(parts, embeds, speech, model=plain))
    # Traced only, without a compiler, which this machine may lack.
    compiled = replace(plain, options=replace(plain.options, compile=settings.mode, compile_backend="eager"))
    torch.testing.assert_close(images(sample(parts, embeds, speech, model=compiled)), expected, atol=1.5 / 255, rtol=0)
    assert torch.equal(images(sample(parts, embeds, speech, model=plain)), expected), "and go back to what they were"


def test_loras_can_be_changed_and_taken_back(parts, embeds, speech, caplog):
    plain = images(sample(parts, embeds, speech))
    slots = node("WanVideoLoraSelectMulti").getlorapath(parts["lora"], 1.0, parts["lora"], 0.0)[0]
    assert len(slots) == 1
    with_lora = node("WanVideoSetLoRAs").setlora(parts["model"], slots)[0]
    assert not torch.equal(images(sample(parts, embeds, speech, model=with_lora)), plain)
    assert torch.equal(images(sample(parts, embeds, speech)), plain)


def test_speech_is_capped_and_its_sound_kept(parts):
    embeds, sound, frames = node("MultiTalkWav2VecEmbeds").process(
        parts["speech_encoder"], audio(2.0, 44100, 2), num_frames=30
    )
    assert frames == embeds.num_frames == 30
    assert sound["sample_rate"] == 44100 and sound["waveform"].shape == (1, 2, round(1.2 * 44100))
    followed = node("MultiTalkWav2VecEmbeds").process(parts["speech_encoder"], audio(2.0), num_frames=0)
    assert followed[2] == 50


def test_two_speakers_are_left_and_right_or_masked(parts, embeds):
    wav2vec, two = parts["speech_encoder"], {"audio_2": audio(0.4, seed=5), "num_frames": 0}
    alone = node("MultiTalkWav2VecEmbeds").process(wav2vec, audio(0.4), **two, multi_audio_type="add")[0]
    assert alone.num_frames == 20 and alone.masks((64, 48), 64, 48).shape == (3, 48, 64)
    left, right = torch.zeros(1, 48, 64), torch.zeros(1, 48, 64)
    left[:, :, :32], right[:, :, 32:] = 1, 1
    masked = node("MultiTalkWav2VecEmbeds").process(wav2vec, audio(0.4), **two, mask_1=left, mask_2=right)[0]
    batch = torch.cat((left, right))
    batched = node("MultiTalkWav2VecEmbeds").process(wav2vec, audio(0.4), **two, ref_target_masks=batch)[0]
    assert torch.equal(masked.masks((64, 48), 64, 48), batched.masks((64, 48), 64, 48))
    model = parts["model_for_several"]
    assert images(sample(parts, embeds, masked, model=model)).shape[0] == 10
    with pytest.raises(ValueError, match="adapter for one person"):
        sample(parts, embeds, masked)
    listener = node("MultiTalkWav2VecEmbeds").process(wav2vec, audio(0.4), num_frames=0, ref_target_masks=batch)[0]
    assert listener.audio.num_speakers == 2 and not torch.equal(*listener.audio.features(0, 10))
    assert images(sample(parts, embeds, listener, model=model)).shape[0] == 10
    for wrong, said in (
        ({"mask_1": left}, "1 masks for 2 speakers"),
        ({"mask_1": left, "ref_target_masks": batch}, "Use the batch or single masks"),
        ({"mask_1": left, "mask_2": torch.zeros(1, 10, 10)}, "different sizes"),
        ({"audio_3": audio(0.4)}, "need a mask each"),
    ):
        with pytest.raises(ValueError, match=said):
            node("MultiTalkWav2VecEmbeds").process(wav2vec, audio(0.4), **two, **wrong)


def test_prompts_of_windows_and_embeddings_from_elsewhere(parts):
    assert len(parts["text"].positive) == 2
    whole = node("WanVideoTextEncode").process("one|two", "bad", parts["t5"])[0]
    assert torch.equal(whole.positive[1], parts["text"].positive[1])
    single = node("WanVideoTextEncodeSingle").process("one", parts["t5"])[0]
    assert single.negative is None and torch.equal(single.positive[0], whole.positive[0])
    padded = torch.nn.functional.pad(whole.positive[0], (0, 0, 0, 100))[None]
    bridged = node("WanVideoTextEmbedBridge").process([[padded, {}]])[0]
    assert torch.equal(bridged.positive[0], whole.positive[0])


def test_plain_clips_and_videos_through_the_vae(parts, speech):
    encode = node("WanVideoImageToVideoEncode")
    start = encode.process(64, 48, 13, vae=parts["vae"], start_image=picture())[0]
    both = encode.process(64, 48, 13, vae=parts["vae"], start_image=picture(), end_image=picture())[0]
    empty = node("WanVideoEmptyEmbeds").process(64, 48, 13)[0]
    for clip in (start, both, empty):
        samples = sample(parts, clip, None)
        assert samples["samples"].shape == (1, 16, 4, 6, 8)
        frames = node("WanVideoDecode").decode(parts["vae"], samples)[0]
        assert frames.shape == (13, 48, 64, 3) and 0 <= frames.min() and frames.max() <= 1
    video = node("WanVideoEncode").encode(parts["vae"], picture(11))[0]
    assert video["samples"].shape == (1, 16, 4, 6, 8)
    assert not torch.equal(sample(parts, start, speech, samples=video, start_step=1)["samples"],
                           sample(parts, start, speech)["samples"])  # fmt: skip


def test_latents_of_another_size_are_refused(parts, embeds, speech):
    video = node("WanVideoEncode").encode(parts["vae"], picture(5)[:, :, :32])[0]
    for images in (embeds, node("WanVideoEmptyEmbeds").process(64, 48, 13)[0]):
        with pytest.raises(ValueError, match="this run needs"):
            sample(parts, images, speech, samples=video, denoise_strength=0.5)


def test_silence_needs_an_encoder_but_no_sound(parts, embeds):
    silent = node("MultiTalkSilentEmbeds").process(20, parts["speech_encoder"])[0]
    assert images(sample(parts, embeds, silent)).shape[0] == 20
    with pytest.raises(ValueError, match="connect wav2vec_model"):
        node("MultiTalkSilentEmbeds").process(20)


def test_finished_videos_go_where_output_path_says(parts, speech, tmp_path):
    embeds, folder = node("WanVideoImageToVideoMultiTalk").process(
        parts["vae"], **SIZE, start_image=picture(), output_path="my run"
    )
    samples = sample(parts, embeds, speech)
    assert folder == str(tmp_path / "output" / "my run") or folder.endswith("my run")
    assert samples["output_path"].endswith("talking_video.mp4")
    again = sample(parts, embeds, speech)
    assert again["output_path"].endswith("talking_video_2.mp4"), "nothing is overwritten"


class VideoFile:
    """A VIDEO as Load Video gives it."""

    def __init__(self, path):
        self.get_stream_source = lambda: str(path)


def test_a_video_with_a_mask_is_dubbed(parts, speech, tmp_path):
    frames = media.numbered_frames(20)
    source = VideoFile(media.video(tmp_path / "source.mp4", frames))
    mask, talk = torch.zeros(1, 48, 64), node("WanVideoImageToVideoMultiTalk")
    mask[:, :16, :24] = 1
    embeds = talk.process(parts["vae"], **SIZE, source_video=source, keep_mask=mask)[0]
    dubbed = images(sample(parts, embeds, speech))
    levels = torch.tensor([media.level_of(index) for index in range(20)]) / 255
    assert dubbed.shape[0] == 20 and (dubbed[:, 36:, 44:] - levels[:, None, None, None]).abs().max() < 6 / 255
    with pytest.raises(ValueError, match="keep_mask says what of a video is made anew. Connect source_video"):
        talk.process(parts["vae"], **SIZE, start_image=picture(), keep_mask=mask)


def options(**given):
    return node("WanVideoSourceOptions").process(**given)[0]


def followed(parts, source_options, **shown):
    return node("WanVideoImageToVideoMultiTalk").process(parts["vae"], **SIZE, **shown, source_options=source_options)[
        0
    ]


def test_source_options_dub_by_a_video_of_masks_and_end_with_the_source(parts, speech, tmp_path):
    source = VideoFile(media.video(tmp_path / "source.mp4", media.numbered_frames(16)))
    masks = np.zeros((16, 48, 64, 3), np.uint8)
    masks[:, :16, :24] = 255
    masks = VideoFile(media.video(tmp_path / "masks.mp4", masks))
    dub = followed(parts, options(source_end="stop", mask_video=masks, feather=0), source_video=source)
    dubbed = images(sample(parts, dub, speech))
    levels = torch.tensor([media.level_of(index) for index in range(16)]) / 255
    assert dubbed.shape[0] == 16, "the speech would go on for 20"
    assert (dubbed[:, 20:, 28:] - levels[:, None, None, None]).abs().max() < 3 / 255
    assert dub.source.file_crf == 6 and options(crf=4, mask_video=masks).file_crf == 4 and options().file_crf == 18


def test_source_options_move_a_camera_over_a_picture(parts, speech):
    still = images(sample(parts, followed(parts, options(), start_image=picture()), speech))
    moving = followed(parts, options(camera_zoom=1.5, camera_period=1.0), start_image=picture(1, 96, 128))
    references = moving.pictures(20, 25.0).references
    assert len(references) == 2 and not torch.equal(references[0], references[1])
    assert images(sample(parts, moving, speech)).shape == still.shape
    with pytest.raises(ValueError, match="start_image has 2 pictures, and camera_zoom moves over one"):
        followed(parts, options(camera_zoom=1.5), start_image=picture(2))


def test_source_options_re_anchor(parts, speech):
    still, anchored = (
        images(sample(parts, followed(parts, options(**given), start_image=picture()), speech))
        for given in ({}, {"reanchor": 1})
    )
    same = [torch.equal(a, b) for a, b in zip(still, anchored, strict=True)]
    assert same[0] and not same[-1], "the first window has no anchor yet, the last one has"


def test_source_options_cut_into_scenes(parts, speech, tmp_path):
    pytest.importorskip("scenedetect", reason="the optional package scenedetect finds scenes")
    shots = (
        np.random.default_rng(0)
        .integers(0, 255, (2, 1, 48, 64, 3))
        .astype(np.uint8)
        .repeat(30, 1)
        .reshape(60, 48, 64, 3)
    )
    source = VideoFile(media.video(tmp_path / "shots.mp4", shots))
    cut = followed(parts, options(scene_seg=True), source_video=source)
    assert cut.pictures(60, 25.0).plan.cuts == (30,)
    assert images(sample(parts, cut, speech)).shape[0] == 20


def test_source_options_that_cannot_be_are_refused(parts, tmp_path):
    source, mask = VideoFile(media.video(tmp_path / "source.mp4", media.numbered_frames(5))), torch.zeros(1, 48, 64)
    mask[:, :16] = 1
    check = NODES["WanVideoSourceOptions"].VALIDATE_INPUTS
    assert check(mouth="none", keep_mask=None) is True
    assert "said more than once" in check(mouth="auto", keep_mask=None)
    with pytest.raises(ValueError, match="said more than once"):
        options(mask_video=source, keep_mask=mask)
    with pytest.raises(ValueError, match="keep_mask and source_options both say"):
        node("WanVideoImageToVideoMultiTalk").process(
            parts["vae"], **SIZE, source_video=source, keep_mask=mask, source_options=options(keep_mask=mask)
        )
    for given in (dict(keep_mask=mask), dict(source_end="loop"), dict(mask_video=source)):
        with pytest.raises(ValueError, match=f"{next(iter(given))} is for a source video, and a picture is connected"):
            followed(parts, options(**given), start_image=picture())
    with pytest.raises(ValueError, match="camera_zoom moves over a still picture"):
        followed(parts, options(camera_zoom=1.1), source_video=source)
    for given, pictures, name in (
        ({}, dict(source_video=source), "source_video"),
        (dict(camera_zoom=1.1), dict(start_image=picture()), "camera_zoom"),
        ({}, dict(start_image=picture(2)), "several pictures"),
    ):
        with pytest.raises(ValueError, match=f"reanchor 5 does not go with {name}"):
            followed(parts, options(reanchor=5, **given), **pictures)


@pytest.mark.parametrize("cache", ["WanVideoTeaCache", "WanVideoMagCache", "WanVideoEasyCache"])
def test_step_caches_are_taken_by_the_sampler(parts, embeds, speech, cache):
    setting = getattr(node(cache), NODES[cache].FUNCTION)(0.3)[0]
    assert images(sample(parts, embeds, speech, steps=7, cache_args=setting)).shape[0] == 20
    assert getattr(node(cache), NODES[cache].FUNCTION)(0.0)[0] is None


def test_a_lora_that_fits_nothing_is_refused_where_the_model_is_chosen(parts, tmp_path, caplog):
    pair = {f"lora_unet_other.lora_{side}.weight": torch.zeros(4, 4) for side in ("down", "up")}
    safetensors.torch.save_file(pair, tmp_path / "other.safetensors")
    lora = node("WanVideoLoraSelect").getlorapath(str(tmp_path / "other.safetensors"))[0]
    for choose in (
        lambda: node("WanVideoModelLoader").loadmodel(parts["base"], "fp32", lora=lora),
        lambda: node("WanVideoSetLoRAs").setlora(parts["model"], lora),
    ):
        with pytest.raises(ValueError, match="other.safetensors fits nothing of this model"):
            choose()
    mixed = pair | safetensors.torch.load_file(parts["lora"])
    safetensors.torch.save_file(mixed, tmp_path / "mixed.safetensors")
    lora = node("WanVideoLoraSelect").getlorapath(str(tmp_path / "mixed.safetensors"))[0]
    node("WanVideoSetLoRAs").setlora(parts["model"], lora)
    assert "differences fit this model" in caplog.text


def test_a_lora_that_is_not_finite_is_refused_where_it_is_chosen(parts, tmp_path):
    broken = safetensors.torch.load_file(parts["lora"])
    next(iter(broken.values())).view(-1)[0] = torch.nan
    safetensors.torch.save_file(broken, tmp_path / "broken.safetensors")
    with pytest.raises(ValueError, match="broken.safetensors has values that are not finite numbers in its changes of"):
        node("WanVideoLoraSelect").getlorapath(str(tmp_path / "broken.safetensors"))


def test_a_cfg_for_each_step_is_taken_by_the_sampler(parts, embeds, speech):
    plain = images(sample(parts, embeds, speech, cfg=4.0))
    assert torch.equal(images(sample(parts, embeds, speech, cfg=[4.0, 4.0])), plain)
    assert torch.equal(images(sample(parts, embeds, speech, cfg=[1.0])), images(sample(parts, embeds, speech)))
    assert not torch.equal(images(sample(parts, embeds, speech, cfg=[4.0, 1.0])), plain)
    with pytest.raises(ValueError, match="no room for audio guidance"):
        sample(parts, embeds, replace(speech, guidance_scale=2.0), cfg=[4.0, 1.0])


def test_speech_that_is_cut_is_said(parts, caplog):
    process = node("MultiTalkWav2VecEmbeds").process
    process(parts["speech_encoder"], audio(0.8), num_frames=20)
    assert "of speech" not in caplog.text
    process(parts["speech_encoder"], audio(0.8), num_frames=15)
    assert "num_frames 15 ends the video after 0.60 s of 0.80 s of speech. 0 takes all of it." in caplog.text


def test_layers_are_skipped_in_the_pass_without_the_prompt(parts, embeds, speech):
    skip = node("WanVideoSLG").process("1", 0.0, 1.0)[0]
    plain = images(sample(parts, embeds, speech, cfg=4.0))
    assert not torch.equal(images(sample(parts, embeds, speech, cfg=4.0, slg_args=skip)), plain)
    with pytest.raises(ValueError, match="numbers of blocks"):
        node("WanVideoSLG").process("ten")


def test_what_is_not_supported_is_refused_in_one_sentence(parts, embeds, speech):
    for name in ("feta_args", "context_options", "uni3c_embeds", "unianimate_poses", "freeinit_args", "flowedit_args"):
        with pytest.raises(ValueError, match=f"^{name} is not supported by this pack yet"):
            sample(parts, embeds, speech, **{name: {"anything": 1}})
    with pytest.raises(ValueError, match="cfg_zero_star is not supported"):
        node("WanVideoExperimentalArgs").process(cfg_zero_star=True)
    assert sample(parts, embeds, speech, experimental_args=node("WanVideoExperimentalArgs").process(use_tf32=True)[0])


def test_objects_of_another_pack_are_told_apart(parts, embeds, speech):
    foreign = {"prompt_embeds": [torch.zeros(1, 3, 64)]}
    with pytest.raises(ValueError, match=r"text_embeds comes from another pack \(builtins.dict\)"):
        sample(parts, embeds, speech, text_embeds=foreign)
    with pytest.raises(ValueError, match="text_embeds is not connected"):
        sample(parts, embeds, speech, text_embeds=None)
    with pytest.raises(ValueError, match="audio_1 is no AUDIO"):
        node("MultiTalkWav2VecEmbeds").process(parts["speech_encoder"], "speech.wav")


def test_a_model_without_adapter_cannot_speak(parts, embeds, speech):
    silent = node("WanVideoModelLoader").loadmodel(parts["base"], "fp32")[0]
    with pytest.raises(ValueError, match="no audio adapter"):
        sample(parts, embeds, speech, model=silent)
    assert images(sample(parts, embeds, None, model=silent)).shape[0] == 13


def test_a_preset_gives_numbers_that_the_sampler_takes():
    names = NODES["WanVideoTalkingPreset"].INPUT_TYPES()["required"]["preset"][0]
    for name in names:
        result = dict(zip(NODES["WanVideoTalkingPreset"].RETURN_NAMES,
                          node("WanVideoTalkingPreset").process(name, picture(1, 832, 480)), strict=True))  # fmt: skip
        assert result["height"] > result["width"] and result["width"] % 16 == 0
        assert result["scheduler"] in NODES["WanVideoSampler"].INPUT_TYPES()["required"]["scheduler"][0]
        assert name in result["summary"]


def test_two_pictures_are_combined(parts):
    encode, one, two = node("WanVideoClipVisionEncode"), picture(), picture(2)
    shapes = {"average": (1, 257, 1280), "sum": (1, 257, 1280), "concat": (1, 514, 1280), "batch": (2, 257, 1280)}
    for how, shape in shapes.items():
        assert encode.process(parts["clip"], one, combine_embeds=how, image_2=one)[0].tokens.shape == shape
    assert encode.process(parts["clip"], one, combine_embeds="batch", image_2=two)[0].tokens.shape == (3, 257, 1280)
    for how in ("average", "sum", "concat"):
        with pytest.raises(ValueError, match="image_1 holds 1 pictures and image_2 2"):
            encode.process(parts["clip"], one, combine_embeds=how, image_2=two)


def test_wrong_sound_is_named(parts):
    silent = {"waveform": torch.zeros(1, 1, 16000), "sample_rate": 16000}
    with pytest.raises(ValueError, match="audio_1, is silent"):
        node("MultiTalkWav2VecEmbeds").process(parts["speech_encoder"], silent)
    broken = {"waveform": torch.full((1, 1, 16000), np.nan), "sample_rate": 16000}
    with pytest.raises(ValueError, match="no numbers"):
        node("MultiTalkWav2VecEmbeds").process(parts["speech_encoder"], broken)


def test_a_changed_file_is_noticed(tmp_path):
    loader, path = NODES["WanVideoVAELoader"], tmp_path / "vae.safetensors"
    path.write_bytes(b"one")
    before = loader.IS_CHANGED(model_name=str(path), precision="bf16")
    assert before and before == loader.IS_CHANGED(model_name=str(path), precision="fp32")
    path.write_bytes(b"another")
    assert loader.IS_CHANGED(model_name=str(path)) != before
    assert loader.IS_CHANGED(model_name="missing.safetensors") == ""
