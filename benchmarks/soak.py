"""A small experiment, over and over, while its processes die, its disk fills, clocks jump and MLflow goes away.

    python benchmarks/soak.py --minutes 60 --out soak.jsonl
    python benchmarks/soak.py --minutes 10 --seed 3 --faults driver tree disk

Each round runs `rayreid run` of a file with two rows on a new output root. A random fault comes every few seconds; a
command that ends is started again, until one ends well; a round that was started thirty times is left in peace, so that
it ends. Then everything that the root and MLflow hold is compared with a run that nothing disturbed. One line of JSON
per round, and at the end a summary:

- faults survived, by kind, and how many a second command had to get over;
- work lost: seconds that a round took longer than an undisturbed one, per fault, less the time that MLflow was away and
  the disk full; and the seconds from the kill of a driver until the next command announces a stage or ends;
- differences from the undisturbed run, tracebacks, commands that were silent for ten minutes: there must be none;
- what is left: processes, unfinished files, runs that MLflow shows as running, memory of the driver and of the host.

The root lies on a file system of its own that can be filled; where the user may not mount one, the disk stays as it is,
and the summary says so. Work on a cluster is not part of it: each command starts a Ray of its own.
"""

import argparse
import contextlib
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from soaking.faults import FAULTS, KILLS, Fault
from soaking.outcome import contents, differences, histories, litter, runs_left_open
from soaking.world import Command, Server, disk, of_root, write_experiment

POLL_SECONDS = 0.25
SHOWN = 12  # differences of a round
DISTURBED_STARTS = 30  # after so many starts nothing disturbs a round any more
CALM_STARTS = 3  # so many starts may it then need


@dataclass
class Round:
    """What happened in one round.

    Attributes:
        faults: The faults, in order.
        starts: How often the command was started.
        seconds: Duration, without the comparison.
        resumed: Seconds from each kill of a driver until the next command announced a stage, or ended, where no other
            fault came between.
        wrong: What must not be: differences, tracebacks, a command that is stuck; empty if all is well.
        left: What is left behind.
        peak_mib: Greatest resident memory of a driver.
    """

    faults: list[Fault] = field(default_factory=list)
    starts: int = 0
    seconds: float = 0.0
    resumed: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    left: dict[str, Any] = field(default_factory=dict)
    peak_mib: float = 0.0

    def line(self) -> str:
        """Return it as one line of JSON."""
        told = {**vars(self), "faults": [f"{fault.kind}: {fault.what}" for fault in self.faults]}
        if len(self.wrong) > SHOWN:
            told["wrong"] = [*self.wrong[:SHOWN], f"and {len(self.wrong) - SHOWN} more"]
        return json.dumps(told | {"seconds": round(self.seconds), "peak_mib": round(self.peak_mib)})


def disturbed(command: Command, server: Server, names: Sequence[str], every: float, draw: random.Random) -> Round:
    """Run the command until it ends well, with faults from `names` on average every `every` seconds.

    Args:
        command: The command; its root does not exist yet.
        server: The MLflow server.
        names: Kinds of faults; empty: nothing is disturbed.
        every: Seconds between two faults on average.
        draw: Draws the times and kinds.
    """
    told, began = Round(), time.monotonic()
    killed_at: float | None = None
    announced = 0
    while command.status != 0:
        if command.status is not None or not told.starts:
            if told.starts >= DISTURBED_STARTS + CALM_STARTS:
                told.wrong.append(f"not finished by {CALM_STARTS} starts that nothing disturbed")
                break
            command.start()
            told.starts += 1
            calm = not names or told.starts > DISTURBED_STARTS
            next_fault = float("inf") if calm else time.monotonic() + draw.expovariate(1 / every)
        time.sleep(POLL_SECONDS)
        if command.watch():
            told.wrong.append("the command said nothing for ten minutes")
            command.kill(everything=True)
        stages = command.text().count("▸")
        if killed_at is not None and (stages > announced or command.status == 0):
            told.resumed.append(time.monotonic() - killed_at)
            killed_at = None
        if command.status is None and time.monotonic() >= next_fault:
            announced = stages
            fault = FAULTS[draw.choice(names)](command, server, draw)
            next_fault = time.monotonic() + draw.expovariate(1 / every)
            if fault is not None:
                told.faults.append(fault)
                # After another fault, what follows would no longer measure how soon the command goes on.
                killed_at = time.monotonic() if fault.kind in ("driver", "tree") else None
    told.seconds, told.peak_mib = time.monotonic() - began, command.peak_mib
    if "Traceback (most recent call last)" in command.text():
        told.wrong.append("a traceback")
    return told


def left_behind(command: Command, server: Server) -> dict[str, Any]:
    """Return what a finished command leaves, once Ray's own processes have had ten seconds to notice."""
    until = time.monotonic() + 10
    while (processes := of_root(command.root)) and time.monotonic() < until:
        time.sleep(0.5)
    names = [process.name() for process in processes if process.is_running()]
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return {"processes": names, "files": litter(command.root), "open_runs": runs_left_open(server.uri)}


def main() -> None:
    """Soak for as long as asked, and say what was found; the exit status is 1 if anything must not be."""
    parser = argparse.ArgumentParser(description="See the module's docstring.")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=12.0, help="seconds between two faults, on average")
    parser.add_argument("--faults", nargs="+", choices=list(FAULTS), default=list(FAULTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file for one line of JSON per round")
    parser.add_argument("--keep", type=Path, help="folder for root, log and database of rounds that went wrong")
    asked = parser.parse_args()
    draw, until = random.Random(asked.seed), time.monotonic() + 60 * asked.minutes
    with tempfile.TemporaryDirectory(prefix="soak-") as name, disk(Path(name) / "disk") as mounted:
        folder = Path(name)
        write_experiment(folder / "soak.yaml")
        names = [one for one in asked.faults if mounted or one != "disk"]
        if names != asked.faults:
            print("no file system could be mounted here: the disk is not filled", flush=True)
        server = Server(folder / "mlflow")
        server.start()
        rounds: list[Round] = []
        try:
            whole, expected = _round(0, folder, server, [], asked.every, draw, None)
            print(f"undisturbed: {whole.seconds:.0f} s, {len(expected)} things to compare", flush=True)
            while time.monotonic() < until:
                number = len(rounds) + 1
                told, _ = _round(number, folder, server, names, asked.every, draw, expected)
                rounds.append(told)
                if told.wrong and asked.keep is not None:
                    keep = asked.keep / f"round-{number}"
                    shutil.copytree(folder / "disk" / f"round-{number}", keep / "root")
                    shutil.copy(folder / f"round-{number}.log", keep / "log")
                    shutil.copy(folder / "mlflow" / "mlflow.db", keep)
                shutil.rmtree(folder / "disk" / f"round-{number}")  # the disk is small
                print(told.line(), flush=True)
                if asked.out is not None:
                    with asked.out.open("a") as stream:
                        stream.write(told.line() + "\n")
        finally:
            server.kill()
        print(summary(rounds, whole), flush=True)
        sys.exit(any(told.wrong or told.left["processes"] or told.left["files"] for told in [whole, *rounds]))


def _round(
    number: int,
    folder: Path,
    server: Server,
    names: Sequence[str],
    every: float,
    draw: random.Random,
    expected: dict[str, Any] | None,
) -> tuple[Round, dict[str, Any]]:
    """Run one round on a root of its own; return it, and what root and MLflow hold in the end."""
    root = folder / "disk" / f"round-{number}"
    command = Command(folder / "soak.yaml", root, server.uri, folder / f"round-{number}.log")
    free = psutil.virtual_memory().available
    told = disturbed(command, server, names, every, draw)
    held = {**contents(root), **histories(server.uri, root)}
    told.wrong += [] if expected is None else differences(held, expected)
    told.left = left_behind(command, server)
    told.left["host_mib"] = round((free - psutil.virtual_memory().available) / 2**20)
    return told, held


def summary(rounds: Sequence[Round], whole: Round) -> str:
    """Return the summary of all rounds, against one that nothing disturbed."""
    faults = [fault for told in rounds for fault in told.faults]
    if not faults:
        return "no fault took place"
    kinds = Counter(fault.kind for fault in faults)
    lost = sum(told.seconds - whole.seconds for told in rounds) - sum(fault.seconds for fault in faults)
    resumed = [seconds for told in rounds for seconds in told.resumed]
    lines = [
        f"{len(rounds)} rounds, {len(faults)} faults ({', '.join(f'{n} {kind}' for kind, n in kinds.items())})",
        f"{sum(kinds[kind] for kind in KILLS)} of them are kills; a second command followed "
        f"{sum(told.starts - 1 for told in rounds)} times",
        f"work lost: {lost / len(faults):.1f} s per fault (an undisturbed round takes {whole.seconds:.0f} s)",
        f"differences: {sum(len(told.wrong) for told in rounds)}",
        f"left: {sum(len(told.left['processes']) for told in rounds)} processes, "
        f"{sum(len(told.left['files']) for told in rounds)} files, "
        f"{max(told.left['open_runs'] for told in rounds)} open runs in MLflow at most",
        f"memory: driver {rounds[0].peak_mib:.0f} MiB in the first round, {rounds[-1].peak_mib:.0f} in the last; the "
        f"host {statistics.median(told.left['host_mib'] for told in rounds):+.0f} MiB a round (median)",
    ]
    if resumed:
        lines.append(
            f"after the kill of a driver: {statistics.median(resumed):.0f} s to go on (median), "
            f"{max(resumed):.0f} at most"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
