"""The experiment files that travel with the package."""

from pathlib import Path

import pytest

from rayreid.cli import main
from rayreid.config.loading import load_experiment, rows
from rayreid.errors import UserError
from rayreid.pipeline import shipped

REPOSITORY = Path(__file__).parents[2] / "experiments"


def named(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml")}


def test_a_checkout_has_its_own_files_once():
    assert shipped.experiment_files() == REPOSITORY


def test_an_installed_package_has_them_inside(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path / "a/b/rayreid")
    with pytest.raises(UserError, match="no experiment files; install rayreid again"):
        shipped.experiment_files()
    inside = tmp_path / "a/b/rayreid/experiments"
    shipped_files = {"defaults.yaml": "seed: 0\n", "demo.yaml": "seed: 1\n"}
    inside.mkdir(parents=True)
    for name, text in shipped_files.items():
        (inside / name).write_text(text)
    assert shipped.experiment_files() == inside


def test_copies_can_be_extended_and_are_not_written_twice(tmp_path):
    written = shipped.copy_experiment_files(tmp_path / "new" / "experiments")
    assert named(tmp_path / "new/experiments") == named(REPOSITORY) and len(written) == len(named(REPOSITORY))
    (tmp_path / "new/experiments/mine.yaml").write_text("extends: demo.yaml\nname: mine\n")
    assert len(rows(load_experiment(tmp_path / "new/experiments/mine.yaml"))) == 4
    assert shipped.copy_experiment_files(tmp_path / "new/experiments") == []


def test_a_file_of_other_content_stays_and_nothing_is_written(tmp_path):
    (tmp_path / "demo.yaml").write_text("mine\n")
    with pytest.raises(UserError, match=r"demo\.yaml: differs from the file of this version; move it away"):
        shipped.copy_experiment_files(tmp_path)
    assert named(tmp_path) == {"demo.yaml"} and (tmp_path / "demo.yaml").read_text() == "mine\n"


def test_a_folder_in_the_place_of_a_file_is_told(tmp_path):
    (tmp_path / "demo.yaml").mkdir()
    with pytest.raises(UserError, match=r"demo\.yaml: there is a folder at this path; move it away"):
        shipped.copy_experiment_files(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["demo.yaml"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("init", ""), "FOLDER is empty"),
        (("init", " "), "FOLDER is empty"),
        (("demo", "--root", ""), "--root is empty"),
    ],
)
def test_an_empty_name_is_not_the_current_folder(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.setenv("RAYREID_ROOT", "elsewhere")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rayreid.pipeline.experiment_runner.run", lambda *arguments: pytest.fail("it runs"))
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"rayreid: {message}; name the folder")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_place_that_cannot_be_written_is_refused(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        shipped.copy_experiment_files(tmp_path / place)


def test_init_says_where_it_wrote(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["init", str(tmp_path / "experiments")])
    assert not ended.value.code
    assert capsys.readouterr().out == f"{tmp_path / 'experiments'}: {len(named(REPOSITORY))} files written\n"


def test_the_demo_runs_its_file_in_the_root_that_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYREID_ROOT", "elsewhere")
    seen = []

    def instead(experiment, against):
        from rayreid.paths import output_root

        seen.append((experiment.name, experiment.seed, against, output_root()))

    monkeypatch.setattr("rayreid.pipeline.experiment_runner.run", instead)
    with pytest.raises(SystemExit) as ended:
        main(["demo", "seed=3", "--root", str(tmp_path / "out")])
    assert not ended.value.code
    assert seen == [("demo", 3, None, tmp_path / "out")]
