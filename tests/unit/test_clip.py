"""One clip without a window loop, the mix of speakers, what is kept of a run, and the pieces around them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.sampling import conditioning

from wanvideo.audio.mix import mix
from wanvideo.errors import InputError, TalkError
from wanvideo.geometry import VideoGeometry
from wanvideo.memory.residency import WholeResidency, module_bytes
from wanvideo.models.text_encoder import without_padding
from wanvideo.request import LoopSettings
from wanvideo.sampling.clip import empty_condition, picture_condition, sample_clip
from wanvideo.sampling.loop import Conditioning, run_windows, seeded_noise
from wanvideo.sampling.setup import SamplingSetup
from wanvideo.text.cache import TextCache
from wanvideo.video import recording
from wanvideo.video.picture import fit_images
from wanvideo.video.reader import VideoFrames, probe
from wanvideo.video.writer import VideoWriter

GEOMETRY = VideoGeometry(32, 32, 13)
SETTINGS = LoopSettings(
    mode="multitalk", window_frames=13, motion_frames=5, steps=2, scheduler="euler", guidance_scale=1.0,
    audio_guidance_scale=1.0,
)  # fmt: skip


def test_a_clip_equals_the_first_window_of_the_loop(models):
    """In multitalk mode the first window knows its first frame and nothing else, as a plain clip does."""
    transformer, vae = models
    picture = torch.rand(3, 32, 32) * 2 - 1
    embeds, image = torch.randn(7, transformer.config.text_dim), torch.randn(1, 257, transformer.config.image_dim)
    with torch.inference_mode():
        conditioning = Conditioning(picture[None], [embeds], image_embeds=image, num_frames=13)
        (window,) = run_windows(transformer, vae, conditioning, SETTINGS, 3)
        condition = picture_condition(vae, GEOMETRY, picture[:, None], None)
        latents = sample_clip(
            transformer, GEOMETRY, condition, SETTINGS, seeded_noise(3, 0), text_embeds=embeds, image_embeds=image
        )
    torch.testing.assert_close(latents, window.latents)


def test_a_clip_with_sound_equals_the_first_window_too(models):
    """With guidance over prompt and sound, and from a setup and a source as well as from settings and tracks."""
    transformer, vae = models
    settings = replace(SETTINGS, scheduler="lcm", guidance_scale=4.0, audio_guidance_scale=3.0)
    given = conditioning(frames=13, speakers=2)
    (window,) = run_windows(transformer, vae, given, settings, 3)
    condition = picture_condition(vae, VideoGeometry(48, 32, 13), given.references[0][:, None], None)
    for how, audio in ((settings, given.audio), (SamplingSetup.of(settings, True), given.audio_source)):
        latents = sample_clip(
            transformer, VideoGeometry(48, 32, 13), condition, how, seeded_noise(3, 0),
            text_embeds=given.text_embeds[0], negative_text_embeds=given.negative_text_embeds,
            image_embeds=given.image_embeds, audio=audio, speaker_masks=given.speaker_masks,
        )  # fmt: skip
        assert torch.equal(latents, window.latents)


def test_a_clip_goes_on_when_memory_was_freed(models, monkeypatch, caplog):
    """From the same noise; where nothing can be freed the error says what to do."""
    transformer = models[0]
    embeds, condition = torch.ones(7, transformer.config.text_dim), empty_condition(GEOMETRY)
    settings = replace(SETTINGS, scheduler="lcm")

    def sample(free_memory):
        return sample_clip(
            transformer, GEOMETRY, condition, settings, seeded_noise(3, 0), text_embeds=embeds, free_memory=free_memory
        )

    expected, forward, runs = sample(None), transformer.blocks[0].forward, []

    def fails_once(*args):
        runs.append(True)
        if len(runs) == 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return forward(*args)

    monkeypatch.setattr(transformer.blocks[0], "forward", fails_once)
    assert torch.equal(sample(lambda: True), expected) and len(runs) == 4
    assert caplog.messages == ["Window 1 ran out of device memory; again, with more blocks streaming."]
    for free_memory in (None, lambda: False):
        runs.clear()
        with pytest.raises(TalkError, match="ran out of device memory: CUDA.*\n.*smaller size"):
            sample(free_memory)


def test_the_end_of_a_clip_can_be_given(models):
    start, end = torch.full((3, 1, 32, 32), -1.0), torch.full((3, 1, 32, 32), 1.0)
    with torch.inference_mode():
        condition = picture_condition(models[1], GEOMETRY, start, end)
    assert condition.shape == (20, 4, 4, 4)
    assert condition[:4, :, 0, 0].T.tolist() == [[1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert empty_condition(GEOMETRY).abs().sum() == 0


def test_of_more_pictures_than_a_clip_has_it_begins_with_the_first_and_ends_with_the_last(models):
    pictures = torch.linspace(-1, 1, 3 * 17 * 32 * 32).view(3, 17, 32, 32)
    with torch.inference_mode():
        begun = picture_condition(models[1], GEOMETRY, pictures, None)
        ended = picture_condition(models[1], GEOMETRY, None, pictures)
        assert torch.equal(begun[4:], models[1].encode(pictures[:, :13]))
        assert torch.equal(ended[4:], models[1].encode(pictures[:, -13:]))
    assert begun[:4].eq(1).all() and ended[:4].eq(1).all()


@pytest.mark.parametrize("shape", [(16, 3, 4, 6), (16, 0, 4, 4), (4, 3, 4, 4), (16, 4, 4), (1, 16, 3, 4, 4)])
def test_samples_of_another_size_are_refused(models, shape):
    with pytest.raises(InputError, match=r"needs \[16, n, 4, 4\].*a video of 32x32"):
        sample_clip(
            models[0], GEOMETRY, None, SETTINGS, seeded_noise(3, 0), text_embeds=torch.zeros(1, 48),
            samples=torch.zeros(shape),
        )  # fmt: skip


def test_speakers_are_mixed_together_or_one_after_another():
    one, two = np.full((2, 800), 0.25, np.float32), np.full((1, 400), 0.5, np.float32)
    together, rate = mix([(one, 8000), (two, 8000)], "para", 0.1)
    assert together.shape == (2, 800) and rate == 8000
    assert np.allclose(together[:, :400], 0.75) and np.allclose(together[:, 400:], 0.25)
    after, _ = mix([(one, 8000), (two, 8000)], "add", 0.2)
    assert np.allclose(after[:, 800:1200], 0.5) and not after[:, 1200:].any()
    loud, _ = mix([(np.ones((1, 80), np.float32), 8000)] * 2, "para", 0.01)
    assert loud.max() == pytest.approx(0.95)


def test_another_rate_is_brought_to_the_first():
    tone = (0.5 * np.sin(2 * np.pi * 100 * np.arange(1600) / 16000)).astype(np.float32)[None]
    mixed, rate = mix([(np.zeros((1, 800), np.float32), 8000), (tone, 16000)], "para", 0.1)
    assert rate == 8000 and mixed.shape == (1, 800)
    assert np.abs(mixed[0, 100:700] - tone[0, 200:1400:2]).max() < 0.01


def test_a_recording_gives_its_frames_back_from_memory_and_from_its_file(tmp_path, monkeypatch):
    frames = torch.arange(6 * 32 * 48 * 3, dtype=torch.int32).div(30, rounding_mode="floor").remainder(256)
    frames = frames.to(torch.uint8).view(6, 32, 48, 3)
    file = tmp_path / "video.mp4"
    with VideoWriter(file, 48, 32, 25) as writer:
        writer.write(frames)
    kept = recording.Recording(file, 48, 32, 25)
    kept.write(frames[:4])
    kept.write(frames[4:])
    kept.close()
    images = kept.images()
    assert torch.equal((images * 255).round().to(torch.uint8), frames)
    images.zero_()
    assert kept.images().any(), "a consumer that writes into its tensor must not spoil the next one's"
    monkeypatch.setattr(recording, "free_host_bytes", lambda: 10 * frames.numel() - 1)
    streamed = recording.Recording(file, 48, 32, 25)
    streamed.write(frames)
    streamed.close()
    assert streamed.frames is None and streamed.images().shape == (6, 32, 48, 3)
    later = recording.Recording(file, 48, 32, 25, num_before=4)
    later.write(frames[4:])
    assert torch.equal(later.images(), streamed.images()) and torch.equal(later.read(4), streamed.images()[4:])
    with VideoFrames(file) as video:
        assert np.array_equal(later.read(5)[0].mul(255).round().to(torch.uint8), video.frame_at(5 / 25))
    monkeypatch.setattr(recording, "free_host_bytes", lambda: 4 * frames.numel())
    with pytest.raises(InputError, match="video output"):
        streamed.images()
    assert probe(streamed.publish(tmp_path / "out.mp4")).frames == 6


def test_pictures_of_the_right_size_keep_their_values_and_others_are_fitted():
    pictures = torch.rand(2, 32, 48, 4)
    assert torch.equal(fit_images(pictures, 48, 32), pictures[..., :3].permute(0, 3, 1, 2) * 2 - 1)
    assert fit_images(pictures, 32, 32).shape == (2, 3, 32, 32)
    with pytest.raises(InputError, match="numbers"):
        fit_images(torch.full((1, 32, 48, 3), torch.nan), 48, 32)
    with pytest.raises(InputError, match="shape"):
        fit_images(torch.rand(32, 48, 3), 48, 32)


def test_padding_of_embeddings_is_dropped():
    embeds = torch.cat((torch.ones(3, 4), torch.zeros(5, 4)))
    assert without_padding(embeds).shape == (3, 4)
    assert without_padding(torch.zeros(5, 4)).shape == (1, 4)


def test_the_text_cache_knows_prompts_by_encoder_and_precision(tmp_path):
    encoder, asked = tmp_path / "t5.safetensors", []
    encoder.write_bytes(b"weights")

    def encode(prompts):
        asked.append(prompts)
        return [torch.full((2, 3), float(len(prompt))) for prompt in prompts]

    cache = TextCache(tmp_path / "cache", [encoder], "bf16", 3)
    first = cache.get(["a", "bcd"], encode)
    again = cache.get(["bcd", "e", "a"], encode)
    assert asked == [["a", "bcd"], ["e"]] and torch.equal(again[2], first[0]) and torch.equal(again[0], first[1])
    TextCache(tmp_path / "cache", [encoder], "fp32", 3).get(["a"], encode)
    encoder.write_bytes(b"other weights")
    TextCache(tmp_path / "cache", [encoder], "bf16", 3).get(["a"], encode)
    assert len(asked) == 4
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(b"broken")
    assert torch.equal(TextCache(tmp_path / "cache", [encoder], "bf16", 3).get(["a"], encode)[0], first[0])


def test_a_whole_model_moves():
    model = torch.nn.Linear(4, 4)
    residency = WholeResidency(model, "cpu")
    residency.place()
    assert residency.device_bytes == module_bytes(model) == 80
    residency.offload()
