"""The parts of Ray that this package uses although Ray does not promise to keep them.

They are the reason for Ray's upper bound in `pyproject.toml`. Before raising it, check each of them against the new
version. Two more are names in the environment, which no type checker sees: `RAY_JOB_CONFIG_JSON_ENV_VAR`, by which
`rayreid.paths` knows a submitted job, and the settings that keep Ray quiet, in `rayreid.execution.connection` and
`rayreid.sweeps.ray_tune`.
"""

from typing import Any

HEAD_RESOURCE = "node:__internal_head__"
"""The resource that Ray gives to the head node alone. Ray's public list of nodes does not say which one is the head."""


class KnownController:
    """The part of a Ray trainer that leaves Ctrl-C alone and remembers the actor that controls the workers.

    It precedes `TorchTrainer` among a class's bases, and replaces a private method of it. With that method Ray puts a
    handler of its own in place of Python's, and has no setting against it. The handler ends the process with a status
    that says nothing and, once the training is over, swallows Ctrl-C. The method is also the only one that is told the
    controller, which must be killed for the workers to end.

    Attributes:
        controller: Handle of the controlling actor; None before the training begins.
    """

    controller: Any = None

    def _register_sigint_handler(self, controller: Any) -> None:
        self.controller = controller
