"""What a file is, told from its first bytes, so that an error can say what somebody gave instead of what is taken."""

from __future__ import annotations

import re

PEEK = 1024  # bytes that `describe` looks at

_MAGIC = (
    (b"\x93NUMPY", "a NumPy array (.npy)"),
    (b"\x1f\x8b", "a gzip file"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ\0", "an xz file"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"BM", "a BMP picture"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"8BPS", "a PSD picture"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "a JXL picture"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "a JP2 picture"),
    (b"%!PS", "a PostScript file"),
    (b"%PDF", "a PDF file"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (.h5, as Keras writes it)"),
    (b"PAR1", "a Parquet file"),
    (b"SQLite format 3", "an SQLite database"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
)
_BRANDS = {  # of ISO base media files, ISO/IEC 23008-12 and the AV1 image file format
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"), "an HEIC picture"),
    **dict.fromkeys((b"avif", b"avis"), "an AVIF picture"),
}
_NUMBERS = re.compile(rb"""[\w."' +-]+(?:[,;\t][\w."' +-]*)+\r?\n""")


def describe(start: bytes) -> str | None:
    """Return what a file is that begins with these bytes (up to `PEEK`), with its article; None for the unknown."""
    if not start:
        return "an empty file"
    for magic, name in _MAGIC:
        if start.startswith(magic):
            return name
    if start.startswith(b"PK\x03\x04"):
        return _zip(start)
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "a WebP picture"
    if start[4:8] == b"ftyp":
        return _BRANDS.get(start[8:12], "a film")
    if start[257:262] == b"ustar":
        return "a tar archive"
    if len(start) > 3 and start[:2] == b"\0\0" and start[2] in b"\x08\x09\x0b\x0c\x0d\x0e" and 1 <= start[3] <= 8:
        return "an IDX file"
    if start[8:9] == b"{" and 2 <= int.from_bytes(start[:8], "little") < 1 << 32:
        return "a safetensors file"
    if start[0] == 0x80 and len(start) > 1 and start[1] <= 5:
        return "a PyTorch file (.pt, .pth)" if b"torch" in start or _TORCH_MAGIC in start else "a pickle"
    return _text(start)


_TORCH_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")  # of files older than PyTorch 1.6


def _zip(start: bytes) -> str:
    name = start[30 : 30 + int.from_bytes(start[26:28], "little")]
    if name.endswith(b".npy"):
        return "a NumPy archive (.npz)"
    if name.endswith((b"/data.pkl", b"/.format_version", b"/byteorder", b"/version", b"/.storage_alignment")):
        return "a PyTorch file (.pt, .pth)"
    return "a zip archive"


def _text(start: bytes) -> str | None:
    try:
        text = start.decode()
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3:  # else a letter cut off
            return None
        text = start[: error.start].decode()
    if any(ord(letter) < 32 and letter not in "\t\r\n\f" for letter in text):
        return None
    head = text.lstrip("\ufeff \r\n\t").lower()
    if head.startswith(("<!doctype html", "<html", "<head")):
        return "a web page (HTML)"
    if head.startswith("<"):
        return "an XML file"
    if head.startswith("{"):
        return "a JSON file"
    if _NUMBERS.match(start.removeprefix(b"\xef\xbb\xbf")):
        return "a table of text (CSV)"
    return None
