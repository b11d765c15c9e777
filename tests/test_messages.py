"""What is wrong, where, what is allowed and what to do, in at most three lines: every message that there can be.

Messages that tests raise are checked as they are raised, by the fixture `messages_have_their_form` of conftest.py.
"""

import pytest
from support import messages

from wanvideo.errors import InputError


def test_every_message_ends_with_what_to_do():
    wrong = [f"{file}:{line} {', '.join(found)}: {text}" for file, line, text, found in messages.static_faults()]
    assert not wrong, "\n".join(wrong)


def test_templates_are_all_there_once():
    """What a table of translations is made from."""
    found = messages.templates()
    assert len(found) > 200 and found == sorted(set(found))
    assert "There is no file {}. Give the path of {}." in found
    assert any(text.startswith("{} speakers have {} boxes or masks. Give one") for text in found)


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        ("size 7 is not usable: it must be 16. Use 16.", None),
        ("There is no model. Name it, e.g. Wan2.1_VAE.pth, or a folder.", None),
        ("steps 0 is too few: use 1 to 1000.", None),
        ("The file is damaged.", "what to do"),
        ("Use this. It is better.", "what to do"),
        ("expected str, not <class 'int'>. Use a str.", "<class"),
        ("x must not be NoneType. Use y.", "NoneType"),
        ("a\nb\nc\nUse d.", "4 lines"),
        ("x" * 1300 + ". Use y.", "characters"),
    ],
)  # fmt: skip
def test_faults_of_form_are_found(message, fault):
    found = ", ".join(messages.faults(message))
    assert (fault in found) if fault else not found, found


def test_what_the_library_raises_is_noted(message_recorder):
    from wanvideo.geometry import parse_size

    message_recorder.take()
    with pytest.raises(InputError):
        parse_size("nope")
    InputError("of a test, which may say anything")
    (raised,) = message_recorder.take()
    assert raised.file == "wanvideo/geometry.py" and raised.message.startswith("size 'nope'")
