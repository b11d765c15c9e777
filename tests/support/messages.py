"""What the user is told when something is wrong: every message's form, those that were raised, and all there can be."""

import ast
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from wanvideo import errors

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [*sorted((ROOT / "wanvideo").rglob("*.py")), *sorted(ROOT.glob("nodes_*.py"))]
ERRORS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.TalkError)}
ALIASES = {"error"}  # what readers of files call the kind of error they are given
_PATHS = frozenset(SOURCES)
MOST_LINES, MOST_WORDS, MOST_CHARACTERS = 3, 400, 1200  # characters without values, and with them
VERBS = frozenset(
    "add allow ask attach begin call change check choose close compare connect convert copy crop cut decode delete "
    "download draw encode export extend free give install join keep leave load look lower make mark mend move name "
    "paint pass pick point put queue raise read record reduce remove rename repair replace report run save say "
    "select send set shorten split start take turn type unpack update upgrade use wait write".split()
)
LEAKS = re.compile(r"<class |<function |<built-in|<[\w.]+ object at|NoneType|PosixPath|WindowsPath|Traceback")
SENTENCE = re.compile(r"(?<=[.!?])(?<!e\.g\.)\)?\s+(?=[A-Z\"'({0-9])|\n")
WORD = re.compile(r"[a-z]+")


@dataclass(frozen=True)
class Raised:
    """A message and the file and line that raised it."""

    message: str
    file: str
    line: int


def faults(message, most=MOST_CHARACTERS):
    """What is wrong with the form of a message, nothing where it is right."""
    found = []
    if message.count("\n") >= MOST_LINES:
        found.append(f"{message.count(chr(10)) + 1} lines")
    if len(message) > most:
        found.append(f"{len(message)} characters")
    if leak := LEAKS.search(message):
        found.append(f"says {leak[0]}")
    if not says_what_to_do(message):
        found.append("does not end with what to do")
    return found


def says_what_to_do(message):
    """Whether the last sentence has an imperative: at its beginning, or behind a comma, a colon or a condition."""
    sentences = [part for part in SENTENCE.split(message.strip()) if part.strip()]
    return bool(sentences) and bool(VERBS & set(WORD.findall(sentences[-1].lower())))


def static_faults():
    """(file, line, template, faults) of every template whose form is wrong whatever is filled in."""
    for file, line, text in sites():
        found = [fault for fault in faults(text, MOST_WORDS) if "end with" not in fault or not ends_open(text)]
        if found:
            yield file, line, text, found


def ends_open(template):
    """Whether its last sentence is filled in, so that only the message can tell."""
    return re.search(r"(^|[.!?:}\n]) ?\{\}\.?$", template) is not None


class Recorder:
    """Notes every TalkError that the library and the nodes make, wherever it ends."""

    def __init__(self):
        self.raised = []

    def __enter__(self):
        init = self._init = errors.TalkError.__init__

        def noted(error, *values):
            init(error, *values)
            frame = sys._getframe(1)
            path = Path(frame.f_code.co_filename)
            if path in _PATHS and values and isinstance(values[0], str):
                self.raised.append(Raised(values[0], path.relative_to(ROOT).as_posix(), frame.f_lineno))

        errors.TalkError.__init__ = noted
        return self

    def __exit__(self, *_):
        errors.TalkError.__init__ = self._init

    def take(self):
        """What was raised since the last call."""
        raised, self.raised = self.raised, []
        return raised


def sites():
    """(file, line, template) of every place that makes a TalkError; what is filled in is {} in the template."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
                if node.func.id in ERRORS | ALIASES and (text := _template(node.args[0])):
                    yield path.relative_to(ROOT).as_posix(), node.lineno, text


def templates():
    """Every message that there can be, once, in order of the alphabet: the keys of a table of translations."""
    return sorted({text for _, _, text in sites()})


def _template(node):
    """The text of a string in the source, {} for each value; None for what is no text."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        sides = _template(node.left), _template(node.right)
        return None if None in sides else "".join(sides)
    return None
