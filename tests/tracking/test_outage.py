import socket

import pytest
from mlflow.exceptions import MlflowException, RestException
from requests import ConnectionError as NoConnection
from requests import HTTPError, Response

from rayreid.errors import UserError
from rayreid.tracking import outage
from rayreid.tracking.outage import Outage
from rayreid.tracking.tracker import Tracker

SERVER = "http://127.0.0.1:5000"
AWAY = MlflowException("API request to http://… failed with exception …\nMax retries exceeded")


@pytest.fixture
def server(said):
    return Outage(SERVER, said.append)


def refused(status: int) -> HTTPError:
    answer = Response()
    answer.status_code = status
    return HTTPError("no", response=answer)


@pytest.fixture
def hanging(monkeypatch):
    """The address of a server that accepts connections and never answers."""
    monkeypatch.setattr(outage, "_GREETING_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_command_does_not_begin_with_a_server_that_hangs(hanging, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", hanging)
    with pytest.raises(
        UserError, match=rf"^MLflow at {hanging} does not answer \(.*ReadTimeoutError.*; start it, or see"
    ):
        Tracker(tmp_path)


def test_a_server_that_hangs_is_greeted_before_it_is_sent_anything(hanging, said, monkeypatch):
    server = Outage(hanging, said.append)
    assert not server.lasts()  # nobody is greeted while all is well
    assert server.began(AWAY)
    server.retry()
    assert server.lasts()
    monkeypatch.setattr(server, "greet", lambda: None)
    server.retry()
    assert not server.lasts()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (AWAY, True),
        (RestException({"error_code": "TEMPORARILY_UNAVAILABLE", "message": "database is locked"}), True),
        (RestException({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no run"}), False),
        (RestException({"error_code": "INVALID_PARAMETER_VALUE", "message": "no"}), False),
        (NoConnection("refused"), True),
        (refused(503), True),
        (refused(429), True),
        (refused(403), False),
        (ValueError("a mistake of ours"), False),
    ],
)
def test_an_outage_is_told_from_a_refusal(server, error, expected):
    assert server.is_one(error) is expected


def test_a_database_of_one_s_own_is_away_only_where_it_says_so(said):
    own = Outage("sqlite:///runs.db", said.append)
    assert not own.is_one(MlflowException("an error inside"))
    assert own.is_one(_locked())


def _locked() -> MlflowException:
    from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

    return MlflowException("database is locked", error_code=TEMPORARILY_UNAVAILABLE)


def test_it_is_told_once_and_so_is_its_end(server, said, monkeypatch):
    assert not server.lasts()
    assert server.began(AWAY) and server.began(AWAY)
    assert server.lasts()
    assert len(said) == 1 and SERVER in said[0] and "\n" not in said[0]
    server.ended()
    server.ended()
    assert not server.lasts()
    assert said[1:] == [f"MLflow at {SERVER} answers again"]
    assert server.began(AWAY) and len(said) == 3


def test_after_a_while_it_is_tried_again(server, monkeypatch):
    monkeypatch.setattr(outage, "_SILENT_SECONDS", -1.0)
    monkeypatch.setattr(server, "greet", lambda: None)
    assert server.began(AWAY)
    assert not server.lasts()


def test_another_error_is_no_outage_and_is_not_told(server, said):
    assert not server.began(ValueError("no"))
    assert said == []


@pytest.fixture
def call(monkeypatch):
    """Fails so many times, then answers."""
    monkeypatch.setattr(outage, "_POLL_SECONDS", 0.01)

    def failing(times: int, error: Exception = AWAY):
        left = iter(range(times))

        def ask() -> str:
            if next(left, None) is not None:
                raise error
            return "answer"

        return ask

    return failing


def test_what_must_be_answered_is_waited_for(server, said, call):
    assert server.wait(call(3)) == "answer"
    assert said == [f"waiting for MLflow at {SERVER}, up to 10 min ({outage.reason(AWAY)})", said[-1]]


def test_a_refusal_is_not_waited_for(server, call):
    with pytest.raises(ValueError, match="no"):
        server.wait(call(1, ValueError("no")))


def test_patience_ends_in_one_line(server, call):
    with pytest.raises(UserError, match=r"does not answer \(API request.*MLFLOW_TRACKING_URI.*same command") as caught:
        server.wait(call(99), patience=0.0)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="for 0 min"):
        server.wait(call(99), patience=0.05)
