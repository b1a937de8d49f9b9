import errno
import io
import itertools
import os
import pickle
import tarfile
from pathlib import Path

import pytest

from rayreid.data.datasets.tar_shards import TarShards
from rayreid.data.store.shards import MissingImageError, Record
from rayreid.errors import UserError


def write_tar(path: Path, *names: str, mode: str = "w", **formats) -> Path:
    """Every member holds its own name; a name "a -> b" is a link, one that ends in "/" a folder."""
    with tarfile.open(path, mode, **formats) as tar:
        for name in names:
            name, arrow, target = name.partition(" -> ")
            member = tarfile.TarInfo(name)
            if arrow:
                member.type, member.linkname = tarfile.SYMTYPE, target
            elif name.endswith("/"):
                member.type = tarfile.DIRTYPE
            data = b"" if arrow or name.endswith("/") else name.encode(errors="surrogateescape")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def test_one_archive_alone_or_in_a_folder(tmp_path):
    tar = write_tar(tmp_path / "pool.tar", "b.jpg", "b.json", "a/1.PNG", "a.jpg/", "./c.jpg", "x" * 300 + ".jpg")
    for root in (tar, tmp_path):
        dataset = TarShards(str(root))
        records = list(dataset.records())
        assert [record.key for record in records] == ["b.jpg", "a/1.PNG", "c.jpg", "x" * 300 + ".jpg"]
        assert {(record.pid, record.camid, record.split) for record in records} == {(-1, -1, "pool")}
        assert [dataset.read(record) for record in records[:3]] == [b"b.jpg", b"a/1.PNG", b"./c.jpg"]
        assert dataset.ignored == []


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_several_archives_are_told_apart(tmp_path, layout):
    write_tar(tmp_path / "pool-1.tar", "0.jpg", "ü.jpg", format=layout)
    write_tar(tmp_path / "pool-0.tar", "0.jpg", "1.jpg", format=layout)
    (tmp_path / "pool.md").write_text("no archive")
    dataset = TarShards(str(tmp_path))
    records = list(dataset.records())
    assert [record.key for record in records] == ["pool-0/0.jpg", "pool-0/1.jpg", "pool-1/0.jpg", "pool-1/ü.jpg"]
    assert [dataset.read(record).decode() for record in records] == ["0.jpg", "1.jpg", "0.jpg", "ü.jpg"]


def test_what_lies_beside_the_archives_is_counted(tmp_path):
    (tmp_path / "more").mkdir()
    for name in ("pool.tar", "more/pool.tar", ".pool.tar"):
        write_tar(tmp_path / name, "0.jpg")
    for name in ("._pool.tar", "1.jpg", "more/2.jpg", "sizes.json", "pool.idx"):
        (tmp_path / name).write_bytes(b"x")
    dataset = TarShards(str(tmp_path))
    assert [record.key for record in dataset.records()] == ["0.jpg"]
    assert dataset.left_out == {
        "AppleDouble file": (1, "._pool.tar"),
        "hidden": (1, ".pool.tar"),
        "image outside the archives": (2, "1.jpg"),
        "file .idx": (1, "pool.idx"),
        "file .json": (1, "sizes.json"),
        "archive in a sub-folder": (1, "more/pool.tar"),
    }
    assert dataset.ignored == []


def test_hidden_members_are_left_out_and_those_without_suffix_looked_at(tmp_path):
    images = {"./a.jpg": b"", "000017": b"\xff\xd8\xff\xe0", "c/d": b"\x89PNG\r\n\x1a\n"}
    others = {
        "._a.jpg": b"",
        ".b/c.jpg": b"",
        "__MACOSX/._a.jpg": b"",
        "@eaDir/a.jpg": b"",
        "notes": b"text",
        "x.cls": b"1",
    }
    with tarfile.open(tmp_path / "pool.tar", "w") as tar:
        for name, data in {**others, **images}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    dataset = TarShards(str(tmp_path / "pool.tar"))
    records = list(dataset.records())
    assert [record.key for record in records] == ["a.jpg", "000017", "c/d"]
    assert [dataset.read(record) for record in records] == list(images.values())
    counts = {reason: count for reason, (count, _) in dataset.left_out.items()}
    assert counts == {"AppleDouble file": 2, "hidden": 2, "no image": 1, "file .cls": 1}
    assert dataset.ignored == []


def test_members_that_lead_elsewhere_are_ignored(tmp_path):
    tar = write_tar(
        tmp_path / "pool.tar", "/etc/1.jpg", "a/../../2.jpg", "3.jpg -> /etc/passwd", "ok.jpg", "notes -> /"
    )
    with tarfile.open(tar, "a") as archive:
        hard = tarfile.TarInfo("4.jpg")
        hard.type, hard.linkname = tarfile.LNKTYPE, "ok.jpg"
        archive.addfile(hard)
        device = tarfile.TarInfo("5.jpg")
        device.type = tarfile.CHRTYPE
        archive.addfile(device)
    dataset = TarShards(str(tar))
    assert [record.key for record in dataset.records()] == ["ok.jpg"]
    assert dataset.ignored == [
        ("/etc/1.jpg", "outside its root"),
        ("a/../../2.jpg", "outside its root"),
        ("3.jpg", "a link"),
        ("4.jpg", "a link"),
        ("5.jpg", "no plain file"),
    ]
    list(dataset.records())
    assert len(dataset.ignored) == 5  # listing twice notes them once


def test_names_that_no_index_can_hold(tmp_path):
    tar = write_tar(tmp_path / "pool.tar", "ok.jpg", os.fsdecode(b"\xff.jpg"), format=tarfile.GNU_FORMAT)
    dataset = TarShards(str(tar))
    assert [record.key for record in dataset.records()] == ["ok.jpg"]
    assert dataset.ignored == [("\\udcff.jpg", "name is not UTF-8")]


# A member is a header of 512 bytes and, here, one block of data; the end is two blocks of zeros, filled up to 10,240.
@pytest.mark.parametrize(
    ("length", "listed", "ignored"),
    [
        (10_240, 3, []),
        (3 * 1024 + 512, 3, []),
        (3 * 1024, 3, ["pool.tar"]),  # the end is missing
        (2 * 1024 + 512, 2, ["2.jpg", "pool.tar"]),  # the third's data
        (2 * 1024 + 100, 2, ["pool.tar"]),  # in its header
        (1024 + 514, 1, ["1.jpg", "pool.tar"]),  # in the second's data
        (0, 0, ["pool.tar"]),
    ],
)
def test_a_truncated_archive_gives_what_is_left(tmp_path, length, listed, ignored):
    tar = write_tar(tmp_path / "pool.tar", "0.jpg", "1.jpg", "2.jpg")
    write_tar(tmp_path / "whole.tar", "0.jpg")
    os.truncate(tar, length)
    dataset = TarShards(str(tmp_path))
    records = list(dataset.records())
    assert [record.key for record in records] == [f"pool/{number}.jpg" for number in range(listed)] + ["whole/0.jpg"]
    assert [dataset.read(record) for record in records[:-1]] == [b"%d.jpg" % number for number in range(listed)]
    assert [path.rpartition("/")[2] for path, _ in dataset.ignored] == ignored


def test_a_damaged_or_joined_archive_is_noted(tmp_path):
    tar = write_tar(tmp_path / "pool.tar", "0.jpg", "1.jpg")
    with tar.open("r+b") as file:
        file.seek(1024)
        file.write(b"garbage" * 20)
    dataset = TarShards(str(tar))
    assert [record.key for record in dataset.records()] == ["0.jpg"]
    assert [path for path, _ in dataset.ignored] == [str(tar)]

    joined = tmp_path / "joined.tar"
    joined.write_bytes(2 * write_tar(tmp_path / "one.tar", "0.jpg").read_bytes())
    dataset = TarShards(str(joined))
    assert [record.key for record in dataset.records()] == ["0.jpg"]
    assert "joined to another" in dataset.ignored[0][1]


def test_an_archive_cut_off_after_listing_is_unreadable(tmp_path):
    tar = write_tar(tmp_path / "pool.tar", "0.jpg")
    dataset = TarShards(str(tar))
    (record,) = dataset.records()
    read = pickle.loads(pickle.dumps(dataset.read))
    assert read(record) == b"0.jpg"
    os.truncate(tar, 514)
    with pytest.raises(MissingImageError, match=r"cut off"):
        read(record)
    tar.unlink()
    with pytest.raises(OSError):
        read(record)


def test_what_cannot_be_read_in_place_is_refused(tmp_path):
    packed = write_tar(tmp_path / "pool.tar.gz", "0.jpg", mode="w:gz")
    for root in (packed, tmp_path):
        with pytest.raises(UserError, match=r"pool.tar.gz is compressed.*unpack"):
            TarShards(str(root))
    packed.rename(tmp_path / "pool.tar")
    with pytest.raises(UserError, match=r"has no image \(1 ignored, first .*pool.tar"):
        list(TarShards(str(tmp_path)).records())
    (tmp_path / "pool.tar").rename(tmp_path / "pool.zip")
    with pytest.raises(UserError, match=r"no .tar file"):
        TarShards(str(tmp_path))
    with pytest.raises(UserError, match=r"does not exist"):
        TarShards(str(tmp_path / "absent"))
    with pytest.raises(UserError, match=r"has no image"):
        list(TarShards(str(write_tar(tmp_path / "empty.tar", "notes.txt"))).records())


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A GNU header with any size, a negative one too."""
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


def pax(name: str, **fields: str) -> bytes:
    """A header of an image of no bytes, behind an extended one with these fields."""
    text = "".join(f"{len(key) + len(value) + 5} {key}={value}\n" for key, value in fields.items()).encode()
    return header("pax", len(text), tarfile.XHDTYPE) + text.ljust(512, b"\0") + header(name, 0)


END = bytes(1024)


@pytest.mark.parametrize(
    "damage",
    [
        header("1.jpg", -512),
        header("1.jpg", -1024),
        header("notes.txt", -512),
        header("folder", -1, tarfile.DIRTYPE),
        header("name", -512, tarfile.GNUTYPE_LONGNAME),
        header("name", 2**60, tarfile.GNUTYPE_LONGNAME),
        header("pax", -512, tarfile.XHDTYPE),
        pax("1.jpg", size="-512"),
        pax("notes.txt", size="-1024"),
        header("notes.txt", 2**80),
        header("name", 1, tarfile.GNUTYPE_LONGNAME).ljust(1024, b"x") * 1000,
    ],
)
@pytest.mark.parametrize("first", [False, True])
def test_archives_made_to_harm_are_listed_up_to_there(tmp_path, damage, first):
    good = header("0.jpg", 3) + b"abc".ljust(512, b"\0")
    (tmp_path / "bad.tar").write_bytes(damage + good + END if first else good + damage + good + END)
    write_tar(tmp_path / "good.tar", "0.jpg")
    dataset = TarShards(str(tmp_path))
    records = list(itertools.islice(dataset.records(), 10))  # not for ever
    assert [record.key for record in records] == ["good/0.jpg"] if first else ["bad/0.jpg", "good/0.jpg"]
    assert [path for path, _ in dataset.ignored] == [str(tmp_path / "bad.tar")]


@pytest.mark.parametrize("place", ["-5:10", "0:-1"])
def test_no_member_lies_before_its_archive(tmp_path, place):
    tar = write_tar(tmp_path / "pool.tar", "0.jpg")
    with pytest.raises(MissingImageError, match=r"no member lies at"):
        TarShards(str(tar)).read(Record("0.jpg", -1, -1, "pool", f"{tar}:{place}"))


def failing_open(monkeypatch, name: str, error: OSError) -> None:
    whole = Path.open

    def open_(path, *args, **options):
        if path.name == name:
            raise error
        return whole(path, *args, **options)

    monkeypatch.setattr(Path, "open", open_)


def test_a_disk_that_fails_does_not_shrink_the_pool(tmp_path, monkeypatch):
    bad, _ = (write_tar(tmp_path / name, "0.jpg") for name in ("bad.tar", "good.tar"))
    (tmp_path / "folder.tar").mkdir()
    failing_open(monkeypatch, "bad.tar", PermissionError(errno.EACCES, "Permission denied"))
    dataset = TarShards(str(tmp_path))
    assert [record.key for record in dataset.records()] == ["good/0.jpg"]
    assert dataset.ignored == [(str(bad), "cannot be read")]
    failing_open(monkeypatch, "bad.tar", OSError(errno.EIO, "Input/output error"))
    with pytest.raises(UserError, match=rf"{bad} cannot be read: Input/output error"):
        list(dataset.records())
