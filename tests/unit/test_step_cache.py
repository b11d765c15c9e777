"""Step caches inside the sampler, layers left out, and retries when the device runs out of memory."""

import logging
from dataclasses import replace

import pytest
import torch
from support import recipes

from wanvideo import Conditioning, LoopSettings, run_windows
from wanvideo.errors import InputError, TalkError
from wanvideo.request import Apg, SkipLayers, StepCache
from wanvideo.sampling.guidance import Pass
from wanvideo.sampling.step_cache import (
    TEACACHE_POLYNOMIALS,
    EasyCacheRule,
    MagCacheRule,
    TeaCacheRule,
    open_cache,
    ratios_for,
)

FEATURE = recipes.TINY_AUDIO["layers"], recipes.TINY_AUDIO["channels"]
SETTINGS = LoopSettings(
    window_frames=9, motion_frames=5, steps=8, shift=3.0, guidance_scale=1.0, audio_guidance_scale=1.0
)  # fmt: skip
KINDS = ("teacache", "magcache", "easycache")


def conditioning(frames=9):
    return Conditioning(
        references=recipes.tensor("in.image", (1, 3, 32, 48), 5, 0.4).clamp(-1, 1),
        text_embeds=[recipes.tensor("in.text_embeds", (7, 48), 5)],
        negative_text_embeds=recipes.tensor("in.negative", (5, 48), 5),
        image_embeds=recipes.tensor("in.image_embeds", (1, 257, 1280), 5),
        audio=[recipes.tensor("in.audio", (frames, *FEATURE), 5)],
        silence=recipes.tensor("in.silence", (1, *FEATURE), 5),
        num_frames=frames,
    )


def sample(models, settings, frames=9, **options):
    return list(run_windows(*models, conditioning(frames), settings, 7, **options))


class Counted:
    """Counts the blocks of a model that run, and can run out of memory at chosen ones."""

    def __init__(self, model, monkeypatch, failures=()):
        self.runs, self.failures = [], list(failures)
        for index, block in enumerate(model.blocks):
            monkeypatch.setattr(block, "forward", self._watch(index, block.forward))

    def _watch(self, index, forward):
        def run(*args):
            self.runs.append(index)
            if self.failures and len(self.runs) == self.failures[0]:
                self.failures.pop(0)
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return forward(*args)

        return run


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scales", [(1.0, 1.0), (1.0, 3.0), (4.0, 3.0)])
def test_a_high_threshold_skips_and_keeps_passes_apart(models, monkeypatch, kind, scales):
    """Everything that may be skipped is: what is left are whole steps, with every pass of them."""
    settings = replace(SETTINGS, guidance_scale=scales[0], audio_guidance_scale=scales[1])
    passes = 1 + sum(scale != 1 for scale in scales)
    monkeypatch.setitem(TEACACHE_POLYNOMIALS, "480", (0.0,))  # random weights move more than trained ones
    counted = Counted(models[0], monkeypatch)
    exact = sample(models, settings)[0].latents
    everything = len(counted.runs)
    counted.runs.clear()
    cache = StepCache(kind, 100.0, start_step=3, end_step=6, max_skips=100)
    cached = sample(models, replace(settings, step_cache=cache))[0].latents
    assert everything == 8 * passes * len(models[0].blocks)
    assert len(counted.runs) == 5 * passes * len(models[0].blocks)
    assert cached.isfinite().all() and not torch.equal(cached, exact)
    assert (cached - exact).abs().mean() < exact.abs().mean()


@pytest.mark.parametrize("kind", KINDS)
def test_a_threshold_of_nothing_changes_nothing(models, kind):
    exact, cached = (
        sample(models, replace(SETTINGS, audio_guidance_scale=3.0, step_cache=cache))[0].latents
        for cache in (None, StepCache(kind, 1e-6))
    )
    assert torch.equal(exact, cached)


def test_a_cache_that_skips_nothing_changes_nothing_where_steps_have_their_own_scales(models):
    settings = replace(SETTINGS, steps=6, guidance_scale=(1.0, 3.0), apg=Apg(0.5, 0.0))
    cached = replace(settings, step_cache=StepCache("magcache", 3.0, start_step=9))
    assert torch.equal(sample(models, settings)[0].latents, sample(models, cached)[0].latents)


@pytest.mark.parametrize("kind", KINDS)
def test_windows_start_afresh(models, kind):
    """The second of two windows is what it would be with a cache that never saw the first one."""
    settings = replace(SETTINGS, step_cache=StepCache(kind, 0.3, max_skips=2))
    both = sample(models, settings, 13)
    again = sample(models, settings, 13)
    assert len(both) == 2 and torch.equal(both[1].latents, again[1].latents)


@pytest.mark.parametrize("kind", KINDS)
def test_kept_in_host_memory_is_the_same(models, kind):
    results = [
        sample(models, replace(SETTINGS, step_cache=StepCache(kind, 0.5, offload=offload)))[0].latents
        for offload in (False, True)
    ]
    assert torch.equal(*results)


def test_each_pass_reuses_its_own(models):
    """Guidance over audio survives a skipped step: the passes differ, so must what is reused."""
    cache = open_cache(StepCache("magcache", 100.0, start_step=1, max_skips=100), 8, 1)
    change = {Pass.COND: 1.0, Pass.DROP_AUDIO: -2.0}
    hidden, modulation = torch.zeros(4, 8), torch.zeros(6, 8)
    for expected in (True, False, False):
        cache.start(hidden)
        assert cache.is_computed is expected
        for which, value in change.items():
            out = cache.blocks(which, hidden, modulation, lambda x, value=value: x + value)
            assert torch.equal(out, hidden + value)


def test_few_steps_are_never_skipped(models, monkeypatch, caplog):
    counted = Counted(models[0], monkeypatch)
    with caplog.at_level(logging.INFO, "wanvideo"):
        sample(models, replace(SETTINGS, steps=4, step_cache=StepCache("teacache", 100.0)), 13)
    assert len(counted.runs) == 2 * 4 * len(models[0].blocks)
    assert [record.message for record in caplog.records].count(
        "teacache is off: none of only 4 steps can be left out."
    ) == 1


def test_magcache_rule_by_hand():
    rule = MagCacheRule(0.06, [1.0, 0.99, 0.98, 0.97, 0.96, 0.95, 0.94, 0.93], 2, 1, 7)
    # errors: 0.01; 0.01 + (1 - 0.99 * 0.98) = 0.0398; the third in a row is too many, and starts the sums afresh;
    # 0.04; 0.04 + (1 - 0.96 * 0.95) = 0.128 is too much; 0.06 is not below 0.06; the last step lies outside
    assert [rule.computes(step) for step in range(8)] == [True, False, False, True, False, True, True, True]


def test_ratios_keep_both_ends():
    assert ratios_for([1.0, 2.0, 3.0, 4.0, 5.0], 3) == [1.0, 3.0, 5.0]
    assert ratios_for([1.0, 2.0, 3.0], 5) == [1.0, 1.0, 2.0, 3.0, 3.0]
    assert ratios_for([1.0, 2.0], 1) == [2.0]


def test_easycache_measures_how_output_follows_input():
    rule, x = EasyCacheRule(0.5, 1, 9), torch.ones(4)
    assert rule.computes(0, 0 * x)
    rule.learn(10 * x)
    assert rule.computes(1, 1 * x)  # nothing is known of how the output moves
    rule.learn(13 * x)
    assert rule.ratio == pytest.approx(3.0)
    assert not rule.computes(2, 2 * x)  # 3 * 1 / 13
    assert rule.error == pytest.approx(3 / 13)
    assert not rule.computes(3, 3 * x)
    assert rule.computes(4, 4 * x)  # 9 / 13 is above 0.5
    rule.learn(31 * x)
    assert rule.ratio == pytest.approx(6.0)  # 18 over 3, since the last computed step


def test_teacache_needs_a_step_before():
    rule = TeaCacheRule(1.0, (0.0,), 0, 9)
    assert rule.computes(0, torch.ones(6)) and not rule.computes(1, torch.ones(6))


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "teacahe"}, {"threshold": 0.0}, {"threshold": float("nan")}, {"coefficients": "1080"},
        {"start_step": -1}, {"end_step": -2}, {"max_skips": 1.5},
    ],
)  # fmt: skip
def test_bad_caches_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        StepCache(**wrong)


def test_layers_are_left_out_of_passes_without_the_prompt(models, monkeypatch):
    counted = Counted(models[0], monkeypatch)
    settings = replace(SETTINGS, guidance_scale=4.0, skip_layers=SkipLayers((1,), 0.25, 0.75))
    sample(models, settings)
    assert counted.runs.count(0) == 16 and counted.runs.count(1) == 16 - 4
    counted.runs.clear()
    sample(models, replace(settings, guidance_scale=1.0))
    assert counted.runs.count(0) == counted.runs.count(1) == 8


def test_a_layer_that_is_not_there_is_refused(models):
    with pytest.raises(InputError, match="block 7; this model has the blocks 0 to 1"):
        sample(models, replace(SETTINGS, skip_layers=SkipLayers((1, 7))))
    with pytest.raises(InputError, match="skip_layers.end"):
        SkipLayers((1,), 0.0, 1.5)


@pytest.mark.parametrize("scheduler", ["unipc", "lcm"])
def test_a_retry_sees_the_same_noise(models, monkeypatch, caplog, scheduler):
    """unipc remembers steps and lcm draws noise in every one: neither may carry anything over."""
    settings = replace(SETTINGS, scheduler=scheduler, mode="multitalk", step_cache=StepCache("easycache", 0.3))
    exact = sample(models, settings, 13)
    freed = []
    Counted(models[0], monkeypatch, failures=[6, 30])
    again = sample(models, settings, 13, free_memory=lambda: freed.append(True) or True)
    assert [torch.equal(a.pixels, b.pixels) for a, b in zip(exact, again, strict=True)] == [True, True]
    assert len(freed) == 2
    assert "Window 1 ran out of device memory; again, with more blocks streaming." in caplog.messages


def test_retries_end_with_what_helps(models, monkeypatch, caplog):
    Counted(models[0], monkeypatch, failures=[3, 6, 9, 12, 15, 18])
    with pytest.raises(TalkError, match="Window 1 .* even with more blocks streaming and a tiled VAE: CUDA"):
        sample(models, SETTINGS, free_memory=lambda: True)
    assert len(caplog.messages) == 5 and caplog.messages[1].endswith("with a tiled VAE.")


def test_without_streaming_the_vae_is_tiled_and_stays_so(models, monkeypatch, caplog):
    calls, decode = [], models[1].decode

    def fails_once(latents, tiling=None):
        calls.append(tiling is not None)
        if len(calls) == 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return decode(latents, tiling=tiling)

    monkeypatch.setattr(models[1], "decode", fails_once)
    assert len(sample(models, SETTINGS, 13, free_memory=lambda: False)) == 2
    assert calls == [False, True, False, True, False] and len(caplog.messages) == 1  # tiles are decoded by decode
