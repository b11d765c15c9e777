"""Command lines and job files of batches of tiny videos."""

import json

from support import jobs

from wanvideo.synthetic.models import SPEECH, WAN

SMALL = (
    "--device", "cpu", "--dtype", "fp32", "--size", "48x48", "--frame_num", "13", "--motion_frame", "5", "--mode",
    "streaming", "--scheduler", "euler", "--sample_steps", "2", "--sample_shift", "7", "--sample_audio_guide_scale",
    "1.0", "--sample_text_guide_scale", "1.0",
)  # fmt: skip


def model_flags(adapter="single"):
    models = jobs.official()
    return (
        "--ckpt_dir", str(models / WAN), "--wav2vec_dir", str(models / SPEECH),
        "--infinitetalk_dir", str(models / "InfiniteTalk" / adapter / "infinitetalk.safetensors"),
    )  # fmt: skip


def job_file(folder, *changes):
    job = {"prompt": "She talks.", "cond_video": jobs.picture(folder),
           "cond_audio": {"person1": jobs.speech(folder, 1.0)}}  # fmt: skip
    path = folder / "jobs.jsonl"
    path.write_text("\n".join(json.dumps({**job, **change}) for change in changes), encoding="utf-8")
    return str(path)
