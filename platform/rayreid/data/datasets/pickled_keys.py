"""The strings of a pickled list, or of the list `keys` of a pickled dict, extracted without unpickling anything.

LUPerson's keys.pkl is a list; LUPerson-NL's, and those that its training code reads, are `{"keys": [...], "pids": …}`
or `{"keys": [...], "vids": …}`, where the labels may be a NumPy array. A pickle is a program: the walk below follows
what its instructions do to the stack, and never carries one out.
"""

import pickletools
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KEYS = "keys"
_STRINGS = frozenset(
    ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE", "SHORT_BINSTRING", "BINSTRING", "STRING")
)
_LISTS = frozenset(("EMPTY_LIST", "LIST"))
_DICTS = frozenset(("EMPTY_DICT", "DICT"))
_REMEMBER = frozenset(("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"))  # these number the latest object, for a repetition
_REPEAT = frozenset(("GET", "BINGET", "LONG_BINGET"))
_SET = frozenset(("SETITEM", "SETITEMS"))
_MARK, _LIST, _WANTED, _DICT, _OTHER = -1, -2, -3, -4, -5  # on the stack; a string stands for itself


def read_pickled_keys(path: Path) -> Iterator[str]:
    """Yield the strings, in their order and with their repetitions. The walk takes eight bytes of memory per string.

    Raises:
        ValueError: The pickle is damaged or holds something else.
    """
    with path.open("rb") as file, path.open("rb") as earlier:
        walk = _Walk(earlier)
        for instruction, argument, position in pickletools.genops(file):
            try:
                yield from walk.step(instruction, argument, position or 0)
            except IndexError:
                raise _refused() from None
        if not walk.ended:
            raise _refused()


class _Walk:
    """The stack of a pickle while its instructions are read.

    Args:
        earlier: The same file, to read a repeated string again.

    Attributes:
        ended: Whether the pickle has ended, with what was looked for.
    """

    def __init__(self, earlier: Any):
        self.ended = False
        self._earlier = earlier
        self._stack: list[Any] = []
        self._memo, self._first = array("q"), 0  # where strings begin, or a kind; Python 2 counted from 1
        self._latest = 0  # where the latest string's instruction begins
        self._found = False

    def step(self, instruction: Any, argument: Any, position: int) -> Iterator[str]:
        """Follow one instruction; yield the strings that it puts into the list."""
        name, stack = instruction.name, self._stack
        if name in _STRINGS:
            self._latest = position
            stack.append(str(argument))
        elif name in _REMEMBER:
            self._remember(argument)
        elif name in _REPEAT:
            self._repeat(int(argument) - self._first)
        elif name == "MARK":
            stack.append(_MARK)
        elif name in _LISTS:
            items = self._cut() if name == "LIST" else []
            wanted = self._is_place_of_keys()
            self._found |= wanted
            stack.append(_WANTED if wanted else _LIST)
            yield from self._added(items)
        elif name in ("APPEND", "APPENDS"):
            yield from self._added([stack.pop()] if name == "APPEND" else self._cut())
        elif name == "STOP":
            kind = stack.pop()
            if not (kind == _WANTED or (kind == _DICT and self._found)):
                raise _refused()
            self.ended = True
        else:
            self._follow(instruction)

    def _remember(self, number: int | None) -> None:
        if not self._memo:
            self._first = number or 0
        if number not in (None, self._first + len(self._memo)):
            raise ValueError("refused, the pickle numbers its strings out of order")
        top = self._stack[-1]
        self._memo.append(self._latest if isinstance(top, str) else top)

    def _repeat(self, number: int) -> None:
        if not 0 <= number < len(self._memo):
            raise _refused()
        place = self._memo[number]
        if place < 0:
            self._stack.append(place)
            return
        self._latest = place
        self._earlier.seek(place)
        self._stack.append(str(next(pickletools.genops(self._earlier))[1]))

    def _cut(self) -> list[Any]:
        """Take what lies above the topmost mark off the stack, with the mark."""
        mark = len(self._stack) - 1
        while self._stack[mark] != _MARK:
            mark -= 1
            if mark < 0:
                raise _refused()
        items = self._stack[mark + 1 :]
        del self._stack[mark:]
        return items

    def _is_place_of_keys(self) -> bool:
        """Return whether a list that begins now is the pickle itself or the value of `keys` in the outermost dict."""
        stack = self._stack
        if not stack:
            return True
        several = len(stack) > 1 and stack[1] == _MARK  # the dict's keys and values so far lie on the stack
        inner = any(kind in (_MARK, _DICT) for kind in stack[2 if several else 1 :])
        return stack[0] == _DICT and stack[-1] == KEYS and (several or len(stack) == 2) and not inner

    def _added(self, items: list[Any]) -> Iterator[str]:
        """Yield what is appended to the list on top of the stack if that is the one looked for."""
        if self._stack[-1] != _WANTED:
            return
        for item in items:
            if not isinstance(item, str):
                raise _refused()
            yield item

    def _follow(self, instruction: Any) -> None:
        """Do to the stack what any other instruction does: take some objects off, put some on."""
        before = [item.name for item in instruction.stack_before]
        marked = "mark" in before
        if marked:
            self._cut()
        count = before.index("mark") if marked else len(before)
        taken = [self._stack.pop() for _ in range(count)]
        if instruction.name in _SET:
            self._stack.append(taken[-1])
        else:
            kind = _DICT if instruction.name in _DICTS else _OTHER
            self._stack += [kind] * len(instruction.stack_after)


def _refused() -> ValueError:
    return ValueError("refused, the pickle holds something else than a list of strings")
