"""How many random inputs the fuzz tests try: a few in the fast suite, `make fuzz FUZZ=…` as many as wanted."""

import os

import pytest

_ASKED = os.environ.get("RAYREID_FUZZ")


def fuzzed(few: int, many: int) -> pytest.MarkDecorator:
    """Give a test the argument `rounds`: `few` in the fast suite, `many` in the slow one."""
    numbers = [int(_ASKED)] if _ASKED else [few, pytest.param(many, marks=pytest.mark.slow)]
    return pytest.mark.parametrize("rounds", numbers)
