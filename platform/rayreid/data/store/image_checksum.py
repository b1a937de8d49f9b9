"""The checksum of a single image, which every read compares with the index."""

import zlib

_PIECE = 5 * 1024  # longer pieces let zlib release the interpreter lock


def checksum_of_image(data: bytes | memoryview) -> int:
    """Return the CRC-32 of an image's bytes, that of zlib and PNG.

    It finds every changed byte, and of larger changes all but one in 4 billion. zlib computes it at several GB/s and
    comes with Python, so that stores are checked wherever they can be read; CRC32C would need one more library.

    The bytes are added piece by piece, because threads that take the interpreter lock anew for every image wait for
    one another (see `rayreid.data.jpeg`).
    """
    if len(data) <= _PIECE:
        return zlib.crc32(data)
    found = 0
    for start in range(0, len(data), _PIECE):
        found = zlib.crc32(data[start : start + _PIECE], found)
    return found
