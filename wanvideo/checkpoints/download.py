"""Small models that a user asks for by the name of their repository. Nothing else is ever downloaded."""

from __future__ import annotations

import logging
from pathlib import Path

from ..errors import CheckpointError

WAV2VEC = "TencentGameMate/chinese-wav2vec2-base"
TOKENIZER = "google/umt5-xxl"
WANTED = {
    WAV2VEC: ("config.json", "preprocessor_config.json", "pytorch_model.bin"),
    TOKENIZER: ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
}
logger = logging.getLogger("wanvideo")


def download(repository: str, folder: str | Path) -> Path:
    """Fetch the files of WANTED[repository] into `folder`, unless they are there; returns the folder.

    Raises: CheckpointError, saying what to put where, when the machine is offline or the download fails.
    """
    folder = Path(folder)
    missing = [name for name in WANTED[repository] if not (folder / name).is_file()]
    if not missing:
        return folder
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    logger.info("Downloading %s of %s to %s.", ", ".join(missing), repository, folder)
    try:
        for name in missing:
            hf_hub_download(repository, name, local_dir=folder)
    except (OSError, HfHubHTTPError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{repository} is not on this machine and could not be downloaded ({reason}).\n"
            f"Put {', '.join(missing)} of https://huggingface.co/{repository} into {folder}"
        ) from None
    return folder
