import os
import threading
import time

import pytest

from rayreid.tracking.outbox import Outbox


@pytest.fixture
def outbox(tmp_path):
    return Outbox(tmp_path / "undelivered" / "run")


def test_entries_come_in_the_order_in_which_they_were_put(outbox):
    for number in range(20):
        outbox.put({"number": number})
    assert [entry.content["number"] for entry in outbox.entries()] == list(range(20))
    assert [entry.content["number"] for entry in Outbox(outbox.folder).entries()] == list(range(20))


def test_an_entry_comes_after_those_that_are_there_whatever_the_clock_says(outbox, monkeypatch):
    first = outbox.put({"number": 0})
    monkeypatch.setattr(time, "time_ns", lambda: 5)
    second = outbox.put({"number": 1})
    assert [entry.path for entry in outbox.entries()] == [first, second]


def test_what_a_killed_process_left_beside_its_entries_goes_after_an_hour(outbox):
    kept = [outbox.put({"kind": "figure"}, "loss.png", b"drawn") for _ in range(2)]
    next(iter(outbox.entries())).set_aside("no")  # its payload stays with it
    strays = [outbox.folder / "00000000000000000001-aa", outbox.folder / f".x.json.{'a' * 32}.tmp"]
    strays[0].mkdir()
    (strays[0] / "a.png").touch()
    strays[1].touch()
    outbox.sweep()
    assert all(path.exists() for path in strays)
    for path in outbox.folder.iterdir():
        os.utime(path, (1, 1))
    outbox.sweep()
    assert not any(path.exists() for path in strays)
    assert all((path.with_suffix("") / "loss.png").is_file() for path in kept)


def test_a_payload_keeps_its_name_until_its_entry_is_dropped(outbox):
    outbox.put({"kind": "figure"}, "loss.png", b"drawn")
    (entry,) = outbox.entries()
    assert entry.payload.name == "loss.png" and entry.payload.read_bytes() == b"drawn"
    entry.drop()
    assert list(outbox.folder.iterdir()) == []


def test_the_folder_goes_with_its_last_entry(outbox):
    assert list(outbox.entries()) == []
    outbox.clear_away()
    outbox.put({})
    outbox.clear_away()
    (entry,) = outbox.entries()
    entry.drop()
    entry.drop()  # by another process, too
    outbox.clear_away()
    assert not outbox.folder.exists()


def test_what_another_process_delivers_meanwhile_is_passed_over(outbox):
    for number in range(3):
        outbox.put({"number": number})
    entries = outbox.entries()
    seen = [next(entries).content["number"]]
    for entry in list(Outbox(outbox.folder).entries())[:2]:
        entry.drop()
    assert seen + [entry.content["number"] for entry in entries] == [0, 2]


def test_several_may_put_and_deliver_at_once(outbox):
    """Each entry is dropped by both, payload or not, while others come and the folder comes and goes."""
    failures, put = [], []

    def work(name):
        try:
            for number in range(200):
                outbox.put({"by": name}, *(("figure.png", b"drawn") if number % 2 else ()))
                put.append(name)
                for entry in outbox.entries():
                    entry.drop()
                outbox.clear_away()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [] and len(put) == 600
    assert not list(outbox.entries())
