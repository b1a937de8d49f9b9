"""Recognition of a file by its first bytes: an image, whatever its name says, or something else that has a name."""

import re

HEAD_BYTES = 512
"""Number of first bytes that the functions of this module need."""

_AVIF, _HEIC = {b"avif", b"avis"}, {b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"}
_IMAGES = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG\r\n\x1a\n": ".png",
    b"GIF87a": ".gif",
    b"GIF89a": ".gif",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
    b"II+\0": ".tif",
    b"MM\0+": ".tif",
    b"\0\0\0\x0cjP  \r\n\x87\n": ".jp2",  # JPEG 2000, in its file format and as a bare codestream
    b"\xff\x4f\xff\x51": ".j2k",
}
"""Suffix of an image's name by its first bytes."""
_PORTABLE = re.compile(rb"P[1-6][\s#]")
_OTHERS = (
    (b"version https://git-lfs.github.com/spec/", "Git LFS pointer"),
    (b"/annex/objects/", "git-annex pointer"),
    (b"\0\x05\x16\x07", "AppleDouble file"),
    (b"\0\x05\x16\0", "AppleSingle file"),
    (b"PK\3\4", "zip archive"),
    (b"\x1f\x8b", "gzip archive"),
    (b"BZh", "bzip2 archive"),
    (b"\xfd7zXZ\0", "xz archive"),
    (b"7z\xbc\xaf\x27\x1c", "7z archive"),
    (b"Rar!", "rar archive"),
    (b"\x28\xb5\x2f\xfd", "zstd archive"),
    (b"%PDF", "PDF"),
)
_HTML = re.compile(rb"<(!doctype\s+html|html|head|body)\b", re.IGNORECASE)
_XML = re.compile(rb"\s*<(\?xml|Error>)")


def is_image(head: bytes) -> bool:
    """Return whether a file that begins with these bytes is an image of a format that `images.decode` knows."""
    return suffix_of(head) is not None


def suffix_of(head: bytes) -> str | None:
    """Return the usual suffix of an image that begins with these bytes, such as `.jpg`; None for anything else."""
    for signature, suffix in _IMAGES.items():
        if head.startswith(signature):
            return suffix
    if _PORTABLE.match(head):
        return ".ppm"
    if head[:2] == b"BM":
        # reserved in a BMP; a text may well begin with these letters
        return ".bmp" if head[6:10] == b"\0\0\0\0" else None
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return ".webp"
    return ".avif" if _brands(head) & _AVIF else None


def other_kind(head: bytes) -> str | None:
    """Return the name of a kind of file that is often found in the place of an image; None if it is not recognised.

    Args:
        head: The file's first `HEAD_BYTES`, or all of a shorter one.
    """
    head = head.removeprefix(b"\xef\xbb\xbf")
    for signature, name in _OTHERS:
        if head.startswith(signature):
            return name
    if head[257:262] == b"ustar":
        return "tar archive"
    brands = _brands(head)
    if brands and not brands & _AVIF:
        return "HEIC image (no reader)" if brands & _HEIC else "video"
    if _HTML.match(_without_comments(head)):
        return "HTML page"
    return "XML document" if _XML.match(head) else None


def _without_comments(head: bytes) -> bytes:
    """Return the bytes behind leading white space and HTML comments, in linear time (untrusted bytes come here)."""
    head = head.lstrip()
    while head.startswith(b"<!--"):
        head = head.partition(b"-->")[2].lstrip()
    return head


def _brands(head: bytes) -> set[bytes]:
    """Return the brands of an ISO media file (AVIF, HEIC, videos); none for any other file."""
    if head[4:8] != b"ftyp":
        return set()
    end = min(max(int.from_bytes(head[:4], "big"), 12), len(head))
    return {head[8:12], *(head[at : at + 4] for at in range(16, end, 4))}
