"""The form of a store's `manifest.json`."""

from rayreid import forms

_SHARD = forms.record(
    {"file": forms.matching(r"shards/[0-9]{1,9}\.arrow"), "rows": forms.count, "checksum": forms.text}
)
_COUNTS = forms.mapping_of(forms.count)

FORM = forms.record(
    {
        "format": forms.whole,
        "dataset": forms.text,
        "version": forms.text,
        "fingerprint": forms.text,
        "read": forms.count,
        "stored": forms.count,
        "rejected": _COUNTS,
        "counts": _COUNTS,
        "identities": _COUNTS,
        "cameras": forms.count,
        "shards": forms.list_of(_SHARD),
    },
    {"left_out": _COUNTS, "origin": forms.text},
)
"""The form of a manifest; see `finish_store` for the meaning of its keys."""
