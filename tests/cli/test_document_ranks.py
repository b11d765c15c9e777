"""What the users' documents run on several GPUs, as it is written there, on as many ranks of this machine's CPU."""

import contextlib
import logging
import os
from pathlib import Path

import pytest
from support import clones, documents
from support.ranks import start_ranks

from wanvideo.cli import generate
from wanvideo.cli.main import run
from wanvideo.parallel.launch import Place, free_port
from wanvideo.video.reader import probe

TINY = (
    "--device cpu --dtype fp32 --size 64x48 --frame_num 5 --motion_frame 1 --max_frame_num 5 --sample_steps 1".split()
)
SCRIPT = "generate_infinitetalk.py"
EXAMPLES = {"gpus, example 2": documents.FOUR_GPUS, "gpus, example 3": documents.EIGHT_GPUS} | {
    name: documents.short(name) for name in ("gpus, 8 GPUs", "gpus, more ring", "gpus, only ring", "gpus, less memory")
}
# Short examples that split the work as one of these does, or as the first example.
SAME = {"speed, 4 GPUs": documents.FOUR_GPUS, "gpus, 4 GPUs": documents.FOUR_GPUS, "gpus, 2 GPUs": documents.TWO_GPUS,
        "gpus, mixed": documents.EIGHT_GPUS}  # fmt: skip


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    with pytest.MonkeyPatch.context() as changed:
        yield clones.with_heads(tmp_path_factory.mktemp("heads"), changed)


def launched(clone, script):
    """The ranks that a document's torchrun starts, and the program's arguments."""
    (command,) = documents.arguments_of(script, clone)
    at = command.index(SCRIPT)
    assert command[0] == "torchrun" and set(command[1:at]) <= {command[1], "--standalone"}
    return int(command[1].removeprefix("--nproc_per_node=")), command[1:at], command[at + 1 :]


def rank(number, world, port, folder, arguments):
    """One rank: its exit code, and what it says, in files."""
    os.environ.update(Place(number, world, number).environment("127.0.0.1", port))
    os.chdir(folder.clone)
    logging.getLogger().handlers.clear()  # pytest's
    with (folder.out / f"{number}.txt").open("w") as said, contextlib.redirect_stdout(said):
        with contextlib.redirect_stderr(said):
            code = run(generate.main, arguments)
    (folder.out / f"{number}.code").write_text(str(code))


class Folders:
    def __init__(self, clone, out):
        self.clone, self.out = clone, out


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_layout_of_the_documents_makes_a_video(clone, tmp_path, name):
    world, _, arguments = launched(clone, EXAMPLES[name])
    arguments += [*TINY, "--save_file", str(tmp_path / "talk")]
    start_ranks(world, rank, world, free_port(), Folders(clone, tmp_path), arguments)
    said = [(tmp_path / f"{number}.txt").read_text() for number in range(world)]
    assert [(tmp_path / f"{number}.code").read_text() for number in range(world)] == ["0"] * world, said
    assert f"{world} GPUs: " in said[0] and said[0].splitlines()[-1] == str(tmp_path / "talk.mp4")
    info = probe(tmp_path / "talk.mp4")
    assert info.frames == 5 and (info.width, info.height) == (64, 48) and info.audio_channels == 1


@pytest.mark.parametrize("name", SAME)
def test_the_other_examples_split_the_work_as_those_do(clone, monkeypatch, name):
    monkeypatch.chdir(clone)
    split = []
    for script in (documents.short(name), SAME[name]):
        world, _, arguments = launched(clone, script)
        for key, value in Place(0, world, 0).environment("127.0.0.1", 1).items():
            monkeypatch.setenv(key, value)
        job = generate.read_job(arguments)
        split.append((world, job.ranks.ulysses, job.ranks.ring, job.request.settings.steps, job.request.speakers))
    assert split[0] == split[1]


def test_heads_that_do_not_divide_are_named(clone, tmp_path, monkeypatch, capsys):
    """The document's "--ulysses_size=5"; the 14B model has 40 heads, which 5 divides, this one has eight."""
    _, _, arguments = launched(clone, documents.short("gpus, 4 GPUs").replace("ulysses_size=4", "ulysses_size=5"))
    monkeypatch.chdir(clone)
    for name, value in Place(0, 5, 0).environment("127.0.0.1", free_port()).items():
        monkeypatch.setenv(name, value)
    assert run(generate.main, [*arguments, *TINY]) == 2
    assert "ulysses_size 5" in (said := capsys.readouterr().err) and "1, 2, 4, 8" in said


def test_torchrun_itself_starts_the_first_example(clone, tmp_path):
    _, flags, arguments = launched(clone, documents.TWO_GPUS)
    done = documents.torchrun([*flags, SCRIPT, *arguments, *TINY, "--save_file", str(tmp_path / "talk")], clone)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == str(tmp_path / "talk.mp4") and probe(Path(done.stdout.strip())).frames == 5
