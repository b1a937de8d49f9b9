"""Values that travel through processes which have no use for them."""

from typing import Any


class Sealed:
    """A value that another process unpickles only where it is opened.

    Ray Train unpickles a training's configuration in its controller, too, which would import torch, timm and whatever
    else the configuration refers to: seconds, before any worker starts.

    Args:
        value: The value, as it is before it travels.
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
