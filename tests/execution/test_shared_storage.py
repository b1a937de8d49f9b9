"""The nodes' view of the storage is faked: they look at another folder than the driver's."""

import dataclasses

import pytest

from rayreid.errors import UserError
from rayreid.execution import shared_storage
from rayreid.execution.nodes import Answer
from rayreid.execution.shared_storage import check_storage, token


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    root, data = tmp_path / "outputs", tmp_path / "data"
    data.mkdir()
    monkeypatch.setenv("RAYREID_ROOT", str(root))
    monkeypatch.setenv("RAYREID_DATA", str(data))
    monkeypatch.setattr(shared_storage, "_PATIENCE_SECONDS", 0.3)
    return root, data


def test_the_same_folder_is_seen_and_left_as_it_was(places):
    root, data = places
    with token() as made:
        assert made.data == data
        assert made.complaints() == []
        assert list(root.iterdir()) == [made.path]
    assert list(root.iterdir()) == []


def test_a_node_without_the_mount_says_what_it_does_not_see(tmp_path):
    with token() as made:
        there = dataclasses.replace(made, root=tmp_path / "nothing", data=tmp_path / "no data")
        assert (
            there.complaints()
            == [
                f"does not see RAYREID_DATA={tmp_path}/no data",
                f"does not see RAYREID_ROOT={tmp_path}/nothing",
            ][::-1]
        )


def test_a_folder_of_the_node_s_own_at_that_place_is_told_apart(tmp_path):
    (tmp_path / "own").mkdir()
    with token() as made:
        (fault,) = dataclasses.replace(made, root=tmp_path / "own").complaints()
    assert "has another folder" in fault and str(tmp_path / "own") in fault


def test_a_token_of_another_run_at_that_place_is_not_taken_for_this_one_s(places):
    with token() as made:
        made.path.write_text("another")
        (fault,) = made.complaints()
    assert "has another folder" in fault


def test_a_root_that_cannot_be_written_is_told(monkeypatch):
    def refuse(self, *arguments, **named):
        raise PermissionError(13, "Permission denied")

    with token() as made:
        monkeypatch.setattr(type(made.path), "touch", refuse)
        assert made.complaints() == [f"cannot write to RAYREID_ROOT={made.root} (Permission denied)"]


def test_data_that_the_driver_does_not_see_is_asked_of_no_node(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYREID_DATA", str(tmp_path / "gone"))
    with token() as made:
        assert made.data is None and made.complaints() == []


def answers(*pairs):
    return [
        Answer(name, {}, None if isinstance(value, str) else value, value if isinstance(value, str) else "")
        for name, value in pairs
    ]


@pytest.fixture
def cluster(monkeypatch):
    """Nodes that answer as they are told to."""

    def of(*pairs):
        monkeypatch.setattr(shared_storage, "alone", lambda: False)
        monkeypatch.setattr(shared_storage, "ask_every_node", lambda question: answers(*pairs))

    return of


def test_a_cluster_that_sees_everything_is_let_pass(cluster, places):
    cluster(("10.0.0.1 (head)", []), ("10.0.0.2", []))
    check_storage()
    assert list(places[0].iterdir()) == []


def test_nodes_that_do_not_see_it_are_one_line_that_names_them(cluster):
    cluster(
        ("10.0.0.1 (head)", []), ("10.0.0.2", ["does not see RAYREID_ROOT=/o"]), ("10.0.0.3", "no answer within 9 s")
    )
    with pytest.raises(UserError) as caught:
        check_storage()
    message = str(caught.value)
    assert "node 10.0.0.2 does not see RAYREID_ROOT=/o; node 10.0.0.3 no answer within 9 s: mount" in message
    assert "10.0.0.1" not in message and "\n" not in message


def test_a_large_cluster_s_faults_are_counted(cluster):
    cluster(*[(f"n{n}", ["does not see it"]) for n in range(9)])
    with pytest.raises(UserError, match="and 6 more") as caught:
        check_storage()
    assert "n2" in str(caught.value) and "n3" not in str(caught.value)


def test_a_single_machine_asks_nobody(monkeypatch):
    monkeypatch.setattr(shared_storage, "alone", lambda: True)
    monkeypatch.setattr(shared_storage, "ask_every_node", lambda question: pytest.fail("asked"))
    check_storage()
