"""Credentials in a text that is shown, logged or stored: each is replaced by `***`.

Everything that leaves a command passes here: messages of `UserError`, lines of the screen, tracebacks, records of the
logger, and what is sent to MLflow or kept for it. When in doubt, too much is masked.
"""

import logging
import os
import re
from collections.abc import Sequence
from typing import Any

HIDDEN = "***"

_VALUE = r"""(?:"[^"]*"|'[^']*'|[^\s&;,"'<>)}\]]+)"""
_NAME = (
    r"(?:[\w.-]{0,40}(?:passw(?:or)?d|passphrase|pwd|secret(?:[_-]?key)?|credential|signature|access[_-]?key(?:[_-]?id)?|account[_-]?key"
    r"|api[_-]?key|private[_-]?key)"
    r"|(?<![\w])(?:[\w-]{0,40}(?:auth|access|session|security|refresh|sas|bearer|id|api)[_-]?)?token"
    r"|(?<![\w])(?:sig|GoogleAccessId))"
)
_RULES = (
    # user:password@ in a URI, up to the last @, for a password may contain one; what follows a host is a port
    (re.compile(r"""(://)[^/?#@\s"'<>`]*:(?!\d+(?:[/?#&\s"'<>`]|$))[^\s"'<>`]*@"""), rf"\1{HIDDEN}@"),
    (re.compile(r"""(https?://)[^/?#@:\s"'<>`]{16,}@"""), rf"\1{HIDDEN}@"),  # a token in place of the user
    # name=value in a query, a DSN or an environment, also percent-encoded
    (re.compile(rf"({_NAME}\s*(?:=|%3D)\s*){_VALUE}", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(rf"\b([A-Z][A-Z0-9_]*_(?:TOKEN|PASS|KEY)\s*=\s*){_VALUE}"), rf"\1{HIDDEN}"),
    # {name: value} in YAML
    (re.compile(rf"([{{,]\s*{_NAME}\s*:\s+){_VALUE}", re.IGNORECASE), rf"\1{HIDDEN}"),
    # "name": value in JSON and in Python's dictionaries
    (re.compile(rf"""(["']{_NAME}["']\s*:\s*){_VALUE}""", re.IGNORECASE), rf'\1"{HIDDEN}"'),
    (re.compile(r"""(\bauthorization["']?\s*[:=]\s*["']?)(?:\w+\s+)?[^\s"',;}]+""", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(r"\b(bearer\s+)(?=\S*\d|\S{20})[\w.~+/=-]{8,}", re.IGNORECASE), rf"\1{HIDDEN}"),
    # tokens that are recognised by their form
    (re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[a-z]_\w{30,}|\bhf_\w{20,}|\bdapi[0-9a-f]{32}\b"), HIDDEN),
)
_IN_ARGUMENT = (
    (
        re.compile(rf"^([\w.-]*?{_NAME}=).*", re.IGNORECASE | re.DOTALL),
        rf"\1{HIDDEN}",
    ),  # all of it, spaces and quotes, too
    (re.compile(r"(://)[^/\s]*@"), rf"\1{HIDDEN}@"),
)
_OPTION = re.compile(rf"^--?{_NAME}$", re.IGNORECASE)
_VARIABLES = (
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "DATABRICKS_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AZURE_STORAGE_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_CLIENT_SECRET",
    "PGPASSWORD",
    "MYSQL_PWD",
    "RAY_AUTH_TOKEN",
)
_SHORTEST = 8  # characters of a variable's value that is masked where it stands alone: a shorter one may be any word


def masked(text: str) -> str:
    """Return a text in which credentials are replaced by `***`.

    These are passwords in URIs, secrets among a URI's query parameters or in a DSN, values of JSON keys of that kind,
    headers of authorisation, tokens that are recognised by their form, and the values of well-known variables.
    """
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    for name in _VARIABLES:
        value = os.environ.get(name, "")
        if len(value) >= _SHORTEST:
            text = text.replace(value, HIDDEN)
    return text


def masked_arguments(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a command with their credentials masked, also a value that follows its option."""
    found = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        for pattern, replacement in _IN_ARGUMENT:
            argument = pattern.sub(replacement, argument)
        found.append(HIDDEN if _OPTION.match(before) else masked(argument))
    return found


def masked_values(value: Any) -> Any:
    """Return a plain JSON value with its texts masked; keys stay as they are."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, dict):
        return {key: masked_values(one) for key, one in value.items()}
    return [masked_values(one) for one in value] if isinstance(value, list | tuple) else value


def holds_credentials(text: str) -> bool:
    """Return whether a text holds a credential."""
    return masked(text) != text


def _mask_record(record: logging.LogRecord) -> bool:
    record.msg, record.args = masked(record.getMessage()), None
    return True


logging.getLogger("rayreid").addFilter(_mask_record)
