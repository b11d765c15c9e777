"""The engine on a GPU: the CPU's video, wherever its weights are, and encoders that do not fit."""

from dataclasses import replace

import pytest
import torch
from support import jobs

from wanvideo import TalkingVideoPipeline
from wanvideo.engine import encoders
from wanvideo.engine.encoders import encode_text
from wanvideo.memory.residency import module_bytes
from wanvideo.ops.linear.formats import FORMATS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
PROMPTS = ("She talks.", "Two people talk to each other about the weather of the next days.")


def options(**changes):
    return replace(jobs.OPTIONS, device="cuda", **changes)


def video(pipeline, folder, **changes):
    return torch.cat([window.frames for window in pipeline.run(jobs.request(folder, **changes))]).float()


def test_float32_frames_are_the_cpu_s(tmp_path):
    here, there = (
        video(TalkingVideoPipeline(jobs.official_files(), each), tmp_path) for each in (options(), jobs.OPTIONS)
    )
    assert here.std() > 1
    assert (here - there).abs().mean() < 0.25  # of 255: sums are made in another order


@pytest.mark.parametrize(
    "changes", [{"dtype": "bf16"}, {"dtype": "fp16"}, {"quantize": "fp8"}, {"quantize": "int8"}], ids=str
)
@pytest.mark.parametrize("adapter", ["single", "multi"])
def test_blocks_that_stream_change_no_frame(tmp_path, changes, adapter):
    sounds = [jobs.speech(tmp_path), jobs.speech(tmp_path, name="b.wav", frequency=300.0)][: 1 + (adapter == "multi")]
    files, shown = jobs.official_files(adapter, loras=()), []
    for num_streamed in (0, 1, 2):
        pipeline = TalkingVideoPipeline(files, options(blocks_to_stream=num_streamed, **{"dtype": "bf16"} | changes))
        shown.append(video(pipeline, tmp_path, sounds=sounds))
        residency = pipeline.engine.residency
        assert residency.num_streamed == num_streamed
        if num_streamed == 0:
            assert all(tensor.is_cuda for tensor in residency.model.parameters())
            assert residency.device_bytes >= module_bytes(residency.model)
        assert torch.equal(video(pipeline, tmp_path, sounds=sounds), shown[-1])  # and once more with what is there
    assert shown[0].std() > 1 and all(torch.equal(frames, shown[0]) for frames in shown[1:])


@pytest.mark.parametrize("name", ["fp8", "int8", "fp4"])
def test_weights_are_quantized_to_the_same_bits_on_both_devices(name):
    weight = torch.randn(512, 448, generator=torch.Generator().manual_seed(0)).bfloat16()
    there, here = (FORMATS[name].quantize(weight.to(device)) for device in ("cuda", "cpu"))
    assert all(torch.equal(there[key].cpu().view(torch.uint8), here[key].view(torch.uint8)) for key in here)


def test_weights_that_are_there_count_as_the_run_s_own(tmp_path):
    pipeline = TalkingVideoPipeline(jobs.official_files(), options(dtype="bf16"))
    video(pipeline, tmp_path)
    engine = pipeline.engine
    held = engine.residency.device_bytes + engine._vae.device_bytes
    assert engine._here(lambda: 0).free_bytes == held > 0


def test_a_text_encoder_without_room_streams_and_says_the_same(monkeypatch):
    pipeline = TalkingVideoPipeline(jobs.official_files(), options())
    handle, tokenizer = pipeline.encoders.for_prompts()
    whole = encode_text(handle, tokenizer, PROMPTS)
    monkeypatch.setattr(handle.host, "obtainable_bytes", lambda: 0)
    monkeypatch.setattr(encoders, "free_device_bytes", lambda device: 0)
    streamed = encode_text(handle, tokenizer, PROMPTS)
    on_cpu = encode_text(handle, tokenizer, PROMPTS, on_cpu=True)
    assert all(torch.equal(a, b) for a, b in zip(whole, streamed, strict=True))
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(whole, on_cpu, strict=True))


def test_a_lora_and_a_second_run_on_the_device(tmp_path):
    from wanvideo.request import LoraFile

    plain = TalkingVideoPipeline(jobs.official_files(), options(dtype="bf16"))
    files = jobs.official_files(loras=(LoraFile(jobs.lora_file(), 0.8),))
    resident, streamed = (
        video(TalkingVideoPipeline(files, options(dtype="bf16", blocks_to_stream=count)), tmp_path) for count in (0, 2)
    )
    assert torch.equal(resident, streamed) and not torch.equal(resident, video(plain, tmp_path))
