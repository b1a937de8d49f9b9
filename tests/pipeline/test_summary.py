import io
import shlex
import sys
from pathlib import Path

import pytest
from rich.console import Console

from rayreid.console import Screen
from rayreid.pipeline.summary import Row, show_hint, show_table

PAGE = "/#/experiments/7/runs?workflowType=machine_learning&viewStateShareKey=results"


def hint(uri: str) -> str:
    """What is printed for a store."""
    printed = io.StringIO()
    show_hint(Screen(Console(file=printed, width=500)), uri, "7")
    return printed.getvalue()


def test_a_database_is_opened_by_a_command_and_then_the_page_of_the_results():
    command, page = hint("sqlite:////outputs/mlflow.db").splitlines()
    assert command.endswith("mlflow ui --backend-store-uri sqlite:////outputs/mlflow.db")
    assert Path(command.split()[3]).name == "mlflow" and Path(sys.executable).with_name("mlflow").exists()
    assert page.split()[-1] == f"http://127.0.0.1:5000{PAGE}"


def test_the_command_can_be_pasted_whatever_the_folder_is_called():
    command, _ = hint("sqlite:////my outputs/it's/a%3Fb/mlflow.db").splitlines()
    assert shlex.split(command)[-1] == "sqlite:////my outputs/it's/a%3Fb/mlflow.db"


@pytest.mark.parametrize("server", ["http://head:5000", "https://mlflow.example.org/"])
def test_a_server_s_page_is_named_as_it_is(server):
    assert hint(server).split() == ["Compare", "the", "runs:", server.rstrip("/") + PAGE]


def test_warnings_stand_below_the_table_with_the_row_s_name():
    printed = io.StringIO()
    scores = {"mAP": 0.1, "rank1": 0.2, "mINP": 0.05}
    rows = [
        Row("sound", "mine", 1, 1, 1.0, 0.0, scores, None),
        Row("flat [half]", "mine", 1, 1, 1.0, 0.0, scores, None, ("it seems to have learned little",)),
    ]
    show_table(Screen(Console(file=printed, width=200)), rows)
    assert "warning: flat [half]: it seems to have learned little\n" in printed.getvalue()
    assert printed.getvalue().count("warning") == 1
