"""MLflow's client as runs use it: a signal waits for a local database, and does not wait for a server."""

from functools import wraps
from typing import TYPE_CHECKING, Any, cast

from rayreid.deferral import answered_signals, deferred_signals
from rayreid.tracking.database import SQLITE

if TYPE_CHECKING:
    from mlflow import MlflowClient


def client_of(uri: str) -> "MlflowClient":
    """Return the client of a tracking store.

    Ctrl-C within a statement would leave a transaction of a local database open, and lock it to this process, too,
    which could then not record the end of its runs. A server closes its transactions itself, and may be slow.

    Args:
        uri: URI of the store.
    """
    from mlflow import MlflowClient

    return cast("MlflowClient", _ClientAmongSignals(MlflowClient(uri), local=uri.startswith(SQLITE)))


class _ClientAmongSignals:
    """A client with the methods of another one.

    Args:
        client: The other one.
        local: Whether signals wait for the end of each call.
    """

    def __init__(self, client: "MlflowClient", local: bool):
        self._client = client
        self._signals = deferred_signals if local else answered_signals

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # as a copy asks for before it has a client
            raise AttributeError(name)
        found = getattr(self._client, name)
        if not callable(found):
            return found

        @wraps(found)
        def call(*arguments: Any, **named: Any) -> Any:
            with self._signals():
                return found(*arguments, **named)

        return call
