"""What the tests of the app share: flags of a server with tiny models, and a free port."""

import socket

from support import jobs

FLAGS = (
    "--mode streaming --device cpu --dtype fp32 --size 48x48 --frame_num 13 --motion_frame 5 --sample_steps 2 "
    "--sample_text_guide_scale 1 --sample_audio_guide_scale 1 --scheduler euler"
).split()


def base(adapter="single"):
    files = jobs.official_files(adapter)
    named = {"ckpt_dir": files.transformer, "infinitetalk_dir": files.adapter, "wav2vec_dir": files.wav2vec}
    return [*FLAGS, *(f"--{name}={path}" for name, path in named.items())]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
