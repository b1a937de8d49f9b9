"""The model card: README.md with the front matter that model hubs read, and what a user of the weights must know."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rayreid import __version__
from rayreid.evaluation.metrics import RERANKED, TITLES
from rayreid.inference.named_inputs import PUBLISHED
from rayreid.masking import masked
from rayreid.publishing.measurements import Measurement
from rayreid.publishing.origin import Dataset, Missing, Training
from rayreid.publishing.publication import Publication

CARD = "README.md"
PIPELINE = "image-feature-extraction"
PERSON, VEHICLE = "person", "vehicle"
_OF_VEHICLES = ("veri776",)
"""Layouts whose images show vehicles; a model whose history or evaluations have one is a model of vehicles."""
_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)  # Markdown: the values are escaped by `_cell` where they stand in a table
_BUDGET = {
    "images": "images",
    "identities": "identities",
    "steps": "steps",
    "images_seen": "images seen",
    "workers": "workers",
    "precision": "precision",
    "machine": "machine",
    "gpu_hours": "GPU-hours",
    "seconds": "seconds",
}
"""Facts of a training that its budget consists of, and their titles."""
_LAYOUTS = ("synthetic", "folder", "table", "pattern", "lmdb", "webdataset", "combined", "store")
"""Names that say how a dataset was read, and not which one it is."""


@dataclass(frozen=True)
class Card:
    """A model card.

    Attributes:
        name: The model's name.
        licence: Identifier of the licence.
        publication: The network.
        onnx: Name of the ONNX file; None if there is none.
        trainings: The model's trainings, in order; empty if they are not recorded.
        datasets: The datasets of its history.
        missing: The artifacts of its history that are missing or damaged.
        measurements: Its evaluations.
    """

    name: str
    licence: str
    publication: Publication
    onnx: str | None
    trainings: Sequence[Training]
    datasets: Sequence[Dataset]
    missing: Sequence[Missing]
    measurements: Sequence[Measurement]

    @property
    def subject(self) -> str:
        """Return what the images show: `person` or `vehicle`."""
        names = [*(one.name for one in self.datasets), *(one.title for one in self.measurements)]
        return VEHICLE if any(name.startswith(_OF_VEHICLES) for name in names) else PERSON

    def metadata(self) -> dict[str, Any]:
        """Return the front matter."""
        spec = self.publication.backbone.spec
        tags = [f"{self.subject}-re-identification", "image-retrieval", "rayreid", spec["name"], f"stem-{spec['stem']}"]
        tags += list(dict.fromkeys(_method(one) for one in self.trainings))
        names = [one.name.partition(" ")[0] for one in self.datasets]
        found: dict[str, Any] = {
            "license": self.licence,
            "library_name": "rayreid" if self.publication.lacking else "timm",
            "pipeline_tag": PIPELINE,
            "tags": list(dict.fromkeys(tags)),
            "datasets": sorted({name for name in names if name not in _LAYOUTS}),
            "metrics": ["mAP", "rank1"] if self.measurements else [],
            "model-index": self._index(),
        }
        return {key: value for key, value in found.items() if value}

    def text(self) -> str:
        """Return the card."""
        spec, header = self.publication.backbone.spec, self.publication.header
        height, width = spec["img_size"]
        front = yaml.safe_dump(self.metadata(), sort_keys=False, allow_unicode=True)
        card = _TEMPLATES.get_template("card.md.jinja").render(
            card=self,
            spec=spec,
            size=f"{height}x{width}",
            dimensions=self.publication.backbone.num_features,
            parameters=f"{sum(one.numel() for one in self.publication.backbone.parameters()) / 1e6:.1f} M",
            mean=_numbers(header["mean"]),
            std=_numbers(header["std"]),
            interpolation=header.get("interpolation", "bilinear"),
            weights=PUBLISHED,
            version=__version__,
            results=[_results(one) for one in self.measurements],
            cell=_cell,
            budget=_budget,
            recipe=lambda one: yaml.safe_dump(dict(one.recipe), sort_keys=False, allow_unicode=True).rstrip(),
        )
        return masked(f"---\n{front}---\n\n{card}")

    def summary(self) -> list[str]:
        """Return lines about what was written, for the terminal."""
        lacking = self.publication.lacking
        lines = [
            f"{PUBLISHED}: {self.publication.backbone.spec['name']}, {self.publication.backbone.num_features} values"
        ]
        lines += (
            [f"no config.json: timm does not have {lacking}"] if lacking else ["config.json: timm gives equal features"]
        )
        lines += [f"{self.onnx}: onnxruntime gives equal features"] if self.onnx else []
        known = "its training is not recorded" if not self.trainings else f"{len(self.trainings)} trainings"
        lines.append(f"{CARD}: licence {self.licence}, {known}, {len(self.measurements)} evaluations")
        if self.missing:
            names = ", ".join(f"{one.id} ({one.use})" for one in self.missing)
            lines.append(
                f"warning: missing or damaged under the output root: {names}; the card says so and is incomplete, so "
                "restore them and publish again"
            )
        return lines

    def _index(self) -> list[dict[str, Any]]:
        results = [
            {
                "task": {"type": PIPELINE, "name": f"{self.subject.capitalize()} re-identification"},
                "dataset": {"type": one.kind, "name": one.title},
                "metrics": [
                    {"type": name, "name": title, "value": round(one.own[name], 4)}
                    for name, title in TITLES.items()
                    if name in one.own
                ],
            }
            for one in self.measurements
            if one.dataset is not None
        ]
        return [{"name": self.name, "results": results}] if results else []


def _results(one: Measurement) -> dict[str, Any]:
    """Return a measurement as the template shows it, in per cent."""
    titles = {
        f"{name}{end}": title + (", re-ranked" if end else "")
        for end in ("", RERANKED)
        for name, title in TITLES.items()
    }
    several = len(one.by_seed) > 1
    lines = [
        (
            title,
            f"{100 * one.own[name]:.1f}",
            f"{100 * one.mean(name):.1f} ± {100 * one.std(name):.1f}" if several else "",
        )
        for name, title in titles.items()
        if all(name in scores for scores in one.by_seed.values())
    ]
    return {
        "measurement": one,
        "lines": lines,
        "several": several,
        "seeds": ", ".join(map(str, one.by_seed)),
        "interval": f"{100 * one.low:.1f} to {100 * one.high:.1f}",
    }


def _budget(training: Training) -> str:
    facts = training.facts
    shown = {_BUDGET[key]: facts[key] for key in _BUDGET if key in facts}
    parts = [f"{title} {value:,}" if isinstance(value, int) else f"{title} {value}" for title, value in shown.items()]
    if facts.get("resumed"):
        parts.append("without the time of interrupted runs")
    return ", ".join(parts)


def _method(training: Training) -> str:
    section = training.recipe.get(training.stage, {})
    return str(section.get("method", {"finetune": "supervised"}.get(training.stage, training.stage)))


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _cell(value: object) -> str:
    """Return a value for a cell of a Markdown table."""
    return " ".join(str(value).replace("|", "\\|").replace("<", "&lt;").split())
