import pytest

from rayreid.errors import UserError, cause_of, escaped, one_line

REMOTE = 'Traceback (most recent call last):\n  File "x.py", line 1\nValueError: no such image\n'


@pytest.mark.parametrize(
    ("error", "options", "line"),
    [
        (ValueError("one\ntwo"), {}, "one"),
        (ValueError(REMOTE), {"part": "last"}, "ValueError: no such image"),
        (REMOTE, {"part": "last"}, "ValueError: no such image"),
        (ValueError(" one\n   two "), {"part": "all"}, "one two"),
        (ValueError(), {}, "ValueError"),
        (ValueError("\n"), {"part": "last"}, "ValueError"),
        (ValueError("abcdef\nx"), {"limit": 3}, "abc"),
    ],
)
def test_an_error_becomes_one_line(error, options, line):
    assert one_line(error, **options) == line


def test_a_name_with_line_breaks_is_escaped():
    assert escaped("a\nb\u2028c\x1b é 店\udc80") == r"a\nb\u2028c\x1b é 店\udc80"


def test_the_cause_of_a_wrapped_error_is_the_one_raised_in_the_task():
    wrapped, plain = RuntimeError(REMOTE), ValueError("plain")
    wrapped.cause = UserError("file.yaml: no such key")
    assert str(cause_of(wrapped)) == "file.yaml: no such key"
    assert cause_of(plain) is plain
