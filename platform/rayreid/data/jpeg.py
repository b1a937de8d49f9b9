"""Decoding JPEGs without holding the interpreter lock, so that decoding threads work side by side."""

import functools
from collections.abc import Callable

import numpy as np

from rayreid.data.images import MAX_PIXELS, MAX_SIDE, decode

_COMMON = frozenset((0xC0, 0xC1, 0xC2))  # baseline, extended and progressive frames, Huffman coded
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # of any coding
_BARE = frozenset((0x01, *range(0xD0, 0xDA)))  # markers without a length


def decode_image(data: bytes | memoryview) -> np.ndarray:
    """Return an image's pixels, uint8 (H, W, 3) RGB: those that `images.decode` gives.

    torchvision decodes JPEGs with the same library as Pillow, but without the interpreter lock, under which Pillow's
    threads reach a few thousand images/s together, however many there are. Whatever is no plain JPEG, and whatever
    torchvision refuses, is left to Pillow, and so is the message.

    Raises:
        BadImageError: see `images.decode`.
    """
    raw = np.frombuffer(data, np.uint8)
    if _is_plain(raw):
        try:
            return _decoder()(raw)
        except RuntimeError:
            return decode(data)
    return decode(data)


@functools.cache
def _decoder() -> Callable[[np.ndarray], np.ndarray]:
    # Not imported with this module: who only reads encoded images needs neither.
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    def pixels(raw: np.ndarray) -> np.ndarray:
        channels = decode_jpeg(torch.from_numpy(raw.copy()), ImageReadMode.RGB)
        return np.ascontiguousarray(channels.permute(1, 2, 0).numpy())

    return pixels


def _is_plain(raw: np.ndarray) -> bool:
    """Whether the bytes begin as a grey or three-channel JPEG of a common coding and not too many pixels."""
    head = raw[:65_536].tobytes()
    if head[:2] != b"\xff\xd8":
        return False
    at = 2
    while at + 10 <= len(head) and head[at] == 0xFF:
        marker, length = head[at + 1], int.from_bytes(head[at + 2 : at + 4], "big")
        if marker == 0xFF or marker in _BARE:
            return False
        if marker in _FRAMES:
            height, width = (int.from_bytes(head[at + k : at + k + 2], "big") for k in (5, 7))
            plain = marker in _COMMON and head[at + 4] == 8 and head[at + 9] in (1, 3)
            return plain and 0 < height * width <= MAX_PIXELS and max(height, width) <= MAX_SIDE
        at += 2 + length
    return False
