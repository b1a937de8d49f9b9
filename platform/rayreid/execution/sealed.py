"""Values that pass through processes which do not use them."""

from typing import Any


class Sealed:
    """A value that another process unpickles only when the value is opened.

    Ray Train unpickles a training's configuration in its controller, too. This would import torch, timm and everything
    else to which the configuration refers, which takes seconds before any worker starts.

    Args:
        value: The value to send.
    """

    def __init__(self, value: Any):
        self._value, self._pickled = value, b""

    def open(self) -> Any:
        """Return the value."""
        if self._pickled:
            from ray import cloudpickle

            self._value, self._pickled = cloudpickle.loads(self._pickled), b""
        return self._value

    def __getstate__(self) -> dict[str, Any]:
        from ray import cloudpickle

        return {"_value": None, "_pickled": self._pickled or cloudpickle.dumps(self._value)}
