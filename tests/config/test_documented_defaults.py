"""The defaults in the key tables of docs/configuration/ are those of the schema."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pydantic_core import PydanticUndefined

from rayreid.config import Adapt, Backbone, Evaluate, Finetune, Pretrain, Resources, Score, Section, Select, Sweep

PAGES = sorted((Path(__file__).parents[2] / "docs" / "configuration").glob("*.md"))
SECTIONS: dict[str, type[Section]] = {
    "Backbone": Backbone,
    "Pre-training": Pretrain,
    "Scores": Score,
    "Selection": Select,
    "Fine-tuning": Finetune,
    "Adaptation": Adapt,
    "Evaluation": Evaluate,
    "Sweeps": Sweep,
    "Resources": Resources,
}


def written(section: type[Section], key: str) -> str:
    """The default of a key as a file would say it."""
    field = section.model_fields[key]
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return "required"
    plain = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")


def rows() -> Iterator[tuple[str, str, str]]:
    """(title of the section, keys, defaults) of each row of a table of keys."""
    title, inside = "", False
    for line in (line for page in PAGES for line in page.read_text(encoding="utf-8").splitlines()):
        if line.startswith("## "):
            title = line.removeprefix("## ")
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if cells[:2] == ["key", "default"]:
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside and not cells[0].startswith("---"):
            yield title, cells[0], cells[1]


def test_every_section_has_its_table():
    assert {title for title, _, _ in rows()} == set(SECTIONS)


@pytest.mark.parametrize(("title", "keys", "defaults"), rows())
def test_a_default_is_that_of_the_schema(title, keys, defaults):
    names = re.findall(r"`([^`]+)`", keys)
    assert re.findall(r"`([^`]+)`", defaults) == [written(SECTIONS[title], name) for name in names]


def test_every_key_is_in_its_table():
    for title, section in SECTIONS.items():
        told = {name for of, keys, _ in rows() if of == title for name in re.findall(r"`([^`]+)`", keys)}
        assert told == set(section.model_fields), title
