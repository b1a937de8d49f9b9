"""Functions that MkDocs calls: they add the generated pages, and pages for files of the repository outside docs/."""

import json
import posixpath
import re
from pathlib import Path

import reference
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"\]\(([^)#:\s]+)(#[^)\s]*)?\)")
OUTSIDE = "repository"
"""Folder of the site for the pages that show files of the repository outside docs/."""
LANGUAGES = {".yaml": "yaml", ".py": "python", ".toml": "toml"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put one page per room of the package into the navigation."""
    (pages,) = (section["Reference"] for section in config.nav or [] if "Reference" in section)
    pages.append({"Python": [{f"rayreid.{room}": _room_page(room)} for room in reference.rooms()]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the reference, the JSON Schema, and a page for each file outside docs/ that a page links to."""
    added = {
        "reference/keys.md": reference.keys(),
        "reference/commands.md": reference.commands(),
        "experiment.schema.json": json.dumps(reference.schema(), indent=2, ensure_ascii=False),
        **{_room_page(room): reference.python(room) for room in reference.rooms()},
    }
    texts = {file.src_uri: Path(str(file.abs_src_path)).read_text("utf-8") for file in files.documentation_pages()}
    waiting = [*texts.items()]
    for uri, text in waiting:  # it grows: a page that is added may link to others
        for path in _linked_outside(uri, text):
            page = _page_of(path)
            if page not in added:
                added[page] = _shown(path)
                waiting.append((page, added[page]))
    for uri, content in added.items():
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links to files of the repository lead to their pages."""
    uri = page.file.src_uri
    return LINK.sub(lambda link: f"]({_lead(uri, link[1])}{link[2] or ''})", markdown)


def _lead(uri: str, link: str) -> str:
    """Return a link of a page as one between pages of the site."""
    path = _in_repository(uri, link)
    return link if path is None else posixpath.relpath(_page_of(path), posixpath.dirname(uri) or ".")


def _linked_outside(uri: str, text: str) -> list[Path]:
    found = (_in_repository(uri, link[1]) for link in LINK.finditer(text))
    return [path for path in found if path is not None and path.parts[0] != "docs"]


def _in_repository(uri: str, link: str) -> Path | None:
    """Return the path, from the root of the repository, that a link of a page names; None if nothing lies there."""
    own = uri.removeprefix(f"{OUTSIDE}/") if uri.startswith(f"{OUTSIDE}/") else f"docs/{uri}"
    path = Path(posixpath.normpath(posixpath.join(posixpath.dirname(own), link)))
    return path if path.parts[0] != ".." and (ROOT / path).exists() else None


def _page_of(path: Path) -> str:
    """Return the page, or the file in docs/, that shows a path of the repository."""
    if path.parts[0] == "docs":
        return path.relative_to("docs").as_posix()
    return f"{OUTSIDE}/{path.as_posix().removesuffix('.md')}.md"


def _room_page(room: str) -> str:
    return f"reference/python/{room}.md"


def _shown(path: Path) -> str:
    """Return a page with the content of a file, or with the names in a folder."""
    place = ROOT / path
    if place.is_dir():
        names = [one.name for one in sorted(place.iterdir()) if one.is_file()]
        return f"# {path}/\n\n" + "".join(f"- [{name}]({path.name}/{name})\n" for name in names)
    text = place.read_text("utf-8")
    if path.suffix == ".md":
        return text
    return f"{reference.UNSEARCHED}# {path}\n\n````{LANGUAGES.get(path.suffix, 'text')}\n{text.rstrip()}\n````\n"
