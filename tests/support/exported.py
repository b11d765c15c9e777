"""Graphs as commands, as a reader would paste them."""

import json
import shlex
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "example_workflows"


def command_of(exported, folder):
    """The flags of an exported graph, with the job in a file of `folder`, and its pictures where they are named."""
    exported.save_pictures()
    job = folder / "a.job.json"
    job.write_text(json.dumps(exported.job), encoding="utf-8")
    return shlex.split(exported.command(str(job)))[4:]
