"""Speaks standard input with eSpeak NG: a program of its own, so that a fault in that library ends nothing else.

Arguments: the library's file, the folder of its data, the voice. Standard output: the rate in Hz as 4 bytes, then
samples, 16 bits each, both little-endian. A fresh process with the same seed speaks a text the same way every time.
"""

import ctypes
import sys

SYNCHRONOUS, DO_NOT_EXIT, UTF8 = 2, 0x8000, 1
SAMPLES = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int16), ctypes.c_int, ctypes.c_void_p)


def main(library: str, data: str, voice: str) -> None:
    """Write what is heard. Ends with a message where the library refuses."""
    speech = ctypes.CDLL(library)
    out = sys.stdout.buffer

    def write(samples: "ctypes._Pointer[ctypes.c_int16]", count: int, events: int | None) -> int:
        if samples and count > 0:
            out.write(ctypes.string_at(samples, 2 * count))
        return 0

    callback = SAMPLES(write)  # the library calls it for as long as it speaks
    rate = speech.espeak_Initialize(SYNCHRONOUS, 0, data.encode(), DO_NOT_EXIT)
    if rate <= 0:
        sys.exit(f"its data in {data} cannot be read")
    out.write(rate.to_bytes(4, "little"))
    speech.espeak_SetSynthCallback(callback)
    if speech.espeak_SetVoiceByName(voice.encode()) != 0:
        sys.exit(f"it has no voice {voice}")
    speech.espeak_ng_SetRandSeed(ctypes.c_long(1))
    text = sys.stdin.buffer.read()
    if speech.espeak_Synth(text, ctypes.c_size_t(len(text) + 1), 0, 1, 0, UTF8, None, None) != 0:
        sys.exit("it did not take the text")
    speech.espeak_Synchronize()
    out.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
