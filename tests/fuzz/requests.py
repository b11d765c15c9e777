"""Requests: settings, requests as JSON, job files, flags and presets, with wrong values of every type and size."""

import copy
import json
import math
from dataclasses import fields
from pathlib import Path

from support import jobs, media_files

from wanvideo.cli.flags import build_parser
from wanvideo.cli.generate import read_job
from wanvideo.engine.inputs import open_inputs
from wanvideo.ops.attention.backends import known
from wanvideo.presets import load_preset, preset_names
from wanvideo.request import (
    Apg,
    EngineOptions,
    LoopSettings,
    LoraFile,
    ModelFiles,
    SkipLayers,
    Speaker,
    StepCache,
    TalkRequest,
)
from wanvideo.sampling.setup import SamplingSetup

NAMES = (
    "", " ", "nope", "None", "null", "single", "para", "add", "unipc", "multitalk", "flowmatch_causvid/beta", "cpu",
    "cuda:99", "meta", "infinitetalk-480", "832x480", "0x0", "48x48", "99999x16", "²x²", "١٦x١٦", "9" * 5000, "fp8",
    "a\0b", "\ud800", "\udcff.png", "a" * 300, "long " * 40_000, "../../x", "C:\\Users\\me\\a.wav", "\\\\host\\a", "~",
    "~nobody/x", "/dev/zero", "/dev/stdin", "/proc/self/mem", ".", "/", "file:///etc/passwd", "http://[::1", "🎤", "\n",
    "a\r\nb", "%s%n", "{}", "-1", "nan", "1e999", "0x10", "1_000", "\ufeff", "*", "?", "'\"", "-", "--", "--size",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 3, 4, 5, 8, 9, 13, 16, 17, 40, 81, 1000, 1001, 2**31, 2**63, 2**64 - 1, 2**64, -(2**63), 10**30,
    10**400, -(10**400), 0.0, -0.0, 0.5, 1.0, -1.0, 1.5, 25.0, 1e-320, 1e30, 1e308, math.nan, math.inf, -math.inf,
)  # fmt: skip
OTHERS = (None, True, False, [], {}, [1], [None], ["a"], [[1]], {"a": 1}, {"person1": None}, [0.9, 0.5, 0.1], [1, 1, 0])
PYTHON_ONLY = (
    b"bytes", {1, 2}, 1j, object(), int, len, Path("a.png"), (1,), (1, 2), (16, 16), (0.9, 0.4), (), {1: 2}, range(3),
    (Speaker(None),), LoopSettings(steps=2), Apg(), StepCache(), SkipLayers((1,)), ("a", None), (True,), ("a", "\0"),
)  # fmt: skip
CLASSES = (
    Speaker, Apg, StepCache, SkipLayers, LoopSettings, LoraFile, ModelFiles, EngineOptions, TalkRequest,
)  # fmt: skip
NEEDED = {
    Speaker: {"audio": None}, SkipLayers: {"blocks": (1,)}, LoraFile: {"path": "a.safetensors"},
    ModelFiles: {"transformer": "a.safetensors"},
}  # fmt: skip


def value(random):
    return random.choice(random.choice((NAMES, NUMBERS, OTHERS)))


def cases(random, folder):
    """Settings, JSON, jobs, flags and presets in turn; see the package."""
    media = Media(folder)
    makers = (settings_case, json_case, job_case, text_case, flags_case, flags_case, preset_case)
    number = 0
    while True:
        for make in makers:
            number += 1
            yield make(random, media, folder / f"{number}.json")


class Media:
    """A picture and two sounds, written when a family begins."""

    def __init__(self, folder):
        self.picture = jobs.picture(folder, 64, 48)
        self.sounds = [jobs.speech(folder, 0.3, f"{n}.wav") for n in (1, 2)]
        self.silent = str(media_files.wav(folder / "silent.wav", jobs.np.zeros((4000, 1), "float32"), 16000))

    def request(self, random):
        sounds = random.choice(([], self.sounds[:1], self.sounds, [self.sounds[0], None], [None], [self.silent]))
        return TalkRequest(
            ("She talks.",), self.picture, tuple(Speaker(sound) for sound in sounds), size=(48, 48),
            audio_type=random.choice(("para", "add")), settings=jobs.SETTINGS,
        )  # fmt: skip

    def job(self, random):
        people = random.choice(({}, {"person1": self.sounds[0]}, dict(zip(("woman", "man"), self.sounds, strict=True))))
        boxes = dict(zip(people, ([0, 0, 40, 30], [0, 32, 40, 62]), strict=False))
        return {
            "prompt": random.choice(("She talks.", ["one", "two"])), "cond_video": self.picture, "cond_audio": people,
            **({"audio_type": random.choice(("para", "add"))} if len(people) > 1 or random.random() < 0.3 else {}),
            **({"bbox": boxes} if random.random() < 0.5 else {}),
        }  # fmt: skip


def settings_case(random, media, path):
    kind = random.choice(CLASSES)
    names = [item.name for item in fields(kind)]
    wrong = {random.choice(names): random.choice((value(random), random.choice(PYTHON_ONLY))) for _ in range(2)}
    needed = vars(media.request(random)) if kind is TalkRequest else NEEDED.get(kind, {})

    def call():
        made = kind(**{**needed, **wrong})
        if kind is LoopSettings:
            SamplingSetup.of(made, has_audio=True)
        elif kind is EngineOptions:
            known(made.attention)
        elif kind is TalkRequest:
            open_inputs(made)

    return f"{kind.__name__} {', '.join(wrong)}", call


def places(data, where=()):
    """The way to every value in nested data."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, inner in items:
        yield (*where, key)
        yield from places(inner, (*where, key))


def mutate(random, data):
    """Data with some values replaced, removed, renamed or added; says where."""
    said = []
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        ways = list(places(data))
        if not ways:
            return ", ".join(said)
        way = random.choice(ways)
        inner = data
        for key in way[:-1]:
            inner = inner[key]
        what = random.random()
        if what < 0.75:
            inner[way[-1]] = copy.deepcopy(value(random))
        elif what < 0.85:
            del inner[way[-1]]
        elif isinstance(inner, dict):
            name = random.choice((*NAMES[:20], "prompts", "speakers", "person2", "promt"))
            inner[name] = copy.deepcopy(value(random))
        said.append(".".join(map(str, way)))
    return ", ".join(said)


def written(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return path


def plain(request):
    """A request as JSON data with lists, ready to be changed."""
    return json.loads(json.dumps(request.to_json()))


def json_case(random, media, path):
    data = plain(media.request(random))
    where = mutate(random, data)
    from_file = random.random() < 0.5

    def call():
        given = written(path, json.dumps(data)) if from_file else data
        open_inputs(TalkRequest.from_json(given))

    return f"request {where}", call


def job_case(random, media, path):
    data = media.job(random)
    where = mutate(random, data)
    from_file = random.random() < 0.5

    def call():
        given = written(path, json.dumps(data)) if from_file else data
        open_inputs(TalkRequest.from_job(given, settings=jobs.SETTINGS, size=(48, 48)))

    return f"job {where}", call


def text_case(random, media, path):
    """The text of a job or a request, damaged."""
    read = random.choice((TalkRequest.from_job, TalkRequest.from_json))
    data = media.job(random) if read == TalkRequest.from_job else plain(media.request(random))
    text = bytearray(json.dumps(data, ensure_ascii=False).encode())
    inserts = (
        b"NaN", b"1e999", b"9" * 5000, b"[" * 5000, b'{"a":' * 5000, b'"prompt": "twice",', b"\\", b"\\u", b"\\ud800",
        b'"', b"\xff", b"\xed\xa0\x80", b"\0", b"//", b",", b"}", b"\xef\xbb\xbf", b"\xff\xfe", b"-Infinity", b"null",
    )  # fmt: skip
    for _ in range(random.randint(1, 3)):
        at = random.randrange(len(text) + 1)
        text[at : at + random.choice((0, 0, 1, 5, len(text)))] = random.choice(inserts)
    content = bytes(text)
    return f"text of {read.__name__}", lambda: open_inputs(read(written(path, content)))


def flags_case(random, media, path):
    """The command line's way, up to the opened inputs; no model is looked for."""
    known_flags = [name for name in build_parser("generate")._option_string_actions if name.startswith("--")]
    job = media.job(random)
    argv = ["--input_json", str(path), "--ckpt_dir", "weights", "--size", "48x48"]
    said = []
    for _ in range(random.choice((1, 1, 2, 3))):
        flag = random.choice(known_flags) if random.random() < 0.93 else random.choice(("--sizes", "-x", "--frame_nu"))
        said.append(flag)
        given = str(value(random)) if random.random() < 0.95 else None
        joined = random.random() < 0.3 and given is not None
        argv += [f"{flag}={given}"] if joined else [flag] if given is None else [flag, given]

    def call():
        written(path, json.dumps(job))
        open_inputs(read_job(argv).request)

    return f"flags {' '.join(said)}", call


def preset_case(random, media, path):
    name = random.choice((random.choice(preset_names()), str(random.choice(NAMES)), "balanced", "auto", "03"))

    def call():
        preset = load_preset(name)
        preset.describe()
        preset.apply(LoopSettings(), EngineOptions())

    return "preset", call
