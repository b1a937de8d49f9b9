"""The code blocks of the documents: experiment files can be read, and commands and options are those that there are."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
import yaml

from rayreid.cli import app
from rayreid.config.loading import load_experiment, rows
from rayreid.errors import UserError

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
UsageError = typer.BadParameter.__mro__[1]
"""The error of Click, of which Typer has its own copy, for a wrong argument."""
COMMANDS = typer.main.get_command(app)
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
PROGRAMS = {
    *("cd", "export", ".", "source", "ulimit", "sudo", "git", "curl", "wget"),
    *("pip", "python3", "ray", "mlflow", "kubectl", "docker", "sbatch", "salloc", "srun", "scancel", "bash", "exit"),
}
"""Programs whose own options are not checked here."""
LABELLED = {"dataset": "synthetic", "options": {"part": "target", "identities": 4, "test_identities": 4}}
UNLABELLED = {"dataset": "synthetic", "options": {"part": "pool", "images": 8}}


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    page: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks() -> Iterator[Block]:
    for path in PAGES:
        language, start, inside = "", 0, []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            fence = re.match(r"\s*```(\S*)$", line)
            if fence and not start:
                language, start, inside = fence[1], number, []
            elif fence:
                yield Block(path.relative_to(ROOT).as_posix(), start, language, "\n".join(inside) + "\n")
                start = 0
            elif start:
                inside.append(line)
        assert not start, f"{path}: the block of line {start} has no end"


BLOCKS = list(blocks())


def of(*languages: str) -> list:
    return [pytest.param(one, id=one.place) for one in BLOCKS if one.language in languages]


def shell_lines(text: str) -> Iterator[str]:
    """The commands of a shell block; of a transcript (`$ …`) only what was typed."""
    joined = re.sub(r"\\\n\s*", "", text)
    typed = [line.removeprefix("$ ") for line in joined.splitlines() if line.startswith("$ ")]
    for line in typed or joined.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            yield line.strip()


def words_of(line: str) -> list[str]:
    """The words of a command without its variables (`NAME=value`), comment, redirection and `&`."""
    words = shlex.split(line, comments=True)
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    for mark in (">", "|", "&", "&&", ";", "2>&1"):
        if mark in words:
            words = words[: words.index(mark)]
    return words


def check_rayreid(words: list[str]) -> None:
    """Parse the arguments of `rayreid` as the command line does, without running anything."""
    group, name = COMMANDS, "rayreid"
    while hasattr(group, "commands"):
        assert words and words[0] in group.commands, f"{name}: no command {words[:1]}"
        name, group, words = f"{name} {words[0]}", group.commands[words[0]], words[1:]
    with group.make_context(name, list(words)) as context:
        overrides = context.params.get("overrides") or []
    check_overrides(overrides)


def check_overrides(overrides: list[str]) -> None:
    load_experiment(ROOT / "experiments/demo.yaml", overrides)


def check_command(line: str) -> None:
    words = words_of(line)
    if not words:  # variables alone
        return
    program = Path(words[0]).name if "/" in words[0] else words[0]
    if program == "rayreid":
        check_rayreid(words[1:])
    elif program == "make":
        assert {word for word in words[1:] if "=" not in word} <= TARGETS, line
    elif program == "python":
        check_python(words[1:])
    else:
        assert program in PROGRAMS, f"{line!r}: {program} is not known here"
        if "--" in words:  # ray job submit … -- python jobs/run.py FILE
            check_command(shlex.join(words[words.index("--") + 1 :]))


def check_python(words: list[str]) -> None:
    """Check that a script exists, and the arguments of a job, which are those of its command."""
    if words[0] in ("-m", "-c"):
        return
    assert (ROOT / words[0]).is_file(), words[0]
    script = Path(words[0])
    if script.parent.name == "jobs":
        check_rayreid([script.stem, *words[1:]])


@pytest.mark.parametrize("block", of("sh", "bash", "shell", "console", "text"))
def test_commands_and_their_options_exist(block):
    transcript = block.language == "text"
    for line in shell_lines(block.text):
        if not transcript or f"$ {line}" in re.sub(r"\\\n\s*", "", block.text):
            check_command(line)


INLINE = re.compile(r"`(rayreid [a-z][^`]*)`")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_within_the_text_exist(path):
    text = re.sub(r"(?ms)^\s*```.*?^\s*```", "", path.read_text(encoding="utf-8"))
    for command in INLINE.findall(" ".join(text.split())):
        words = [word for word in shlex.split(command.replace("…", "")) if word not in ("...",)]
        name, group, rest = "rayreid", COMMANDS, words[1:]
        while hasattr(group, "commands") and rest and rest[0].islower():
            assert rest[0] in group.commands, f"{command}: there is no {name} {rest[0]}"
            name, group, rest = f"{name} {rest[0]}", group.commands[rest[0]], rest[1:]
        known = {option for one in getattr(group, "params", []) for option in [*one.opts, *one.secondary_opts]}
        if not hasattr(group, "commands"):
            assert {word.split("=")[0] for word in rest if word.startswith("--")} <= known | {"--help"}, command


@pytest.mark.parametrize("block", of("yaml"))
def test_experiment_files_can_be_read(block, tmp_path):
    """A block is a whole file, or sections of one: what it lacks comes from a file with synthetic data."""
    tree = yaml.safe_load(block.text)
    assert isinstance(tree, dict)
    base = {"pool": UNLABELLED, "target": LABELLED}
    folder = tmp_path / "experiments"
    folder.mkdir()
    for shipped in (ROOT / "experiments").glob("*.yaml"):
        (folder / shipped.name).write_text(shipped.read_text())
    (folder / "base.yaml").write_text(yaml.safe_dump({"extends": "defaults.yaml", **base}))
    for other in BLOCKS:  # a page's later file may extend an earlier one
        name = re.search(r"^name: (\S+)$", other.text, re.MULTILINE)
        if other.language == "yaml" and other.page == block.page and name:
            (folder / f"{name[1]}.yaml").write_text(other.text)
    text = block.text if "extends" in tree else f"extends: base.yaml\n{block.text}"
    (folder / "block.yaml").write_text(text)
    assert rows(load_experiment(folder / "block.yaml"))


def test_python_can_be_compiled():
    for block in BLOCKS:
        if block.language == "python":
            compile(block.text, block.place, "exec")


@pytest.mark.parametrize(
    "line",
    [
        "rayreid runs experiments/mine.yaml",
        "rayreid run experiments/mine.yaml --agianst none",
        "rayreid run experiments/mine.yaml select.fracton=0.5",
        ".venv/bin/rayreid search --gallery here",
        "make demos",
        "python benchmarks/no_such.py",
        "ray job submit -- python jobs/run.py experiments/demo.yaml --wrong",
        "rayried demo",
    ],
)
def test_a_wrong_command_is_found(line):
    with pytest.raises((AssertionError, UserError, UsageError)):
        check_command(line)


def test_every_block_has_a_language_that_is_checked():
    known = {"sh", "bash", "shell", "console", "text", "yaml", "python", "dockerfile"}
    assert [one.place for one in BLOCKS if one.language not in known] == []


def test_every_page_of_how_to_is_found_from_the_first_page_and_the_readme():
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").glob("howto/*.md")}
    pages |= {"plan.md", "slurm.md", "cluster.md", "publishing.md", "python_api.md"}
    home, readme = (ROOT / "docs/index.md").read_text(), (ROOT / "README.md").read_text()
    assert [page for page in sorted(pages) if f"]({page})" not in home or f"](docs/{page}" not in readme] == []
