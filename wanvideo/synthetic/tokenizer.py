"""A small tokenizer in the form of google/umt5-xxl: words and characters of a few sentences, and bytes for the rest."""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from pathlib import Path

from ..durable import write_atomically
from ..text.tokenizer import END, PAD, UNKNOWN, from_sentencepiece

SENTENCES = (
    "A woman with short hair is talking to the camera in a quiet room, and she smiles while she speaks.",
    "A man sits at a wooden table, looks up and tells a story about the sea. The light is warm and soft.",
    "Two people are talking with each other in a radio studio; one of them laughs and the other one listens.",
    "close-up, realistic, high quality video of a person who is singing a song on a stage with red lights",
    "Una mujer habla con calma delante de la cámara; el hombre que está a su lado la escucha y sonríe.",
    "Une femme parle devant la caméra, un homme l'écoute et répond avec un sourire dans une pièce claire.",
    "Eine Frau spricht ruhig in die Kamera, neben ihr sitzt ein Mann, der zuhört und langsam nickt.",
    "Женщина говорит в камеру, а мужчина рядом с ней слушает и улыбается. Свет мягкий и тёплый.",
    "一个女人正在对着镜头说话,她微笑着,背景是一间安静的房间。光线柔和,画面清晰。",
    "两个人坐在桌子旁边聊天,一个人在说话,另一个人在听。高质量,真实,自然的表情。",
    "女性がカメラに向かって静かに話しています。隣の男性は聞きながら笑っています。",
    "한 여자가 카메라를 보며 조용히 이야기하고 있고, 옆에 있는 남자는 듣고 있습니다.",
    "امرأة تتحدث إلى الكاميرا في غرفة هادئة ورجل يستمع إليها ويبتسم.",
    "एक महिला कैमरे के सामने शांति से बात कर रही है और एक आदमी सुन रहा है।",
)
_NORMAL, _UNKNOWN_KIND, _CONTROL, _BYTE = 1, 2, 3, 6
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


def sentencepiece_model() -> bytes:
    """The tokenizer as a SentencePiece model file."""
    pieces = [(PAD, 0.0, _CONTROL), (END, 0.0, _CONTROL), (UNKNOWN, 0.0, _UNKNOWN_KIND)]
    pieces += [(f"<0x{byte:02X}>", -20.0, _BYTE) for byte in range(256)]
    counts: Counter[str] = Counter()
    for sentence in SENTENCES:
        for word in sentence.split():
            counts[_SPACE + word.strip(",.;")] += 1
            counts.update(_SPACE + word)
    total = sum(counts.values())
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    pieces += [(piece, math.log(count / total), _NORMAL) for piece, count in ranked]
    data = b"".join(
        _field(1, _field(1, text.encode()) + _field(2, score) + _field(3, kind)) for text, score, kind in pieces
    )
    trainer = _field(3, 1) + _field(4, len(pieces)) + _field(35, 1)  # unigram, its size, bytes for what is unknown
    trainer += _field(40, 2) + _field(41, -1) + _field(42, 1) + _field(43, 0)  # ids: unknown, no start, end, padding
    normalizer = _field(1, b"identity") + _field(3, 1) + _field(4, 1) + _field(5, 1)
    return data + _field(2, trainer) + _field(3, normalizer)


def _field(number: int, value: bytes | int | float) -> bytes:
    """One field of a protobuf message."""
    if isinstance(value, bytes):
        return _varint(number << 3 | 2) + _varint(len(value)) + value
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    return _varint(number << 3) + _varint(value % 2**64)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def write_tokenizer(folder: Path) -> list[Path]:
    """Write spiece.model, tokenizer.json and the two files transformers looks for beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    model = sentencepiece_model()
    special = {"pad_token": PAD, "eos_token": END, "unk_token": UNKNOWN}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, "padding_side": "right", **special}
    paths = [folder / name for name in ("spiece.model", "tokenizer.json", "tokenizer_config.json")]
    paths.append(folder / "special_tokens_map.json")
    tokenizer = from_sentencepiece(model, "spiece.model").to_str(pretty=True)
    texts = (tokenizer, json.dumps(config, indent=2), json.dumps(special, indent=2))
    for path, data in zip(paths, (model, *(text.encode() for text in texts)), strict=True):
        write_atomically(path, data)
    return paths
