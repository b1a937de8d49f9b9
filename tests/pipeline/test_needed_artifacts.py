import pytest

from rayreid.config.loading import load_experiment
from rayreid.pipeline import experiment_runner
from rayreid.pipeline.experiment_folder import path_of
from rayreid.pipeline.graph import plan
from rayreid.pipeline.needed_artifacts import named_in, record_needed, recorded_in
from rayreid.state_files import DamagedFileError
from rayreid.storage.artifacts import lineage

NAME = "pretrain/0123456789ab"


@pytest.fixture
def root(tmp_path):
    (tmp_path / "outputs" / NAME).mkdir(parents=True)
    return tmp_path / "outputs"


@pytest.mark.parametrize("inner", ["", "/", "/weights.pt", "/epochs/3/weights.pt", "/../0123456789ab/weights.pt"])
def test_a_path_in_an_artifact_names_it_wherever_it_stands(root, inner):
    path = f"{root}/{NAME}{inner}"
    assert named_in({"a": [{"b": path}], "steps": 3}, root) == {NAME}
    assert named_in(f"file://{path}", root) == named_in([[path]], root) == {NAME}


def test_relative_paths_are_looked_up_in_the_data_folder_and_here(root, monkeypatch):
    monkeypatch.setenv("RAYREID_DATA", str(root.parent))
    assert named_in(f"outputs/{NAME}/weights.pt", root) == {NAME}
    monkeypatch.setenv("RAYREID_DATA", "/elsewhere")
    monkeypatch.chdir(root / "pretrain")
    assert named_in("0123456789ab/weights.pt", root) == {NAME}
    monkeypatch.setenv("HOME", str(root))
    assert named_in(f"~/{NAME}/weights.pt", root) == {NAME}


def test_links_name_what_they_lead_to_and_where_they_lie(root, tmp_path):
    (tmp_path / "link").symlink_to(root / NAME)
    (tmp_path / "other").symlink_to(root)
    (tmp_path / "large.pt").touch()
    (root / NAME / "weights.pt").symlink_to(tmp_path / "large.pt")
    for path in (tmp_path / "link" / "weights.pt", root / NAME / "weights.pt", tmp_path / "other" / NAME / "gone"):
        assert named_in(str(path), root) == {NAME}
    assert named_in(f"{root}/{NAME}", tmp_path / "other") == {NAME}


def test_a_folder_of_artifacts_names_all_of_them(root):
    (root / "ingest" / "ba9876543210").mkdir(parents=True)
    (root / "ingest" / "notes").mkdir()
    assert named_in(f"{root}/ingest", root) == {"ingest/ba9876543210"}
    assert named_in(str(root), root) == {"ingest/ba9876543210", NAME}


@pytest.mark.parametrize(
    "value", ["", "dino", "timm:vit", "s3://a/b", "~nobody-here/x", "a\0b", "x" * 10_000, None, "/", "file://"]
)
def test_other_values_name_none(root, value):
    assert named_in({"a": value}, root) == set()


def test_records_add_up(tmp_path):
    assert recorded_in(tmp_path) == set()
    record_needed(tmp_path, [NAME])
    written = (tmp_path / "artifacts.json").stat().st_mtime_ns
    record_needed(tmp_path, (name for name in [NAME]))
    assert (tmp_path / "artifacts.json").stat().st_mtime_ns == written
    record_needed(tmp_path, {"ingest/ba9876543210"})
    assert recorded_in(tmp_path) == {NAME, "ingest/ba9876543210"}


@pytest.mark.parametrize("content", ["", "[]", '{"artifacts": ["../../home"]}', '{"artifacts": [["pretrain"]]}'])
def test_a_damaged_record_is_told_and_a_run_replaces_it(tmp_path, content):
    (tmp_path / "artifacts.json").write_text(content)
    with pytest.raises(DamagedFileError, match=r"artifacts\.json"):
        recorded_in(tmp_path)
    record_needed(tmp_path, [NAME])
    assert recorded_in(tmp_path) == {NAME}


def test_a_row_records_what_it_needs_before_anything_is_made(root, tiny, monkeypatch):
    def stopped(*arguments):
        raise KeyboardInterrupt

    class Run:
        def tags(self, values):
            pass

    monkeypatch.setattr(experiment_runner, "make_stores", stopped)
    session = experiment_runner.Session(root, None, None)
    row = load_experiment(tiny(proxy={"source": f"{root}/{NAME}/weights.pt"}, select={"strategy": "random"}))
    with pytest.raises(KeyboardInterrupt):
        experiment_runner.run_row("tiny", row, session, Run())
    planned = {str(one) for one in lineage(plan(row, root)).values()}
    assert recorded_in(path_of(root, row)) == planned | {NAME}
