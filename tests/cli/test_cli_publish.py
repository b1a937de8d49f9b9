import pytest

from model_history import save
from rayreid.cli import main


def status_of(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    return int(ended.value.code or 0)


def test_publish_writes_a_folder_and_says_what_is_in_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RAYREID_ROOT", str(tmp_path / "outputs"))
    file = str(save(tmp_path / "a.safetensors"))
    assert status_of("publish", file, str(tmp_path / "mine"), "--license", "mit", "--no-onnx", "--name", "ours") == 0
    shown = capsys.readouterr().out
    assert "timm gives equal features" in shown
    assert "licence mit, its training is not recorded, 0 evaluations" in shown
    assert "# ours\n" in (tmp_path / "mine" / "README.md").read_text()
    assert status_of("publish", file, str(tmp_path / "mine"), "--license", "mit", "--no-onnx") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("rayreid: ") and "this folder is not empty; name another one, or --force" in line
    assert status_of("publish", file, str(tmp_path / "mine"), "--license", "mit", "--no-onnx", "--force") == 0


def test_publish_asks_for_a_licence(tmp_path, capsys):
    assert status_of("publish", "a.safetensors", str(tmp_path / "mine")) == 2
    assert "--license" in capsys.readouterr().err


def test_the_help_of_publish_names_its_options(capsys):
    assert status_of("publish", "--help") == 0
    shown = capsys.readouterr().out
    for option in ("--license", "--name", "--no-onnx", "--force"):
        assert option in shown
