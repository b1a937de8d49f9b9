"""Compiled forward passes, enabled by a context, like autocast.

Functions are compiled, never modules. State names therefore stay the same, and all blocks of a network share one
compiled function, because their parameters are its inputs. Values that differ between blocks and steps (drop-path
masks, temperatures) are passed as tensors: a Python number would be built into the code, and a change of it would
compile the code again.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial, wraps
from typing import ParamSpec, TypeVar, overload

import torch

from rayreid.devices import missing_for_code
from rayreid.errors import UserError

P = ParamSpec("P")
R = TypeVar("R")

SHAPES = 64
"""Number of compiled versions of one function, for other shapes or modes, before torch refuses another."""

_backend: ContextVar[str | None] = ContextVar("compilation_backend", default=None)


def resolve_compile(wanted: bool | str, device: torch.device) -> bool:
    """Return whether to compile.

    `auto` is true on CUDA where it is possible, and false on a CPU, where it gains nothing.

    Raises:
        UserError: Compilation is asked for where it is impossible: on a GPU for which Triton generates no code (before
            Volta), or without a compiler for the code that is generated.
    """
    if wanted is False or (wanted == "auto" and device.type != "cuda"):
        return False
    missing = missing_for_code(device)
    if missing and wanted != "auto":
        raise UserError(f"compile: true needs {missing}; use compile: false")
    return not missing


@contextmanager
def compiled(enabled: bool = True, backend: str = "inductor") -> Iterator[None]:
    """Run every `compilable` function that is called inside this context compiled.

    Args:
        enabled: Whether to compile; False runs the functions uncompiled.
        backend: Backend of `torch.compile`; tests use "aot_eager", which needs no compiler.
    """
    token = _backend.set(backend if enabled else None)
    try:
        yield
    finally:
        _backend.reset(token)


def as_here(function: Callable[P, R]) -> Callable[P, R]:
    """Return the function so that, wherever it is called, it runs compiled if it would be in this place.

    A backward pass that computes a forward pass again runs outside the context, and on a GPU on another thread.
    """
    if torch.compiler.is_compiling():  # see `compilable`
        return function
    backend = _backend.get()

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with compiled(backend is not None, backend or "inductor"):
            return function(*args, **kwargs)

    return run


@overload
def compilable(function: Callable[P, R]) -> Callable[P, R]: ...


@overload
def compilable(*, breaks: bool) -> Callable[[Callable[P, R]], Callable[P, R]]: ...


def compilable(
    function: Callable[P, R] | None = None, *, breaks: bool = False
) -> Callable[P, R] | Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a function that runs compiled inside `compiled`, and unchanged outside.

    Shapes are constants of the compiled code, so a function should meet only a few of them.

    Args:
        function: A function of tensors, modules and constants.
        breaks: Whether it may call operations that cannot be compiled, such as a collective one; the parts between them
            are compiled.
    """
    if function is None:
        return partial(compilable, breaks=breaks)
    versions: dict[str, Callable[P, R]] = {}

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        # Asked first: a caller's own torch.compile would break its graph at the context variable.
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        backend = _backend.get()
        if backend is None:
            return function(*args, **kwargs)
        if backend not in versions:
            # Here, since it takes seconds in every process that imports this module.
            import torch._dynamo.config as dynamo

            dynamo.recompile_limit = SHAPES
            versions[backend] = torch.compile(function, backend=backend, dynamic=False, fullgraph=not breaks)
        return versions[backend](*args, **kwargs)

    return run
