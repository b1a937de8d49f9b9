"""`rayreid inspect`: what a person sees of a store, and how it says that one is not whole."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rayreid.cli import main
from rayreid.data.store.store import ImageStore, Record, finish_store, write_shard

PLATFORM = Path(__file__).parents[2] / "platform"


def jpeg(height: int, width: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (3 * height, 200, 9)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def store(tmp_path) -> Path:
    """Ten images 20 to 29 pixels high and 10 wide in two shards; one more was cut off, one has brackets in its name."""
    images = {f"{number}.jpg": jpeg(20 + number, 10) for number in range(10)} | {"cut.jpg": jpeg(99, 99)[:-300]}
    records = [Record(key, len(key) % 2, 4, "train", key) for key in images]
    for shard, part in enumerate((records[:5], records[5:])):
        write_shard(tmp_path / "store", shard, part, lambda record: images[record.path])
    finish_store(tmp_path / "store", 2, "mine", "V2", [("[bold]x.jpg", "a [bold] name")])
    return tmp_path / "store"


@pytest.fixture
def inspect(capfd):
    """Run `rayreid inspect`; gives exit status, output and errors."""

    def inspect(*arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["inspect", *map(str, arguments)])
        shown = capfd.readouterr()
        return ended.value.code or 0, shown.out, shown.err

    return inspect


def test_what_a_store_holds(inspect, store):
    code, shown, errors = inspect(store)
    assert (code, errors) == (0, "")
    lines = {" ".join(line.split()) for line in shown.splitlines()}
    assert {"dataset mine V2", f"fingerprint {ImageStore(store).fingerprint}", "cameras 1"} <= lines
    assert "images 12 read = 10 stored + 2 rejected" in lines
    assert f"rejected 1 a [bold] name, 1 truncated (listed in {store / 'rejected.parquet'})" in lines
    assert {"heights 20 to 29 pixels, median 24.5", "widths all 10 pixels"} <= lines
    assert {"split images identities", "train 10 1"} <= lines
    size = sum(path.stat().st_size for path in store.glob("shards/*.arrow"))
    assert f"shards 2, {size / 1024:.1f} KiB on disk" in lines


def test_verify_passes_over_what_is_whole_and_names_what_is_not(inspect, store):
    code, shown, errors = inspect(store, "--verify")
    assert (code, errors) == (0, "") and "all 2 shards" in shown
    second = store / "shards" / "00001.arrow"
    whole = second.read_bytes()
    middle = len(whole) // 2
    second.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    assert inspect(store)[0] == 0  # only reading it all shows that one bit changed
    code, shown, errors = inspect(store, "--verify")
    assert code == 2 and "all 2 shards" not in shown
    assert errors.startswith(f"rayreid: {second}: its bytes changed") and errors.count("\n") == 1


@pytest.mark.parametrize("option", [[], ["--verify"]])
def test_a_missing_shard_is_named_below_the_figures(inspect, store, option):
    (store / "shards" / "00000.arrow").unlink()
    code, shown, errors = inspect(store, *option)
    assert code == 2 and "dataset" in shown
    assert errors.startswith(f"rayreid: {store / 'shards' / '00000.arrow'}: the shard is missing (1 of 2 are)")
    assert errors.count("\n") == 1


def test_a_folder_that_is_no_store(inspect, store, tmp_path):
    for folder, reason in ((tmp_path, "no image store"), (tmp_path / "none", "no such folder")):
        code, shown, errors = inspect(folder, "--verify")
        assert (code, shown) == (2, "")
        assert errors.startswith(f"rayreid: {folder}") and reason in errors and errors.count("\n") == 1
    (store / "manifest.json").unlink()
    assert "not finished" in inspect(store)[2]


def test_the_sheet_shows_the_store_s_images(inspect, store, tmp_path):
    code, shown, errors = inspect(store, "--sheet", tmp_path / "sheet.png")
    assert (code, errors) == (0, "") and str(tmp_path / "sheet.png") in shown
    pixels = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).astype(int)
    for number in range(10):  # each in the colour it was made in
        near = np.abs(pixels - (3 * (20 + number), 200, 9)).max(-1) <= 1
        assert near.sum() > 1000, number


@pytest.mark.parametrize("name", ["none/sheet.png", "sheet.doc", "folder.png"])
def test_a_sheet_that_cannot_be_written(inspect, store, tmp_path, name):
    (tmp_path / "folder.png").mkdir()
    code, _, errors = inspect(store, "--sheet", tmp_path / name)
    assert code == 2
    assert errors.startswith(f"rayreid: --sheet {tmp_path / name}: ") and errors.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.png", "store"]


def test_it_starts_without_ray_mlflow_and_matplotlib(store):
    program = (
        "import sys\nfrom rayreid.cli import main\n"
        f"try:\n    main(['inspect', {str(store)!r}, '--verify'])\n"
        "except SystemExit as ended:\n    assert not ended.code\n"
        "assert not {'ray', 'mlflow', 'matplotlib'} & set(sys.modules), 'inspect imports too much'"
    )
    env = {**os.environ, "PYTHONPATH": str(PLATFORM)}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "all 2 shards" in done.stdout
