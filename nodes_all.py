"""All nodes, in the order in which they are registered."""

from __future__ import annotations

from .nodes_audio import NODES as AUDIO
from .nodes_conditioning import NODES as CONDITIONING
from .nodes_look import NODES as LOOK
from .nodes_model_loading import NODES as LOADING
from .nodes_options import NODES as OPTIONS
from .nodes_parallel import NODES as PARALLEL
from .nodes_refused import NODES as REFUSED
from .nodes_sampler import NODES as SAMPLING
from .nodes_source import NODES as SOURCE
from .nodes_speech import NODES as SPEECH
from .nodes_talk import NODES as TALK
from .nodes_text import NODES as TEXT

__all__ = ["NODES", "REFUSED"]
NODES = (*TALK, *LOADING, *OPTIONS, *PARALLEL, *AUDIO, *SPEECH, *TEXT, *SOURCE, *CONDITIONING, *SAMPLING, *LOOK)
