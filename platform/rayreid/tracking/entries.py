"""The form of an entry that waits for MLflow, by its kind; see `rayreid.tracking.store.send`."""

from pathlib import PurePosixPath
from typing import Any

from rayreid import forms


def entry(content: Any) -> str | None:
    """Return what is wrong with the content of an entry; None if it can be sent."""
    fault = _ENTRY(content)
    if fault is not None:
        return fault
    form = _WHAT.get(content["kind"])
    if form is None:
        return f"{content['kind'][:40]!r} is no kind of entry"
    return f"'what': {fault}" if (fault := form(content["what"])) else None


def _inside(value: Any) -> str | None:
    """Accept the path of an artifact within its run."""
    if fault := forms.text(value):
        return fault
    path = PurePosixPath(value)
    return "not a path within a run" if path.is_absolute() or ".." in path.parts or not path.name else None


_ENTRY = forms.record({"uri": forms.text, "kind": forms.text, "what": forms.anything})
_DATASET = {"name": forms.text, "digest": forms.text, "source": forms.text, "context": forms.text}
_WHAT: dict[str, forms.Form] = {
    "params": forms.mapping_of(forms.text),
    "tags": forms.mapping_of(forms.text),
    "rows": forms.list_of(forms.record({"step": forms.whole, "time": forms.finite}, others=forms.number)),
    "journal": forms.matching(r"/[^\0]{1,4000}\.jsonl"),
    "dataset": forms.record({**_DATASET, "profile": forms.mapping_of(forms.anything)}),
    "artifact": forms.record({"name": _inside}),
    "file": forms.record({"path": forms.text, "folder": forms.or_none(_inside)}),
    "resume": forms.record({}),
    "end": forms.record({"status": forms.text, "time": forms.finite}),
}
