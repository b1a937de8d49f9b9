"""rayreid: self-supervised pre-training for person re-identification, distributed with Ray.

From Python: `rayreid.load("experiments/mine.yaml").run()` and `rayreid.Model.load(file).embed(images)`; see
`docs/python_api.md`. These names are imported when they are first used, so `import rayreid` takes no time and needs
neither torch nor Ray. The rooms and what may import what are described in `docs/architecture.md`.
"""

from importlib import import_module

__version__ = "0.1.0"

__all__ = ["Experiment", "Model", "Results", "UserError", "__version__", "load"]

_PLACES = {
    "Experiment": "rayreid.api",
    "load": "rayreid.api",
    "Model": "rayreid.inference.model",
    "Results": "rayreid.pipeline.results",
    "UserError": "rayreid.errors",
}
"""The modules of the names that are imported when they are first used (PEP 562); `__init__.pyi` tells type checkers."""


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
