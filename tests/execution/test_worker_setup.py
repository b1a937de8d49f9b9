"""A worker of Ray's becomes the same with the package's start as with Ray's own, which imports Ray for it."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from ray._private.runtime_env.context import RuntimeEnvContext
from ray.core.generated.common_pb2 import Language

from rayreid.execution import worker_setup
from rayreid.execution.worker_setup import main, prepared

WORKER = ["/ray/default worker.py", "--node-ip-address=127.0.0.1", "--name=it's $HOME"]
CONTEXTS = {
    "plain": {},
    "variables": {"env_vars": {"A": "1", "B": "${A}${MISSING}", "PATH": "/own:$PATH", "HERE": "$MISSING ${missing}"}},
    "executable": {"py_executable": "env -i python -c 'a b'"},
    "folder": {"command_prefix": ["cd", "/tmp", "&&"]},
    "image": {"override_worker_entrypoint": "/other/worker.py"},
}


class ReplacedError(Exception):
    """Instead of the replacement of the process."""


@pytest.fixture
def replacement(monkeypatch):
    """`replacement(become)` returns the command that the process becomes, and its variables."""

    def execvp(file, args):
        raise ReplacedError([file, *args])

    def of(become):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "execvp", execvp)
            patch.setattr(os, "environ", dict(os.environ))
            with pytest.raises(ReplacedError) as replaced:
                become()
            return replaced.value.args[0], os.environ

    return of


@pytest.mark.parametrize("name", CONTEXTS)
def test_a_worker_is_started_as_ray_s_own_setup_starts_it(replacement, name):
    context = json.dumps(CONTEXTS[name])
    own = replacement(lambda: main([*WORKER, f"--serialized-runtime-env-context={context}", "--language=PYTHON"]))
    rays = replacement(lambda: RuntimeEnvContext.deserialize(context).exec_worker(list(WORKER), Language.PYTHON))
    (command, environment), (expected, expected_environment) = own, rays
    command[-1], expected[-1] = shlex.split(command[-1]), shlex.split(expected[-1])
    assert command == expected
    assert environment == expected_environment


def test_without_a_context_the_worker_is_python_s(replacement):
    command, _ = replacement(lambda: main([*WORKER, "--language=PYTHON"]))
    assert shlex.split(command[-1]) == ["exec", sys.executable, *WORKER]


def test_a_worker_of_another_language_is_refused():
    with pytest.raises(ValueError, match="JAVA"):
        prepared(["--language=JAVA", "io.ray.Worker"])


def test_the_file_runs_by_itself_and_its_folder_hides_no_module_of_python_s(tmp_path):
    names = {path.stem for path in Path(worker_setup.__file__).parent.glob("*.py")}
    assert not names & set(sys.stdlib_module_names)
    script = tmp_path / "a script.py"
    script.write_text("import os, sys; print(os.environ['A'], *sys.argv[1:])")
    context = json.dumps({"env_vars": {"A": "x y"}})
    command = [worker_setup.__file__, str(script), "--b=c d", f"--serialized-runtime-env-context={context}"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=30, check=False)
    assert (done.stdout, done.stderr) == ("x y --b=c d\n", "")
