"""`rayreid plan` and `rayreid run --dry-run`, with bad input."""

import json

import pytest
import yaml

from rayreid.cli import main


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs a command where Ray and MLflow refuse to start; returns its exit status and both streams."""
    monkeypatch.setenv("RAYREID_ROOT", str(tmp_path / "outputs"))
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)

    def refuse(*args, **kwargs):
        raise AssertionError("a plan starts nothing")

    monkeypatch.setattr("ray.init", refuse)
    monkeypatch.setattr("rayreid.pipeline.experiment_runner.Tracker", refuse)

    def command(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(one) for one in arguments])
        assert not (tmp_path / "outputs").exists()
        shown = capsys.readouterr()
        return ended.value.code or 0, shown.out, shown.err

    return command


def test_a_plan_and_a_dry_run_show_the_same(command, tiny):
    status, out, err = command("plan", tiny())
    assert (status, err) == (0, "") and out.startswith("tiny  1 row, ") and "made  metrics  evaluate/" in out
    assert command("run", tiny(), "--dry-run") == (0, out, "")


def test_overrides_count(command, tiny):
    assert "subset" not in command("plan", tiny(), "select.fraction=1.0")[1]


def test_json_and_mermaid_are_read_by_their_readers(command, tiny):
    found = json.loads(command("plan", tiny(), "--json", "--price-per-gpu-hour", "2")[1])
    assert found["name"] == "tiny" and "price" in found["total"]
    assert command("plan", tiny(), "--mermaid")[1].startswith("flowchart LR\n")


def test_a_sweep_shows_its_trials(command, tiny):
    out = command("plan", tiny(sweep={"parameters": {"select.fraction": [0.25, 0.5]}}))[1]
    assert out.startswith("tiny  2 trials, ") and "select.fraction=0.25" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--json", "--mermaid"], "choose one"),
        (["--price-per-gpu-hour", "-1"], "give 0 to 1e+12"),
        (["--price-per-gpu-hour", "1e308"], "give 0 to 1e+12"),
        (["--price-per-gpu-hour", "nan"], "give 0 to 1e+12"),
        (["--gpus", "-1"], "give 0 or more"),
        (["--cpus", "0"], "give 1 or more"),
        (["pretrain.epoch=3"], "did you mean 'epochs'?"),
        (["resources.workers=64", "--cpus", "2"], "resources.workers is 64"),
    ],
)
def test_bad_input_is_one_line(command, tiny, arguments, told):
    status, out, err = command("plan", tiny(), *arguments)
    assert (status, out) == (2, "") and told in err and len(err.splitlines()) == 1


def test_a_missing_and_a_broken_file_are_one_line(command, tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("pool: [1")
    for file, told in ((tmp_path / "no.yaml", "no such experiment file"), (path, "not valid YAML")):
        status, out, err = command("plan", file)
        assert (status, out) == (2, "") and told in err and len(err.splitlines()) == 1


def test_a_missing_dataset_does_not_hide_the_rest(command, tiny):
    status, out, _ = command("plan", tiny(pool={"dataset": "folder", "root": "nowhere"}))
    assert status == 0 and "what depends on its size is not estimated" in out and "made  model" in out


def test_the_file_is_not_touched(command, tiny):
    path = tiny()
    before = yaml.safe_load(path.read_text())
    command("plan", path)
    assert yaml.safe_load(path.read_text()) == before


@pytest.mark.parametrize("form", [[], ["--json"], ["--mermaid"]])
def test_no_form_shows_credentials(command, tiny, form):
    rows = [{"label": "here"}, {"pool.root": "s3://AKuser:hunter2pw@store/images"}]
    status, out, err = command("plan", tiny(compare=rows), *form)
    assert status == 0 and "hunter2" not in out + err and "store/images" in out


def test_a_dry_run_refuses_the_baseline_that_the_run_would_refuse(command, tiny):
    status, out, err = command("run", tiny(), "--dry-run", "--against", "nothing")
    assert (status, out) == (2, "") and "no row has this label; there are: tiny" in err
    swept = tiny(sweep={"parameters": {"select.fraction": [0.25, 0.5]}})
    assert "a sweep has no rows" in command("run", swept, "--dry-run", "--against", "tiny")[2]
    assert command("run", tiny(), "--dry-run", "--against", "tiny")[0] == 0
