"""The probes that a finished pre-training recorded."""

from rayreid.execution.trainer import METRICS
from rayreid.storage.artifacts import Artifact
from rayreid.storage.metrics_log import Journal


def probes_of(weights: Artifact | None) -> dict[str, float | None]:
    """Return the probes of a pre-training before its first step and after its last one; None where there is none."""
    history = [] if weights is None else Journal(weights.path / METRICS).history()
    probes = [row for row in history if "probe_mAP" in row]
    start = next((row for row in probes if row["epoch"] == 0), {})
    end = probes[-1] if probes and probes[-1]["epoch"] > 0 else {}
    names = {"probe": "probe_mAP", "effective_rank": "probe_effective_rank"}
    return {
        f"{column}_{when}": row.get(name)
        for column, name in names.items()
        for when, row in (("start", start), ("end", end))
    }
