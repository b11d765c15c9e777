"""Job files of a batch: three forms, and everything that is wrong with them at once."""

import json
from pathlib import Path

import pytest

from wanvideo.errors import InputError
from wanvideo.fleet.jobs import read_entries

JOB = {"prompt": "She talks.", "cond_video": "face.png", "cond_audio": {"person1": "speech.wav"}}
OUT = Path("out")


def written(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def lines(*jobs):
    return "\n\n".join(json.dumps(job) for job in jobs)


def test_lines_lists_and_folders_are_the_same_jobs(tmp_path):
    jobs = [JOB, {**JOB, "prompt": "He talks."}]
    folder = tmp_path / "folder"
    folder.mkdir()
    for number, job in enumerate(jobs):
        written(folder / f"{number}.json", json.dumps(job))
    for path in (
        written(tmp_path / "a.jsonl", lines(*jobs)), written(tmp_path / "b.json", json.dumps(jobs)), folder,
    ):  # fmt: skip
        entries, problems = read_entries(path, OUT)
        assert [entry.job for entry in entries] == jobs and not problems
        assert len({entry.output for entry in entries}) == 2
        assert all(entry.output.parent == OUT and entry.output.suffix == ".mp4" for entry in entries)


def test_a_job_has_a_name_an_output_and_flags_of_its_own(tmp_path):
    flags = {"base_seed": 7, "lora_dir": ["a", "b"], "use_apg": True, "quant": None}
    path = written(tmp_path / "a.jsonl", lines({**JOB, "name": "a/b c", "output": "x/y", "flags": flags}))
    ((entry,), _) = read_entries(path, OUT)
    assert (entry.name, entry.output, entry.job) == ("a_b_c", Path("x/y.mp4"), JOB)
    assert entry.arguments == ["--base_seed", "7", "--lora_dir", "a", "b", "--use_apg", "true"]


def test_everything_that_is_wrong_is_said_with_its_place(tmp_path):
    text = "\n".join(('{"prompt": ', "[]", lines({**JOB, "flags": []}), lines({**JOB, "name": "n"}),
                      lines({**JOB, "name": "n", "output": "other.mp4"})))  # fmt: skip
    entries, problems = read_entries(written(tmp_path / "a.jsonl", text), OUT)
    assert len(entries) == 2 and len(problems) == 4
    for number, problem in enumerate(problems[:3], 1):
        assert problem.startswith(f"{tmp_path / 'a.jsonl'}, line {number}"), problem
    assert "line 4" in problems[3] and "line 5" in problems[3] and "the name n" in problems[3]


def test_one_file_is_one_job_s_whatever_its_path_and_a_name_fits_its_log(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    outputs = ("real/a.mp4", "real/../real/a.mp4", "link/a.mp4", "real/b.mp4")
    text = lines(*({"name": str(n), "output": str(tmp_path / output)} for n, output in enumerate(outputs)))
    entries, problems = read_entries(written(tmp_path / "a.jsonl", text), OUT)
    assert len(entries) == 4 and len(problems) == 1 and "3 jobs have the output" in problems[0]
    names = written(tmp_path / "b.jsonl", lines({"name": "\u8bf4" * 83}, {"name": "\u8bf4" * 84}))
    entries, problems = read_entries(names, OUT)
    assert len(entries) == 1 and len(problems) == 1 and "has 252 bytes in UTF-8" in problems[0]


def test_an_output_is_an_mp4(tmp_path):
    outputs = ("a", "b.MP4", "take_1.5", "c.avi")
    entries, problems = read_entries(written(tmp_path / "a.jsonl", lines(*({"output": out} for out in outputs))), OUT)
    assert [str(entry.output) for entry in entries] == ["a.mp4", "b.MP4", "take_1.5.mp4"]
    assert len(problems) == 1 and """line 7: "output" 'c.avi' ends with .avi""" in problems[0]


@pytest.mark.parametrize("text", ["", "[]", "\n"])
def test_a_file_without_jobs_is_refused(tmp_path, text):
    with pytest.raises(InputError):
        read_entries(written(tmp_path / "a.jsonl" if text != "[]" else tmp_path / "a.json", text), OUT)
    with pytest.raises(InputError):
        read_entries(tmp_path / "missing.jsonl", OUT)
