"""Every file of a folder is listed, ignored with a reason, or left out with a reason and counted."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow.fs import LocalFileSystem

from rayreid.data.datasets.folder import Folder
from rayreid.data.datasets.remote import RemoteFolder
from rayreid.data.datasets.tree import is_hidden, walk
from rayreid.errors import UserError


def jpeg() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((20, 10, 3), np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


FILES = {
    "a.jpg": jpeg(),
    "b.jfif": jpeg(),
    "c.jpg_large": jpeg(),
    "d": jpeg(),
    "e.jpg!d": jpeg(),
    "page.jpg": b"<html>404</html>",
    "phone.heic": b"\0\0\0\x18ftypheic",
    "notes": b"some words",
    "lost": b"version https://git-lfs.github.com/spec/v1\n",
    "list.TXT": b"",
    "._a.jpg": b"\0\5\x16\7",
    ".DS_Store": b"",
    ".thumbnails/a.jpg": jpeg(),
}
LISTED = ["a.jpg", "b.jfif", "c.jpg_large", "d", "e.jpg!d", "page.jpg", "phone.heic"]
LEFT_OUT = {
    "no image": (1, "notes"),
    "Git LFS pointer": (1, "lost"),
    "file .txt": (1, "list.TXT"),
    "AppleDouble file": (1, "._a.jpg"),
    "hidden": (2, ".DS_Store"),
}


@pytest.fixture
def root(tmp_path) -> Path:
    for name, data in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    return tmp_path


@pytest.mark.parametrize("open_it", [Folder, lambda root: RemoteFolder(f"mock://{root}", LocalFileSystem())])
def test_every_file_is_listed_or_left_out(root, open_it):
    dataset = open_it(root)
    assert [record.key for record in dataset.records()] == LISTED
    assert dataset.left_out == LEFT_OUT and dataset.ignored == []
    assert len(LISTED) + sum(count for count, _ in dataset.left_out.values()) == len(FILES)
    assert list(dataset.records()) and dataset.left_out == LEFT_OUT  # counted anew by every listing


def test_links_that_lead_nowhere_and_pipes_are_told_without_being_read(root):
    (root / "z.jpg").symlink_to("/nowhere.jpg")
    (root / "z").symlink_to("/nowhere")
    os.mkfifo(root / "pipe.jpg")
    os.mkfifo(root / "pipe")
    dataset = Folder(root)
    assert [record.key for record in dataset.records()] == LISTED
    assert dataset.ignored == [("pipe.jpg", "no plain file"), ("z.jpg", "broken link")]
    assert dataset.left_out == {**LEFT_OUT, "no plain file": (1, "pipe"), "broken link": (1, "z")}


def test_a_folder_without_an_image_says_what_it_holds(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"")
    with pytest.raises(UserError, match=r"has no image \(1 left out, first clip\.mp4: file \.mp4\)"):
        list(Folder(tmp_path).records())


@pytest.mark.parametrize("open_it", [Folder, lambda root: RemoteFolder(f"mock://{root}", LocalFileSystem())])
def test_sources_are_all_files_but_hidden_ones_with_sizes_and_times(root, open_it):
    dataset = open_it(root)
    found = list(dataset.sources())
    assert [file.name for file in found] == sorted(name for name in FILES if not is_hidden(name))
    for file in found:
        status = (root / file.name).stat()
        assert (file.size, file.modified) == (status.st_size, status.st_mtime_ns)
    assert {dataset.source_of(record) for record in dataset.records()} <= {file.name for file in found}


def test_a_folder_that_cannot_be_listed_is_told(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    told = []
    monkeypatch.setattr(os, "scandir", lambda folder: (_ for _ in ()).throw(PermissionError(13, "no", folder)))
    assert list(walk(tmp_path, told.append)) == [] and len(told) == 1
