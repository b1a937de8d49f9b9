"""The Python interface, as code that imports `rayreid` uses it."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import rayreid
from rayreid.pipeline import results as results_module

HEAVY = ("torch", "ray", "mlflow", "pandas", "numpy", "pydantic", "timm")


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYREID_ROOT", str(tmp_path / "outputs"))
    return tmp_path / "outputs"


def imported_after(program: str) -> set[str]:
    code = f"import sys\n{program}\nprint(*sorted({set(HEAVY)!r} & set(sys.modules)))"
    source = str(Path(rayreid.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": source}, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_import_needs_nothing_heavy():
    assert imported_after("import rayreid; dir(rayreid); rayreid.__version__") == set()


def test_reading_an_experiment_needs_neither_torch_nor_ray():
    assert not {"torch", "ray", "mlflow", "pandas"} & imported_after("import rayreid; rayreid.load")


def test_a_model_needs_neither_ray_nor_pydantic():
    assert not {"ray", "mlflow", "pandas", "pydantic"} & imported_after(
        "import rayreid; rayreid.Model; rayreid.UserError"
    )


def test_public_names_exist_and_are_documented():
    for name in set(rayreid.__all__) - {"__version__"}:
        member = getattr(rayreid, name)
        assert inspect.getdoc(member), name
        assert name in dir(rayreid)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = rayreid.nothing


def test_type_checkers_see_the_same_names():
    stub = ast.parse(Path(rayreid.__file__).with_suffix(".pyi").read_text())
    places = {node.names[0].asname: node.module for node in stub.body if isinstance(node, ast.ImportFrom)}
    assert places == rayreid._PLACES
    assert {*places, "__version__"} == set(rayreid.__all__)
    [listed] = (node.value for node in stub.body if isinstance(node, ast.Assign))
    assert ast.literal_eval(listed) == rayreid.__all__


def test_load_resolves_a_file_with_overrides(tiny):
    experiment = rayreid.load(tiny(), "select.fraction=0.25", "seed=3")
    assert (experiment.config.select.fraction, experiment.config.seed) == (0.25, 3)
    assert "fraction: 0.25" in experiment.to_yaml()
    assert repr(experiment) == "<rayreid.Experiment tiny>"


@pytest.mark.parametrize(
    ("override", "message"),
    [("select.fractoin=0.25", "fractoin"), ("nothing", "write key.path=value"), ("seed=x", "seed")],
)
def test_what_the_command_refuses_is_refused_in_the_same_line(tiny, override, message):
    from rayreid.config.loading import load_experiment

    path = tiny()
    with pytest.raises(rayreid.UserError, match=message) as caught:
        rayreid.load(path, override)
    with pytest.raises(rayreid.UserError) as expected:
        load_experiment(path, [override])
    assert str(caught.value) == str(expected.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("override", [["seed=1"], {"seed": 1}, ("seed=1",), 1, None], ids=repr)
def test_overrides_in_another_form_are_refused_in_one_line(tiny, override):
    with pytest.raises(
        rayreid.UserError, match=r"overrides: .* is not text; give each as an argument of its own"
    ) as caught:
        rayreid.load(tiny(), override)
    assert "\n" not in str(caught.value)


def test_a_plan_is_that_of_the_command_line(tiny, root):
    from rayreid.sweeps.sweep_forecast import forecast_of

    experiment = rayreid.load(tiny(pretrain="none"))
    plan = experiment.plan(gpus=0, cpus=2)
    assert [str(step.artifact) for step in plan.to_make] == [
        str(step.artifact) for step in forecast_of(experiment.config, 0, 2).to_make
    ]
    assert len(plan.to_make) == len(plan.steps) == 3
    assert not root.exists()


def test_run_is_that_of_the_command_line(tiny, monkeypatch):
    from rayreid.pipeline import experiment_runner

    calls = []
    monkeypatch.setattr(experiment_runner, "run", lambda *arguments: calls.append(arguments))
    experiment = rayreid.load(tiny(seeds=[0, 1]))
    found = experiment.run("tiny")
    assert calls == [(experiment.config, "tiny")]
    assert isinstance(found, rayreid.Results)
    assert found.unfinished == ("tiny · seed 0", "tiny · seed 1")


def test_run_of_a_sweep_is_that_of_the_command_line(tiny, monkeypatch):
    from rayreid.sweeps import sweep_runner

    calls = []
    monkeypatch.setattr(sweep_runner, "sweep", calls.append)
    experiment = rayreid.load(tiny(pretrain="none", sweep={"parameters": {"finetune.lr": [0.1, 0.2]}}))
    found = experiment.run()
    assert calls == [experiment.config]
    assert found.rows == ["finetune.lr=0.1", "finetune.lr=0.2"]
    for call in (experiment.run, experiment.results):
        with pytest.raises(rayreid.UserError, match="against=x: a sweep has no rows"):
            call("x")
    assert len(calls) == 1


def test_results_of_a_search_are_the_trials_that_it_has_finished(tiny):
    search = {"search": "optuna", "trials": 3, "parameters": {"finetune.lr": {"loguniform": [0.1, 0.2]}}}
    assert rayreid.load(tiny(pretrain="none", sweep=search)).results().rows == []


def test_a_refusal_of_the_storage_is_an_error_of_rayreid(tiny, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device", "/somewhere/file")

    monkeypatch.setattr(results_module, "results_of", full)
    with pytest.raises(rayreid.UserError, match="no room is left on this disk"):
        rayreid.load(tiny()).results()


def test_faults_of_the_program_stay_what_they_are(tiny, monkeypatch):
    def wrong(*arguments):
        raise ZeroDivisionError

    monkeypatch.setattr(results_module, "results_of", wrong)
    with pytest.raises(ZeroDivisionError):
        rayreid.load(tiny()).results()
