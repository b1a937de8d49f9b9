"""A stand-in for Slurm's commands that runs jobs as processes of this machine.

`SlurmStandIn(folder)` makes programs `sbatch`, `salloc`, `srun`, `scontrol` and `scancel` for a `PATH`. They do what
jobs/slurm.sbatch relies on, as Slurm's manuals and `srun`'s source have it:

- `salloc` and `srun` make an allocation where there is none, and the former starts a shell in it.
- `sbatch` reads the `#SBATCH` lines, and runs a *copy* of the script in the folder from which it was called, again when
  the job was requeued. Unlike Slurm's, it returns when the job has ended, with the job's status.
- `srun` starts one process per node, each in a session of its own. It passes USR1 on to them, answers TERM by killing
  everything in the step, and ends with the highest status of all.
- `scancel` signals the batch script and each node's process, but not what these have started; `--batch` the former
  alone. `--signal=KILL` kills everything in the job, as the loss of its nodes does.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

COMMANDS = ("sbatch", "salloc", "srun", "scontrol", "scancel")
_OWN = "SLURM_STAND_IN"
_WITHIN = "SLURM_STAND_IN_STEP"


class SlurmStandIn:
    """Slurm's commands in a folder of their own, and the environment of a user who has them."""

    def __init__(self, folder: Path):
        self._folder = folder
        (folder / "bin").mkdir(parents=True)
        for name in COMMANDS:
            program = folder / "bin" / name
            program.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).resolve()} {name} "$@"\n')
            program.chmod(0o755)
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SLURM", "RAY", "MLFLOW")) and name != "PYTHONPATH"
        }
        self.environment = {
            **inherited,
            _OWN: str(folder),
            "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "RAYREID_PYTHON": sys.executable,
            "PYTHONPATH": str(Path(__file__).parent.parent / "platform"),
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
        }

    def submit(self, *arguments: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
        """Call `sbatch` with the job's log as its standard output."""
        return subprocess.Popen(
            ["sbatch", "--output=-", *arguments],
            cwd=cwd,
            env=self.environment | environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def call(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=self.environment | environment, capture_output=True, text=True, timeout=120)

    def processes(self) -> list[psutil.Process]:
        """All processes of all jobs."""
        return _processes(_OWN, str(self._folder))


def _processes(name: str, value: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(name) == value:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def _jobs() -> Path:
    folder = Path(os.environ[_OWN]) / "jobs"
    folder.mkdir(exist_ok=True)
    return folder


def _new_job() -> str:
    for number in range(1, 1000):
        try:
            (_jobs() / str(number)).mkdir()
            return str(number)
        except FileExistsError:
            continue
    raise AssertionError("too many jobs")


def _split(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """Options of the form --name=value, and what follows them."""
    options = {}
    while arguments and arguments[0].startswith("--"):
        name, _, value = arguments[0][2:].partition("=")
        options[name] = value
        arguments = arguments[1:]
    return options, arguments


def _allocation(options: dict[str, str], job: str) -> dict[str, str]:
    chosen = {"nodes": "SLURM_JOB_NUM_NODES", "cpus-per-task": "SLURM_CPUS_PER_TASK"}
    return {
        "SLURM_JOB_ID": job,
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_SUBMIT_DIR": str(Path.cwd()),
        **{variable: options[name] for name, variable in chosen.items() if name in options},
    }


def sbatch(arguments: list[str]) -> int:
    given, [script, *rest] = _split(arguments)
    said = re.findall(r"^#SBATCH --([^=\s]+)(?:=(\S+))?", Path(script).read_text(), re.MULTILINE)
    options = {**dict(said), **given}
    job = _new_job()
    spooled = _jobs() / job / "slurm_script"
    shutil.copy(script, spooled)
    print(f"Submitted batch job {job}", flush=True)
    if options["output"] == "-":
        return _in_queue(job, options, [str(spooled), *rest], None)
    with Path(options["output"].replace("%x", options["job-name"]).replace("%j", job)).open("a") as log:
        return _in_queue(job, options, [str(spooled), *rest], log)


def _in_queue(job: str, options: dict[str, str], command: list[str], log) -> int:
    """Run the batch script, and again for as long as it was requeued meanwhile."""
    for attempt in range(10):
        environment = {**os.environ, **_allocation(options, job), "SLURM_RESTART_COUNT": str(attempt)}
        batch = subprocess.Popen(["bash", *command], env=environment, stdout=log, stderr=log)
        (_jobs() / job / "batch").write_text(str(batch.pid))
        status = batch.wait()
        again = _jobs() / job / "requeue"
        if not again.exists():
            return status
        again.unlink()
        for process in _processes("SLURM_JOB_ID", job):  # Slurm ends what a requeued job still has
            process.kill()
    raise AssertionError("requeued again and again")


def salloc(arguments: list[str]) -> int:
    options, command = _split(arguments)
    return subprocess.run(command or ["bash"], env={**os.environ, **_allocation(options, _new_job())}).returncode


def srun(arguments: list[str]) -> int:
    options, command = _split(arguments)
    if "SLURM_JOB_ID" not in os.environ:
        os.environ.update(_allocation(options, _new_job()))
    count = int(options.get("nodes", "1"))
    job = os.environ["SLURM_JOB_ID"]
    step = f"{job}.{os.getpid()}"
    tasks = []
    for node in range(count):
        own = {
            _WITHIN: step,
            "SLURM_NNODES": str(count),
            "SLURM_NTASKS": options.get("ntasks", str(count)),
            "SLURM_NODEID": str(node),
            "SLURM_PROCID": str(node),
            "SLURMD_NODENAME": f"node{node}",
            "SLURM_CPUS_ON_NODE": options.get("cpus-per-task", "1"),
            "SLURM_LAUNCH_NODE_IPADDR": "192.0.2.99",  # as of a login node, which is not this one
        }
        tasks.append(subprocess.Popen(command, env={**os.environ, **own}, start_new_session=True))
    (_jobs() / job / "tasks").write_text(" ".join(str(task.pid) for task in tasks))

    def passed_on(number, frame):
        for task in tasks:
            if task.poll() is None:
                task.send_signal(number)

    def killed(number, frame):
        print("srun: forcing job termination", file=sys.stderr, flush=True)
        for process in _processes(_WITHIN, step):
            process.kill()

    signal.signal(signal.SIGUSR1, passed_on)
    signal.signal(signal.SIGTERM, killed)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    statuses = [task.wait() for task in tasks]
    return max(status if status >= 0 else 128 - status for status in statuses)


def scontrol(arguments: list[str]) -> int:
    verb, job = arguments
    if verb != "requeue" or not (_jobs() / job).exists():
        print("slurm_requeue error: Invalid job id specified", file=sys.stderr)
        return 1
    (_jobs() / job / "requeue").touch()
    return 0


def scancel(arguments: list[str]) -> int:
    options, [job] = _split(arguments)
    number = getattr(signal, f"SIG{options.get('signal', 'TERM')}")
    if number == signal.SIGKILL:
        for process in _processes("SLURM_JOB_ID", job):
            process.kill()
        return 0
    pids = [(_jobs() / job / "batch").read_text()]
    if "batch" not in options:
        pids += (_jobs() / job / "tasks").read_text().split()
    for pid in pids:
        os.kill(int(pid), number)
    return 0


def wait_until(fact, seconds: float, told=lambda: "") -> None:
    """Wait until `fact()` is true."""
    until = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < until, told()
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(globals()[sys.argv[1]](sys.argv[2:]))
