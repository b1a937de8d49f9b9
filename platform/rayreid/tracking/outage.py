"""Outages of the tracking store: recognising them, waiting for their end, and not retrying too often.

A store whose database is damaged is away, too, until somebody mends it.
"""

import time
from collections.abc import Callable
from typing import TypeVar

from rayreid.deferral import answered_signals
from rayreid.errors import UserError, one_line
from rayreid.tracking.damage import damage_at, damage_of, forget_connections, remedy

PATIENCE_SECONDS = 600.0
_POLL_SECONDS = 5.0
_SILENT_SECONDS = 30.0  # no retry for that long after a failure, because every attempt takes seconds
_GREETING_SECONDS = 10.0
_AWAY = ("TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED")

T = TypeVar("T")


def reason(error: BaseException) -> str:
    """Return what an error of MLflow says, in one short line: its full text names URLs and every retry."""
    return one_line(error, limit=200)


class Outage:
    """Tracks whether the store is unreachable and whether the user was told.

    Args:
        uri: URI of the tracking store.
        tell: Called with a line to show to the user.
    """

    def __init__(self, uri: str, tell: Callable[[str], None]):
        self.uri = uri
        self.tell = tell
        self._silent_until = 0.0
        self._told = self._damaged = False
        self._why = ""

    @property
    def why(self) -> str:
        """What the user is to know about a store that is unreachable; "" if it is not."""
        return self._why

    @property
    def told(self) -> bool:
        """Whether the user was told that the store is unreachable, and has not answered since."""
        return self._told

    def is_one(self, error: BaseException) -> bool:
        """Return whether an error means that the store is unreachable, rather than that it refused the request."""
        from requests import HTTPError, RequestException

        code = getattr(error, "error_code", None)  # MLflow's own errors carry one; only `tracking` knows their class
        if code is not None:
            # INTERNAL_ERROR is what a server with an unreachable database answers; from a local database it is a fault.
            return code in _AWAY or (code == "INTERNAL_ERROR" and self.uri.startswith("http"))
        if isinstance(error, HTTPError) and error.response is not None:
            return error.response.status_code == 429 or error.response.status_code >= 500
        return isinstance(error, RequestException | ConnectionError)

    def fails_once(self, error: BaseException) -> bool:
        """Return whether an error looks like an outage of a server, but may concern a single request."""
        return self.uri.startswith("http") and self.is_one(error) and damage_of(error, self.uri) is None

    def began(self, error: BaseException) -> bool:
        """Return whether an error is an outage; if so, tell the user once and pause attempts for a while."""
        damage = damage_of(error, self.uri)
        if damage is None and not self.is_one(error):
            return False
        self._silent_until = time.monotonic() + _SILENT_SECONDS
        if damage is not None:
            forget_connections(self.uri)
            self._why = f"{damage}: {remedy(self.uri)}"
            line = f"{self._why}; runs go on, and what they log is kept and delivered afterwards, by the next command"
        else:
            self._why = f"MLflow at {self.uri} does not answer ({reason(error)})"
            line = (
                f"{self._why}: runs go on, and what they log is kept and delivered when it is back, by the next command"
            )
        if not self._told or (damage is not None and not self._damaged):
            self.tell(f"{line} at the latest")
        self._told, self._damaged = True, damage is not None
        return True

    def lasts(self) -> bool:
        """Return whether it is too early to try again.

        A damaged database is not written before it is mended, and a server that does not even greet is sent nothing,
        because a request to one that accepts connections and stays silent takes minutes to fail.
        """
        if time.monotonic() < self._silent_until:
            return True
        if (self._damaged and damage_at(self.uri) is not None) or (self._told and not self._greets()):
            self._silent_until = time.monotonic() + _SILENT_SECONDS
            return True
        return False

    def greet(self) -> None:
        """Ask a server for any answer within seconds; a store without a server is not asked.

        It is asked as MLflow's client asks, with its certificates and credentials. A refusal is an answer, too.

        Raises:
            MlflowException: There is none.
        """
        from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_TIMEOUT
        from mlflow.utils.credentials import get_default_host_creds
        from mlflow.utils.rest_utils import http_request

        if self.uri.startswith("http"):
            asked = MLFLOW_HTTP_REQUEST_TIMEOUT.get() if MLFLOW_HTTP_REQUEST_TIMEOUT.is_set() else 0.0
            with answered_signals():
                http_request(
                    get_default_host_creds(self.uri),
                    "/health",
                    "GET",
                    timeout=max(_GREETING_SECONDS, asked),
                    max_retries=0,
                    raise_on_status=False,
                    allow_redirects=False,
                )

    def _greets(self) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            self.greet()
        except MlflowException:
            return False
        return True

    def retry(self) -> None:
        """Let the next attempt be made now."""
        self._silent_until = 0.0

    def ended(self) -> None:
        """Record that the store answers, and tell the user if an outage had been reported."""
        if self._told:
            self.tell(f"MLflow at {self.uri} answers again")
        self._silent_until, self._told, self._damaged, self._why = 0.0, False, False, ""

    def wait(self, call: Callable[[], T], patience: float = PATIENCE_SECONDS) -> T:
        """Return the result of a call to the store, retrying while the store is unreachable.

        Args:
            call: Calls the store.
            patience: Seconds to keep retrying.

        Raises:
            UserError: The store stayed unreachable, or its database is damaged, which waiting does not mend.
        """
        until = time.monotonic() + patience
        if self._damaged:
            self._refuse(damage_at(self.uri))
        while True:
            try:
                result = call()
            except Exception as error:
                self._refuse(damage_of(error, self.uri))
                if not self.is_one(error):
                    raise
                if time.monotonic() >= until:
                    waited = f" for {patience / 60:.0f} min" if patience else ""
                    raise UserError(
                        f"MLflow at {self.uri} does not answer{waited} ({reason(error)}); start it, or see "
                        "MLFLOW_TRACKING_URI, and run the same command again"
                    ) from None
                if not self._told:
                    self.tell(f"waiting for MLflow at {self.uri}, up to {patience / 60:.0f} min ({reason(error)})")
                self._told = True
                time.sleep(_POLL_SECONDS)
            else:
                self.ended()
                return result

    def _refuse(self, damage: str | None) -> None:
        if damage is not None:
            raise UserError(
                f"{damage}: {remedy(self.uri)}, and run the same command again, which also delivers what was logged "
                "meanwhile"
            )
