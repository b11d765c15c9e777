"""`download`: fetch the model files that a preset or a document needs, and no others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .. import checks
from ..checkpoints.download import fetch, published, verified
from ..checkpoints.sets import DOCUMENTS, SETS, ModelSet, RemoteFile, for_preset
from ..errors import CheckpointError, InputError
from ..memory.machine import check_disk
from ..presets import load_preset, preset_names
from .parser import Parser
from .shell import quoted

THERE, TO_COME, OTHER = "there", "to come", "other"
USES = {  # the flags of `generate` that name what a set brings
    "encoders-480p": "--ckpt_dir {}/Wan2.1-I2V-14B-480P",
    "encoders-720p": "--ckpt_dir {}/Wan2.1-I2V-14B-720P",
    "infinitetalk-single": "--infinitetalk_dir {}/InfiniteTalk/single/infinitetalk.safetensors",
    "infinitetalk-fp8": "--quant fp8 --quant_dir {}/InfiniteTalk/quant_models/infinitetalk_single_fp8.safetensors",
    "wav2vec": "--wav2vec_dir {}/chinese-wav2vec2-base",
}


@dataclass(frozen=True)
class Row:
    """A file of the table. size_bytes: as the server says, or as known here. is_exact: whether it is not rounded."""

    file: RemoteFile
    license: str
    size_bytes: int
    is_exact: bool
    state: str


def build_parser() -> Parser:
    parser = Parser("python -m wanvideo download", description=__doc__)
    add = parser.add_argument
    add("--preset", help=f"what it needs, for one speaker: {', '.join(preset_names())}")
    add("--set", dest="sets", nargs="+", default=[], help=f"{', '.join((*SETS, *DOCUMENTS))}")
    add("--dir", default="weights", help="folder that they go to")
    add("--dry_run", action="store_true", help="only say what would be downloaded")
    add("--verify", action="store_true", help="read the files that are there, too, and compare their SHA-256")
    return parser


def wanted_sets(preset: str | None, names: list[str]) -> list[ModelSet]:
    """The sets of a preset and of names of sets and documents, each once. Raises: InputError."""
    found: list[ModelSet] = []
    if preset is not None:
        chosen = load_preset(preset)
        loras = (name for lora in chosen.loras for name in lora.files)
        found += for_preset(chosen.options, chosen.size, loras)
    for name in names:
        checks.choice("--set", name, (*SETS, *DOCUMENTS))
        found += (SETS[item] for item in DOCUMENTS.get(name, (name,)))
    if not found:
        raise InputError("Nothing to download is named. Give --preset NAME or --set NAME; --help lists both.")
    return list(dict.fromkeys(found))


def table_of(sets: list[ModelSet], root: Path, is_dry: bool) -> list[Row]:
    """One row a file; the server is asked for their sizes. Raises: CheckpointError where it cannot be, unless dry."""
    rows, is_reached = [], True
    for item in sets:
        for file in item.files:
            size, is_exact = file.size_bytes, file.sha256 is not None
            path = root / file.local
            is_there = path.is_file() and path.stat().st_size > 0
            if is_reached and not (is_there and is_exact):
                try:
                    found = published(file).size_bytes
                    size, is_exact = (size, is_exact) if found is None else (found, True)
                except Exception as error:  # noqa: BLE001 which package of HTTP the hub uses depends on its version
                    if not is_dry:
                        raise CheckpointError(_unreachable(file, error)) from None
                    is_reached = False
            rows.append(Row(file, item.license, size, is_exact, _state(path, size, is_exact)))
    return rows


def _state(path: Path, size: int, is_exact: bool) -> str:
    if not path.is_file():
        return TO_COME
    return THERE if not is_exact or path.stat().st_size == size else OTHER


def _unreachable(file: RemoteFile, error: Exception) -> str:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
    return (
        f"{file.link} cannot be asked for {file.name} ({reason}).\n"
        "Check the connection, name a mirror with HF_ENDPOINT, or use --dry_run to see what to fetch by hand."
    )


def print_table(rows: list[Row], root: Path) -> None:
    width = max(len(row.file.local) for row in rows)
    print(f"{'file':<{width}}  {'size':>10}  {'state':<10}  license       from")
    for row in rows:
        about = "" if row.is_exact else "~"
        size = f"{about}{size_text(row.size_bytes)}"
        print(f"{row.file.local:<{width}}  {size:>10}  {row.state:<10}  {row.license:<12}  {row.file.link}")
    coming = sum(row.size_bytes for row in rows if row.state != THERE)
    print(f"{size_text(sum(row.size_bytes for row in rows))} in all, {size_text(coming)} to come, into {root}")


def size_text(num_bytes: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.2f} {unit}"
    return f"{num_bytes} B"


def main(argv: list[str]) -> int:
    """Say what is needed and what is there, then download the rest; a file that broke off goes on where it stopped."""
    flags = build_parser().parse_args(argv)
    sets, root = wanted_sets(flags.preset, flags.sets), Path(checks.path("--dir", flags.dir)).expanduser()
    rows = table_of(sets, root, flags.dry_run)
    print_table(rows, root)
    if flags.verify:
        rows = [_reread(row, root) for row in rows]
    if flags.dry_run:
        return 0
    coming = [row for row in rows if row.state != THERE]
    check_disk(root, sum(row.size_bytes for row in coming))
    for row in coming:
        if row.state == OTHER:
            print(f"{row.file.local} is replaced: it is not as published")
        print(fetch(row.file, root))
    print("Everything is there.")
    if flags.preset is not None:
        named = [USES[item.name].format(quoted(str(root))) for item in sets if item.name in USES]
        loras = (root / item.files[0].local for item in sets if item.about.startswith("LoRA"))
        named += [f"--lora_dir {quoted(str(lora))}" for lora in loras]
        print(f"Use it with: python -m wanvideo generate --preset {flags.preset} {' '.join(named)}")
    return 0


def _reread(row: Row, root: Path) -> Row:
    """The row of a file whose content was compared with what was published, where it is there and its hash is known."""
    if row.state != THERE:
        return row
    sha256 = row.file.sha256
    if sha256 is None:
        print(f"{row.file.local}: its size is right; no SHA-256 of it is known here")
        return row
    is_right = verified(root / row.file.local, sha256)
    print(f"{row.file.local}: {'as published' if is_right else 'NOT as published'}")
    return row if is_right else Row(row.file, row.license, row.size_bytes, row.is_exact, OTHER)
