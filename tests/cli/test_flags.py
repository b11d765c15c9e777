"""Flags and job files as users of the reference script have them, read into a request; no model is touched."""

import json
from pathlib import Path

import pytest
from support.speech import install_kokoro

from wanvideo.cli.flags import build_parser
from wanvideo.cli.generate import read_job
from wanvideo.cli.main import main, run
from wanvideo.cli.parser import yes_or_no
from wanvideo.errors import InputError, TalkError, UnsupportedError
from wanvideo.keep import Camera, Keep
from wanvideo.lora.few_steps import few_steps_of
from wanvideo.parallel.layout import WantedRanks
from wanvideo.request import Apg, Speaker, draw_seed

JOB = {"prompt": "She talks.", "cond_video": "face.png", "cond_audio": {"person1": "speech.wav"}}
BASE = ["--ckpt_dir", "weights/Wan2.1-I2V-14B-480P", "--wav2vec_dir", "weights/chinese-wav2vec2-base"]


@pytest.fixture
def read(tmp_path):
    def read(*flags, job=JOB, base=BASE):
        path = tmp_path / "job.json"
        path.write_text(json.dumps(job, ensure_ascii=False), encoding="utf-8")
        return read_job([*base, "--input_json", str(path), *flags])

    return read


def test_defaults_are_the_reference_script_s(read):
    job = read()
    settings, request = job.request.settings, job.request
    assert (settings.mode, settings.window_frames, settings.motion_frames) == ("infinitetalk", 81, 9)
    assert (settings.scheduler, settings.steps, settings.shift) == ("multitalk", 40, 7.0)
    assert (settings.guidance_scale, settings.audio_guidance_scale) == (5.0, 4.0)
    assert (settings.color_match, settings.color_strength) == ("lab", 1.0)
    assert settings.apg is None and settings.step_cache is None
    assert (request.size, request.seed, request.max_frames, request.fps) == ("infinitetalk-480", 42, 81, 25.0)
    assert job.files.transformer == job.files.folder == "weights/Wan2.1-I2V-14B-480P"
    assert not job.overwrite and job.options.text_encoder_device is None


REFERENCE = (
    "task size frame_num max_frame_num ckpt_dir infinitetalk_dir quant_dir wav2vec_dir dit_path lora_dir lora_scale "
    "offload_model ulysses_size ring_size t5_fsdp t5_cpu dit_fsdp save_file audio_save_dir base_seed input_json "
    "motion_frame mode sample_steps sample_shift sample_text_guide_scale sample_audio_guide_scale "
    "num_persistent_param_in_dit audio_mode use_teacache teacache_thresh use_apg apg_momentum apg_norm_threshold "
    "color_correction_strength scene_seg quant"
).split()


def test_every_flag_of_the_reference_is_there_with_its_default():
    flags = vars(build_parser("generate").parse_args([]))
    assert set(REFERENCE) <= set(flags)
    given = {name: flags[name] for name in REFERENCE if flags[name] not in (None, False, [])}
    assert given == {
        "task": "infinitetalk-14B", "size": "infinitetalk-480", "frame_num": 81, "lora_scale": [1.2], "ulysses_size": 1,
        "ring_size": 1, "audio_save_dir": "save_audio", "base_seed": 42, "input_json": "examples.json", "mode": "clip",
        "sample_text_guide_scale": 5.0, "sample_audio_guide_scale": 4.0, "audio_mode": "localfile",
        "teacache_thresh": 0.2, "apg_momentum": -0.75, "apg_norm_threshold": 55.0, "color_correction_strength": 1.0,
    }  # fmt: skip


def test_every_flag_of_a_full_command_line_arrives(read):
    job = read(
        "--infinitetalk_dir", "weights/single/infinitetalk.safetensors", "--size", "infinitetalk-720",
        "--sample_steps", "8", "--sample_shift", "2", "--sample_text_guide_scale", "1.0",
        "--sample_audio_guide_scale", "2.0", "--mode", "streaming", "--frame_num", "117", "--max_frame_num", "7500",
        "--motion_frame", "25", "--base_seed", "7", "--save_file", "talk", "--use_apg", "--apg_momentum", "-0.5",
        "--apg_norm_threshold", "30", "--use_teacache", "--teacache_thresh", "0.3", "--color_correction_strength",
        "0.8", "--color_match", "mkl", "--scheduler", "unipc", "--dtype", "fp16", "--device", "cpu", "--overwrite",
        "--audio_save_dir", "scratch", "--offload_model", "true", "--task", "infinitetalk-14B",
        "--ulysses_size", "1", "--ring_size", "1", "--audio_mode", "localfile",
    )  # fmt: skip
    settings, request = job.request.settings, job.request
    assert (settings.steps, settings.shift, settings.guidance_scale, settings.audio_guidance_scale) == (8, 2.0, 1.0, 2)
    assert (settings.window_frames, settings.motion_frames, request.max_frames, request.seed) == (117, 25, 7500, 7)
    assert settings.apg == Apg(-0.5, 30.0) and settings.color_strength == 0.8 and settings.color_match == "mkl"
    assert (settings.step_cache.threshold, settings.step_cache.coefficients) == (0.3, "720")
    assert settings.scheduler == "unipc" and request.output == "talk.mp4" and job.overwrite
    assert job.options.device == "cpu" and job.options.dtype == "fp16"
    assert job.files.adapter == "weights/single/infinitetalk.safetensors"


@pytest.mark.parametrize(
    ("flags", "device"),
    [([], None), (["--t5_cpu"], "cpu"), (["--t5_cpu", "true"], "cpu"), (["--t5_cpu", "False"], None),
     (["--t5_cpu", "--dtype", "fp32"], "cpu")],
)  # fmt: skip
def test_t5_cpu_with_and_without_a_value(read, flags, device):
    assert read(*flags).options.text_encoder_device == device


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("YES", True), ("1", True), ("f", False), ("off", False), ("No", False)]
)
def test_yes_and_no(text, value):
    assert yes_or_no(text) is value


@pytest.mark.parametrize(
    ("size", "shift"), [("infinitetalk-480", 7.0), ("infinitetalk-720", 11.0), ("832x480", 7.0), ("1280x720", 11.0)]
)
def test_the_shift_follows_the_resolution(read, size, shift):
    assert read("--size", size).request.settings.shift == shift
    assert read("--size", size, "--sample_shift", "3").request.settings.shift == 3.0


def test_multitalk_is_a_mode_and_shares_more_frames(read):
    settings = read("--task", "multitalk-14B").request.settings
    assert (settings.mode, settings.motion_frames) == ("multitalk", 25)


def test_motion_frame_15_is_13_and_said_once(read, caplog):
    caplog.set_level("INFO", logger="wanvideo")
    assert read("--motion_frame", "15").request.settings.motion_frames == 13
    assert caplog.text.count("motion_frame 15 is not 4n + 1: 13 is used.") == 1
    caplog.clear()
    read("--motion_frame", "13")
    assert "motion_frame" not in caplog.text


def test_loras_share_a_strength_or_have_their_own(read):
    one = read("--lora_dir", "a.safetensors", "b.safetensors", "--lora_scale", "0.8").files.loras
    assert [(lora.path, lora.strength) for lora in one] == [("a.safetensors", 0.8), ("b.safetensors", 0.8)]
    own = read("--lora_dir", "a.safetensors", "b.safetensors", "--lora_scale", "0.8", "0.5").files.loras
    assert [lora.strength for lora in own] == [0.8, 0.5]
    assert [lora.strength for lora in read("--lora_dir", "a.safetensors").files.loras] == [1.2]
    with pytest.raises(InputError, match="2 LoRA files have 3 strengths"):
        read("--lora_dir", "a.safetensors", "b.safetensors", "--lora_scale", "1", "2", "3")


@pytest.mark.parametrize(
    "prompt",
    ["Una mujer con gafas canta en un café, ¡qué alegría!", "一位女士面带微笑地对着镜头说话。", "женщина 🎤 говорит"],
)
def test_prompts_in_any_language(read, prompt):
    job = read(job={**JOB, "prompt": prompt})
    assert job.request.prompts == (prompt,)
    name = job.request.output
    assert name.endswith(".mp4") and prompt.split()[0][:4] in name and "/" not in name and len(name.encode()) < 250


def test_a_job_saved_by_windows_notepad(tmp_path):
    path = tmp_path / "trabajo.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({**JOB, "prompt": "Habla."}).encode())
    assert read_job([*BASE, "--input_json", str(path)]).request.prompts == ("Habla.",)


def test_two_people(read):
    boxes = {"person1": [160, 120, 1280, 1080], "person2": [160, 1320, 1280, 2280]}
    sounds = {"person2": "two.wav", "person1": "None"}
    request = read(job={**JOB, "cond_audio": sounds, "bbox": boxes, "audio_type": "add"}).request
    assert request.speakers == (Speaker(None, (160, 120, 1280, 1080)), Speaker("two.wav", (160, 1320, 1280, 2280)))
    assert request.audio_type == "add"


def test_multitalk_jobs_name_their_picture_cond_image(read):
    job = {"prompt": "p", "cond_image": "face.png", "cond_audio": {}}
    assert read(job=job).request.reference == "face.png" and read(job=job).request.speakers == ()


def test_a_random_seed_is_asked_for_with_a_negative_one(read):
    assert read("--base_seed", "-1").request.seed is None
    seeds = {draw_seed() for _ in range(5)}
    assert len(seeds) > 1 and all(0 <= seed < 100_000_000 for seed in seeds)


def test_the_whole_transformer_may_be_one_file(read):
    files = read("--dit_path", "merged.pt").files
    assert files.transformer == "merged.pt" and files.folder == BASE[1]


def test_a_source_video_is_dubbed_cut_and_continued_as_flags_say(read):
    request = read().request
    assert (request.keep, request.scene_seg, request.source_end) == (None, False, "hold")
    request = read("--dub", "mask.png", "--dub_feather", "4", "--scene_seg", "--source_end", "ping-pong").request
    assert request.keep == Keep("mask.png", feather=4) and request.scene_seg and request.source_end == "ping-pong"
    assert read("--scene_seg", "false").request.scene_seg is False and not request.voice_activity
    assert read("--dub", "auto").request.keep == Keep(mouth="auto")
    assert read("--voice_activity").request.voice_activity


def test_re_anchoring_is_as_the_flag_says_and_else_the_job(read):
    assert read().request.settings.reanchor == 0 and read("--reanchor", "20").request.settings.reanchor == 20
    job = {**JOB, "reanchor": 5}
    assert read(job=job).request.settings.reanchor == 5
    assert read("--reanchor", "0", job=job).request.settings.reanchor == 0
    with pytest.raises(InputError, match="--reanchor -1 is not usable"):
        read("--reanchor", "-1")
    with pytest.raises(InputError, match="--reanchor 2 does not go with multitalk mode"):
        read("--reanchor", "2", "--task", "multitalk-14B")


def test_a_camera_and_the_file_s_quality_are_as_flags_say(read):
    request = read().request
    assert request.camera is None and request.crf is None and request.file_crf == 18
    assert read("--dub", "auto").request.file_crf == 6 and read("--dub", "auto", "--crf", "4").request.file_crf == 4
    assert read("--camera", "1.1").request.camera == Camera(1.1)
    moved = read("--camera", "1.2", "--camera_pan", "1", "-0.5", "--camera_period", "20").request.camera
    assert moved == Camera(1.2, (1.0, -0.5), 20.0)
    assert read(job={**JOB, "camera": {"zoom": 1.1, "pan": [0, 1]}}).request.camera == Camera(1.1, (0, 1))
    with pytest.raises(InputError, match="--camera_pan and --camera_period say how a camera moves. Add --camera 1.08"):
        read("--camera_period", "20")
    for flags in (["--camera", "3"], ["--crf", "52"], ["--camera_pan", "2", "0", "--camera", "1.1"]):
        with pytest.raises(InputError, match=flags[0]):
            read(*flags)


def test_a_job_may_say_what_is_made_anew(read):
    assert read(job={**JOB, "keep": {"box": [1, 2, 30, 40]}}).request.keep == Keep(box=(1, 2, 30, 40))
    with pytest.raises(InputError, match="keep has the unknown key 'boxes'. Did you mean 'box'"):
        read(job={**JOB, "keep": {"boxes": [1, 2, 30, 40]}})


SPOKEN = {**JOB, "cond_audio": {}, "tts_audio": {"text": "Hello there.", "human1_voice": "am_adam"}}


def test_text_is_spoken_into_the_folder_of_speech(read, monkeypatch, tmp_path):
    asked = install_kokoro(monkeypatch)
    monkeypatch.chdir(tmp_path)
    (speaker,) = read("--audio_mode", "tts", "--audio_save_dir", "spoken", job=SPOKEN).request.speakers
    assert Path(speaker.audio).match("spoken/*/s1.wav") and Path(speaker.audio).is_file()
    monkeypatch.setenv("WORLD_SIZE", "2")
    read("--audio_mode", "tts", "--audio_save_dir", "spoken", job=SPOKEN)
    assert asked.spoken == [("Hello there.", "am_adam")]
    with pytest.raises(UnsupportedError, match="wanvideo plan"):
        read("--audio_mode", "tts", "--audio_save_dir", "elsewhere", job=SPOKEN)


def test_what_is_wrong_is_said_before_anybody_speaks(read, monkeypatch, tmp_path):
    asked = install_kokoro(monkeypatch)
    monkeypatch.chdir(tmp_path)
    for flags, word in ((["--sample_steps", "0"], "--sample_steps"), (["--dtype", "fp64"], "fp64")):
        with pytest.raises(InputError, match=word):
            read("--audio_mode", "tts", *flags, job=SPOKEN)
    with pytest.raises(InputError, match='--audio_mode tts needs "tts_audio"'):
        read("--audio_mode", "tts")
    with pytest.raises(InputError, match="Say --audio_mode tts"):
        read(job=SPOKEN)
    assert not asked.spoken


def test_ranks_of_one_video(read, monkeypatch):
    for flags in (["--ulysses_size", "2"], ["--ring_size", "2"], ["--ulysses_size", "2", "--dit_fsdp"]):
        with pytest.raises(InputError, match="torchrun --nproc_per_node=2"):
            read(*flags)
    assert read("--dit_fsdp", "--t5_fsdp", "--parallel", "auto").ranks == WantedRanks(is_auto=True, shard=True)
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert read("--ulysses_size", "2", "--ring_size", "2").ranks == WantedRanks(2, 2)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--task", "t2v-14B"], ["t2v-14B", "infinitetalk-14B"]),
        (["--size", "833x480"], ["833", "832"]),
        (["--size", "huge"], ["huge", "infinitetalk-480"]),
        (["--frame_num", "80"], ["80", "81"]),
        (["--motion_frame", "81"], ["81", "smaller"]),
        (["--sample_steps", "0"], ["steps 0"]),
        (["--sample_steps", "-4"], ["steps -4"]),
        (["--color_correction_strength", "1.5"], ["1.5", "0 to 1"]),
        (["--sample_text_guide_scale", "nan"], ["--sample_text_guide_scale nan", "0 to 100"]),
        (["--max_frame_num", "-1", "--mode", "streaming"], ["--max_frame_num -1"]),
        (["--teacache_thresh", "0", "--use_teacache"], ["--teacache_thresh 0"]),
    ],
    ids=lambda value: "=".join(value[:2]).lstrip("-") if value[0].startswith("--") else None,
)
def test_numbers_that_make_no_sense(read, flags, words):
    with pytest.raises(TalkError) as caught:
        read(*flags)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"promt": "x", "cond_video": "a.png"}', ["promt", "prompt"]),
        ('{"prompt": "x",\n "cond_video" "a.png"}', ["line 2", "column"]),
        ("[1, 2]", ["list", "object", "python -m wanvideo batch"]),
        ('{"prompt": "x"}', ["no picture", "cond_video"]),
        ('{"prompt": "x", "cond_video": "a", "cond_audio": "b.wav"}', ["cond_audio", "object"]),
        ('{"prompt": "x", "cond_video": "a", "cond_audio": {"person1": "a", "person2": "b"}}', ["audio_type"]),
        ('{"prompt": "x", "cond_video": "a", "cond_audio": {"person1": "a"}, "bbox": {"p": [1, 2, 3, 4]}}', ["bbox"]),
        ('{"prompt": "x", "cond_video": "a", "cond_audio": {"p": "a"}, "bbox": {"p": [1, 2, 3]}}', ["four numbers"]),
        ('{"prompt": "x", "cond_video": "a", "cond_audio": {"p": "a"}, "bbox": {"p": [9, 2, 3, 4]}}', ["empty"]),
        ('{"prompt": "x", "cond_video": "a", "audio_type": "both"}', ["both", "para"]),
    ],
    ids=["typo", "syntax", "list", "picture", "sounds", "audio type", "other names", "short box", "turned box", "mix"],
)
def test_faults_of_a_job_file(tmp_path, text, words):
    path = tmp_path / "job.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_job([*BASE, "--input_json", str(path)])
    assert all(word in str(caught.value) for word in words), caught.value


def test_three_sounds_with_two_boxes(read):
    sounds = {f"person{n}": "a.wav" for n in (1, 2, 3)}
    boxes = {f"person{n}": [0, 0, 9, 9] for n in (1, 2)}
    with pytest.raises(InputError, match="Both must name the same persons"):
        read(job={**JOB, "cond_audio": sounds, "bbox": boxes, "audio_type": "para"})


def test_a_job_in_another_encoding_is_named(tmp_path):
    path = tmp_path / "gbk.json"
    path.write_bytes(json.dumps({**JOB, "prompt": "她说话"}, ensure_ascii=False).encode("gbk"))
    with pytest.raises(InputError, match=r"gbk.json is not UTF-8"):
        read_job([*BASE, "--input_json", str(path)])


def test_no_model_is_named(read):
    with pytest.raises(InputError, match="--ckpt_dir"):
        read(base=[])


# Few-step LoRAs, silent jobs

LIGHTX2V = "loras/Wan21_I2V_14B_lightx2v_cfg_step_distill_lora_rank64.safetensors"


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        (LIGHTX2V, 4), ("lightx2v_I2V_14B_480p_cfg_step_distill_rank128_bf16.safetensors", 4),
        ("C:\\loras\\Wan22-Lightning-4steps.safetensors", 4), ("some_8step_lora.safetensors", 8),
        ("Wan2.1_I2V_14B_FusionX_LoRA.safetensors", None), ("style_v14steps.safetensors", None), ("", None),
        ("Wan21_CausVid_14B_T2V_lora_rank32.safetensors", None), ("lightx2v/my_style.safetensors", None),
    ],
)  # fmt: skip
def test_few_step_loras_are_told_by_name(name, steps):
    assert few_steps_of(name) == steps


def test_a_few_step_lora_takes_the_noise_levels_that_it_was_made_for(read, caplog):
    caplog.set_level("INFO", logger="wanvideo")
    settings = read("--sample_steps", "4", "--lora_dir", LIGHTX2V, "--sample_shift", "11").request.settings
    assert (settings.scheduler, settings.steps, settings.shift) == ("flowmatch_distill", 4, 11.0)
    assert "made for 4 steps of flowmatch_distill, which is used" in caplog.text
    assert read("--lora_dir", "style.safetensors").request.settings.scheduler == "multitalk"


def test_a_few_step_lora_under_other_settings_names_the_flag_that_mends_it(read, caplog):
    caplog.set_level("WARNING", logger="wanvideo")
    assert read("--lora_dir", LIGHTX2V, "--scheduler", "multitalk").request.settings.scheduler == "multitalk"
    assert "Use --scheduler flowmatch_distill." in caplog.text and "Use --sample_steps 4." in caplog.text
    caplog.clear()
    read("--lora_dir", LIGHTX2V, "--scheduler", "lcm", "--sample_steps", "4")
    assert not caplog.text


@pytest.mark.parametrize(
    ("given", "switch"),
    [
        (["--lora_scale", "0.8"], ["--lora_dir", "style.safetensors"]),
        (["--teacache_thresh=0.2"], ["--use_teacache"]),
        (["--apg_momentum", "-0.75"], ["--use_apg"]),
        (["--apg_norm_threshold", "55"], ["--use_apg"]),
    ],
)
def test_what_changes_nothing_is_named_with_the_flag_that_it_needs(read, caplog, given, switch):
    caplog.set_level("WARNING", logger="wanvideo")
    read(*given)
    name = given[0].partition("=")[0]
    assert f"{name} changes nothing without {switch[0]}." in caplog.text
    caplog.clear()
    read(*given, *switch)
    assert not caplog.text


def test_a_silent_job_is_one_window_unless_its_length_is_said(read, caplog):
    caplog.set_level("INFO", logger="wanvideo")
    silent = {"prompt": "p", "cond_video": "face.png"}
    assert read("--mode", "streaming", job=silent).request.max_frames == 0
    assert "one window" in caplog.text and "--max_frame_num" in caplog.text
    assert read("--mode", "streaming", "--max_frame_num", "200", job=silent).request.max_frames == 200
    assert read("--mode", "streaming").request.max_frames == 1000
    assert read("--mode", "streaming", "--max_frame_num", "0").request.max_frames == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--sample_step", "4"], ["'--sample_step' is no flag", "'--sample_steps'"]),
        (["--qant=fp8"], ["'--qant=fp8' is no flag", "--quant"]),
        (["stray"], ["'stray' is no flag", "--help"]),
        (["--sample_steps", "four"], ["--sample_steps: 'four' is no whole number"]),
        (["--sample_steps", "4.5"], ["'4.5' is no whole number"]),
        (["--fps", "fast"], ["--fps: 'fast' is no number"]),
        (["--fps", "inf"], ["--fps inf", "1 to 120"]),
        (["--mode", "clips"], ["--mode 'clips'", "'clip'", "clip, streaming"]),
        (["--quant", "fp7"], ["--quant 'fp7'", "fp8, int8, fp4"]),
        (["--overwrite", "perhaps"], ["--overwrite: 'perhaps' is neither true nor false"]),
        (["--attention", "nope"], ["--attention 'nope'", "sdpa"]),
        (["--device", "meta"], ["--device 'meta'", "cuda:0 or cpu"]),
        (["--scheduler", "unipcc"], ["--scheduler 'unipcc'", "'unipc'"]),
        (["--scheduler", "deis"], ["--scheduler 'deis'", "dpm++"]),
        (["--sample_steps", "10", "--scheduler", "flowmatch_causvid"], ["--sample_steps 10", "at most 9"]),
        (["--apg_momentum", "nan"], ["--apg_momentum nan", "-1 to 1"]),
        (["--apg_norm_threshold", "inf"], ["--apg_norm_threshold inf"]),
        (["--teacache_thresh", "-1"], ["--teacache_thresh -1"]),
        (["--base_seed", str(2**64)], ["--base_seed"]),
        (["--ulysses_size", "0"], ["--ulysses_size 0"]),
        (["--num_persistent_param_in_dit", "-5"], ["--num_persistent_param_in_dit -5"]),
        (["--blocks_to_swap", "-2"], ["--blocks_to_swap -2", "-1"]),
        (["--lora_dir", "a", "--lora_scale", "nan"], ["--lora_scale nan"]),
        (["--lora_dir", ""], ["--lora_dir is an empty path"]),
        (["--save_file", "x.avi"], ["--save_file 'x.avi' ends with .avi", "Use .mp4, or no suffix."]),
        (["--save_file", "videos/"], ["--save_file 'videos/' is a folder", "Name the video in it."]),
        (["--save_file", "a\0b"], ["--save_file", "'\\x00'"]),
        (["--vae_path", "\ud800"], ["--vae_path", "'\\ud800'"]),
        (["--input_json", ""], ["--input_json", "empty path"]),
        (["--preset", "balance"], ["'balance'", "03_balanced"]),
        (["--preset"], ["--preset: expected one argument"]),
    ],
    ids=lambda value: " ".join(map(ascii, value))[:40] if value[0].startswith(("--", "stray")) else "",
)
def test_wrong_flags_are_one_sentence_that_names_them(read, flags, words):
    with pytest.raises(TalkError) as caught:
        read(*flags)
    assert all(word in str(caught.value) for word in words), caught.value


# The program around the commands


@pytest.mark.parametrize(
    "arguments",
    [
        ["bench", "--size", "huge"], ["bench", "--steps", "0"], ["bench", "--device", "meta"],
        ["bench", "--frames", "80"],
        ["bench", "--attention", "nope"], ["bench", "--video", "infinitetalk-480"], ["bench", "--blocks_to_swap", "-3"],
        ["convert", "--to", "fp7"], ["convert"], ["demo", "--tow"], ["make-models", "--seed", "-1", "--out", "x"],
        ["make-models", "--seed", "x", "--out", "x"], ["plan", "--memory_gb", "nan"], ["presets", "nope"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_every_command_answers_wrong_flags(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    extra = ["--device", "cpu"] if arguments[0] == "bench" and "--device" not in arguments else []
    assert main([*arguments, *extra]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") <= 3 and "Traceback" not in message
    assert not list(tmp_path.iterdir())


def test_help_is_no_error(capsys):
    for command in ("generate", "plan", "bench", "convert"):
        with pytest.raises(SystemExit) as caught:
            main([command, "--help"])
        assert caught.value.code == 0 and "--" in capsys.readouterr().out


def test_what_nobody_thought_of_is_told_without_a_traceback(capsys):
    def breaks(arguments):
        raise KeyError("x")

    assert run(breaks, []) == 1
    message = capsys.readouterr().err
    assert "KeyError: 'x'" in message and "test_flags.py, line" in message and "Traceback" not in message


def test_help_lists_every_command(capsys):
    from wanvideo.cli.main import COMMANDS

    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)


def test_unknown_commands_name_the_known_ones(capsys):
    assert main(["genrate"]) == 2
    assert "generate" in capsys.readouterr().err


def test_errors_are_messages_and_interrupts_are_quiet(capsys):
    def fails(arguments):
        raise InputError("The size is wrong.\nUse another.")

    def stopped(arguments):
        raise KeyboardInterrupt

    assert run(fails, []) == 2
    assert capsys.readouterr().err == "error: The size is wrong.\nUse another.\n"
    assert run(stopped, []) == 130
    assert "Traceback" not in capsys.readouterr().err
