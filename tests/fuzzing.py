"""Random damage, and how much of it the fuzz tests try: a little in the fast suite, `make fuzz FUZZ=…` as asked."""

import os
import random

import pytest

_ASKED = os.environ.get("RAYREID_FUZZ")


def fuzzed(few: int, many: int) -> pytest.MarkDecorator:
    """Give a test the argument `rounds`: `few` in the fast suite, `many` in the thorough one."""
    numbers = [int(_ASKED)] if _ASKED else [few, pytest.param(many, marks=[pytest.mark.slow, pytest.mark.thorough])]
    return pytest.mark.parametrize("rounds", numbers)


def flipped(data: bytes, rng: random.Random) -> bytes:
    """The bytes with up to eight of them changed, dropped or doubled."""
    content = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        place = rng.randrange(len(content) + 1)
        content[place : place + rng.randint(0, 2)] = bytes(rng.choices(range(256), k=rng.randint(0, 2)))
    return bytes(content)
