"""Cases that break every promise, for the test of the harness."""

import os
import time

from wanvideo.errors import InputError


def cases(random, folder):
    """used, answered, raises, takes memory, takes time, ends the process, used; again and again."""
    while True:
        yield "used", lambda: print("what a case prints is nobody's report")
        yield "answered", answered
        yield "raises", lambda: {}["no such key"]
        yield "memory", memory
        yield "time", lambda: time.sleep(60)
        yield "exit", lambda: os._exit(3)
        yield "used again", lambda: (folder / "file").write_text("x")


def answered():
    raise InputError("No. Use another.")


def memory():
    return len(bytearray(b"x") * (6 * 10**8))
