"""A folder in which a fork server serves, with stand-ins for Ray's node manager and its workers."""

import contextlib
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rayreid.execution import fork_client

TELL = """
import gc, json, os, random, resource, signal, sys, time
import numpy
report = {
    "arguments": sys.argv[1:],
    "path": sys.path[0],
    "paths": sys.path,
    "main": __name__,
    "folder": os.getcwd(),
    "modules": "colorsys" in sys.modules,
    "environment": dict(os.environ),
    "process": os.getpid(),
    "group": os.getpgrp(),
    "parent": os.getppid(),
    "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    "memory": open("/proc/self/oom_score_adj").read().strip(),
    "user_site": not sys.flags.no_user_site,
    "thresholds": gc.get_threshold(),
    "threads": len(os.listdir("/proc/self/task")),
    "child_signal": signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL,
    "drawn": [random.random(), float(numpy.random.random())],
}
with open(os.path.join(os.path.dirname(__file__), "started"), "a") as stream:
    print(report["process"], file=stream)
print(json.dumps(report), flush=True)
if "wait" in sys.argv:
    time.sleep(60)
if "fail" in sys.argv:
    sys.exit("it failed")
"""
"""The script that stands for Ray's worker."""
FILES, MEMORY = 777, "321"
"""The limit of open files of what stands for Ray's node manager, and what Ray sets for its workers: how soon Linux may
end them to free memory."""


@contextlib.contextmanager
def fork_place() -> Iterator["Place"]:
    """A folder with a short path, and a process that stands for Ray's node manager."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, subprocess.Popen(["sleep", "120"]) as manager:
        try:
            yield Place(Path(folder), manager)
        finally:
            manager.kill()


class Place:
    def __init__(self, folder: Path, manager: subprocess.Popen):
        self.folder, self.manager, self.script = folder, manager, folder / "scripts" / "tell.py"
        self.script.parent.mkdir()
        _, most = resource.prlimit(manager.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(manager.pid, resource.RLIMIT_NOFILE, (FILES, most))
        self.script.write_text(TELL)
        package = str(Path(fork_client.__file__).parents[2])
        self.environment = {"PATH": os.environ["PATH"], "PYTHONPATH": package, "RAY_RAYLET_PID": str(manager.pid)}

    def client(
        self,
        *arguments: str,
        modules: str = "colorsys,numpy",
        folder: Path | None = None,
        options: Sequence[str] = (),
        **environment: str,
    ) -> subprocess.Popen:
        client = [sys.executable, "-I", "-S", fork_client.__file__, str(self.folder / "fork"), modules]
        line = shlex.join([*client, *options, str(self.script), *arguments])
        return subprocess.Popen(
            ["bash", "-c", f"echo {MEMORY} > /proc/self/oom_score_adj; exec {line}"],
            env={**self.environment, **environment},
            cwd=folder or self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )

    def started(self) -> list[str]:
        """The processes that have run the script."""
        return (self.script.parent / "started").read_text().split()

    def told(self, *arguments: str, **settings: Any) -> dict:
        running = self.client(*arguments, **settings)
        printed, errors = running.communicate(timeout=30)
        assert running.returncode == 0, errors
        return {**json.loads(printed), "client": running.pid}
