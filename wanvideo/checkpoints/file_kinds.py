"""What a file that is no model is, told from its first bytes; none of them is ever repeated in a message."""

from __future__ import annotations

WEB_PAGE = "a web page"
_MAGIC = (
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"%PDF", "a PDF document"),
    (b"ID3", "an MP3 sound"),
    (b"OggS", "an Ogg sound"),
    (b"fLaC", "a FLAC sound"),
    (b"\x1a\x45\xdf\xa3", "a Matroska video"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"PK", "a damaged zip archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"ggml", "a GGML file, older than GGUF"),
    (b"ggjt", "a GGML file, older than GGUF"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"SQLite format 3", "a database"),
)


def kind_of(head: bytes) -> str:
    """In words, with an article. Args: head: the first 1024 bytes, or all there are."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"<") and (b"<html" in text or b"<!doctype" in text or text.startswith(b"<?xml")):
        return WEB_PAGE
    if head.startswith(b"RIFF"):
        return {b"WAVE": "a WAV sound", b"WEBP": "a WebP picture"}.get(head[8:12], "an AVI video")
    if head[4:8] == b"ftyp":
        return "an MP4 video"
    if not head.strip(b"\0"):
        return "filled with zeros (a download that was not finished)"
    found = next((name for magic, name in _MAGIC if head.startswith(magic)), None)
    if found is not None:
        return found
    return "a text file" if _is_text(head) else "of a format that is not known"


def _is_text(head: bytes) -> bool:
    try:
        text = head[:-4].decode() if len(head) >= 1024 else head.decode()  # a letter may be cut at the end
    except UnicodeDecodeError:
        return False
    return all(letter.isprintable() or letter.isspace() for letter in text)
