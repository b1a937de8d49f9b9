"""Checks of everything that runs need, one line each: fine, worth knowing, or what to do about a fault."""

import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from rich.markup import escape

from rayreid.console import Screen
from rayreid.diagnostics.finding import Finding
from rayreid.diagnostics.leftovers import leftovers, parse_discarded
from rayreid.diagnostics.node_health import Examination, Host, versions
from rayreid.diagnostics.verified_outputs import verified
from rayreid.disk_faults import as_storage_error
from rayreid.errors import UserError, one_line
from rayreid.execution.connection import connect
from rayreid.execution.machine import usable_cpus
from rayreid.execution.nodes import Answer, ask_every_node
from rayreid.execution.shared_storage import Token, token
from rayreid.paths import inside_job, output_root
from rayreid.storage.lease import Lease
from rayreid.tracking import database
from rayreid.tracking.tracker import Tracker

_OLDEST = (3, 11)
_GIB = 2**30
_LITTLE, _NOTHING = 20 * _GIB, 2 * _GIB  # a checkpoint of a ViT-B in pre-training takes 1.5 GiB
_MARKS = {"ok": "[green]✓[/]", "note": "[yellow]![/]", "bad": "[red]✗[/]"}
_TESTED = Path(__file__).parents[3] / "constraints.txt"


def doctor(
    screen: Screen | None = None, verify: bool = False, repair: bool = False, discard: Sequence[str] = ()
) -> bool:
    """Check everything, print one line per check, and return whether runs can be started.

    The checks write some small files and remove them, start Ray as a run would, and leave an empty MLflow experiment
    named `doctor`.

    Args:
        screen: Prints the lines.
        verify: Whether to read all artifacts of the output root, too, and to compare them with their checksums.
        repair: Whether to clear up what `leftovers` finds.
        discard: Kinds of leftovers that clearing up deletes, too.

    Raises:
        UserError: There is no such kind, or it is not to be cleared up.
    """
    screen = screen or Screen()
    bad = 0
    kinds = parse_discarded(discard)
    if kinds and not repair:
        raise UserError("--discard is for rayreid doctor --repair; add that")
    for finding in chain(_findings(repair, kinds), _verified(screen) if verify else ()):
        screen.say(f"{_MARKS[finding.mark]} {finding.subject:<10} {escape(finding.text)}")
        bad += finding.mark == "bad"
    screen.say("all is well" if not bad else f"{bad} to fix: see the lines marked ✗")
    return not bad


def fix_locations(screen: Screen | None = None) -> None:
    """Let the MLflow database of an output root that was moved record its present place, and print what changed."""
    screen = screen or Screen()
    root = output_root()
    changed = database.fix_locations(root)
    for old, count in changed.items():
        screen.say(f"locations of artifacts changed from {escape(str(old))} to {escape(str(root))}: {count}")
        if old.exists():
            screen.say(
                f"{escape(str(old))} still exists: copy what it holds to {escape(str(root / database.ARTIFACTS))}"
            )
    if not changed:
        screen.say(f"{escape(str(root))}: its MLflow database records no other place")


def _findings(repair: bool, discard: frozenset[str]) -> Iterator[Finding]:
    yield python(sys.version_info[:3])
    tested = pins(_TESTED)
    here = versions(list(tested))
    yield compared(here, tested)
    try:
        with token() as written:
            yield from places(written)
            yield from left_in(written.root, repair, discard)
            yield _guarded("MLflow", lambda: mlflow(written.root))
            yield from _cluster(here, written)
    except (UserError, OSError) as error:
        yield Finding("bad", "outputs", f"{_explained(error)}; see RAYREID_ROOT")
        yield from _cluster(here, None)


def _verified(screen: Screen) -> Iterator[Finding]:
    try:
        yield from verified(output_root(), screen)
    except (UserError, OSError) as error:
        yield Finding("bad", "artifact", one_line(_explained(error)))


def python(version: Sequence[int]) -> Finding:
    """Check whether Python is new enough."""
    shown = ".".join(map(str, version))
    if tuple(version[:2]) >= _OLDEST:
        return Finding("ok", "Python", shown)
    return Finding("bad", "Python", f"{shown}: install {'.'.join(map(str, _OLDEST))} or newer")


def pins(path: Path) -> dict[str, str]:
    """Return the pins of a constraints file; none if the file does not exist, as without a checkout."""
    if not path.exists():
        return {}
    lines = [line.partition(";")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


def compared(installed: dict[str, str], tested: dict[str, str]) -> Finding:
    """Check whether the installed versions are the tested ones, ignoring the suffix of a build (`+cu126`)."""
    if not tested:
        return Finding("note", "versions", "not compared with the tested ones: no constraints.txt next to the package")
    other = [
        f"{name} {found} (tested: {tested[name]})"
        for name, found in installed.items()
        if found.partition("+")[0] != tested[name]
    ]
    if other:
        return Finding(
            "note",
            "versions",
            f"{', '.join(other)}: install the tested ones with pip install -c constraints.txt -e '.[all]'",
        )
    return Finding("ok", "versions", f"{len(installed)} packages as tested")


def places(written: Token) -> Iterator[Finding]:
    """Yield the checks of the output and dataset folders on this machine."""
    root = written.root
    yield _guarded("outputs", lambda: _outputs(root))
    named = os.environ.get("RAYREID_DATA")
    if written.data is not None:
        yield Finding("ok", "data", f"{written.data}")
    elif named:
        yield Finding(
            "bad", "data", f"RAYREID_DATA={named} is not a folder: mount it, or name the folder with the datasets"
        )
    else:
        yield Finding("note", "data", "RAYREID_DATA is not set: relative roots of datasets begin at the current folder")


def left_in(root: Path, repair: bool, discard: frozenset[str] = frozenset()) -> Iterator[Finding]:
    """Yield one line per leftover of an output root, and clear it up if that is asked for."""
    try:
        for one in leftovers(root, discard):
            if one.mend is None:
                yield Finding("note", "outputs", f"{one.text}; rayreid doctor --repair {one.asked}")
            elif not repair:
                yield Finding("note", "outputs", f"{one.text}; rayreid doctor --repair {one.does}")
            elif one.mend():
                yield Finding("ok", "outputs", f"{one.text}: cleared up ({one.does})")
            else:
                yield Finding("note", "outputs", f"{one.text}: left, because another process has taken it up")
    except (UserError, OSError) as error:
        yield Finding("bad", "outputs", one_line(_explained(error)))


def _outputs(root: Path) -> Finding:
    with Lease(root / f".lease-{uuid.uuid4().hex}"):  # needs hard links
        pass
    return room(root, shutil.disk_usage(root).free)


def room(root: Path, free: int) -> Finding:
    """Check whether there is room for outputs; `free` is in bytes."""
    shown = f"{root}: can be written, {free / _GIB:,.1f} GiB free"
    if free < _NOTHING:
        return Finding("bad", "outputs", f"{shown}: make room, or set RAYREID_ROOT to another place")
    if free < _LITTLE:
        return Finding("note", "outputs", f"{shown}: this is little for checkpoints; make room")
    return Finding("ok", "outputs", shown)


def mlflow(root: Path) -> Finding:
    """Check whether a run, a metric and an artifact reach the tracking store; they are deleted again."""
    tracker = Tracker(root, "doctor")
    run = tracker.run("doctor")
    try:
        run.metrics({"written": 1.0})
        run.text("written", "written.txt")
        run.finish()
    finally:
        tracker.client.delete_run(run.id)
    return Finding("ok", "MLflow", f"{tracker.uri}: takes runs, metrics and artifacts")


def _guarded(subject: str, look: Callable[[], Finding]) -> Finding:
    """Run a check, and turn any exception into a finding."""
    try:
        return look()
    except Exception as error:
        return Finding("bad", subject, one_line(_explained(error)))


def _explained(error: Exception) -> Exception:
    return error if isinstance(error, UserError) else as_storage_error(error, output_root()) or error


def _cluster(here: dict[str, str], written: Token | None) -> Iterator[Finding]:
    """Yield the checks of Ray and of all its nodes; of this machine alone if Ray cannot be reached."""
    examination = Examination(list(here), written)
    try:
        with connect():
            import ray

            yield _ray(ray.cluster_resources())
            answers = ask_every_node(examination)
    except UserError as error:
        yield Finding("bad", "Ray", str(error))
        answers = [Answer("this machine", {"CPU": float(usable_cpus() or os.cpu_count() or 0)}, examination())]
    for answer in answers:
        yield from node(answer, here)


def _ray(resources: dict[str, float]) -> Finding:
    address = os.environ.get("RAY_ADDRESS")
    if inside_job():
        where = "the cluster of this job"
    elif address and address != "local":
        where = address
    else:
        where = "started here, RAY_ADDRESS is not set"
    cpus, gpus = (f"{resources.get(kind, 0):g} {kind}s" for kind in ("CPU", "GPU"))
    return Finding("ok", "Ray", f"{where}: {cpus}, {gpus}")


def node(answer: Answer, here: dict[str, str]) -> Iterator[Finding]:
    """Yield one line if a node is healthy, or else one line per fault; and one for each thing worth knowing.

    Args:
        answer: The result of an `Examination` on that node.
        here: Versions of this machine's packages, by name.
    """
    subject = f"node {answer.node}"
    if answer.error:
        yield Finding(
            "bad", subject, f"{answer.error}; see ray status, and the logs in its /tmp/ray/session_latest/logs"
        )
        return
    host: Host = answer.value
    faults = list(host.faults)
    counted = int(answer.resources.get("GPU", 0))
    if counted > len(host.gpus) and not any(fault.startswith("GPU ") for fault in faults):
        built = f"for CUDA {host.cuda}" if host.cuda else "without support for GPUs"
        faults.append(
            f"Ray counts {counted} GPUs, torch sees {len(host.gpus)} and is built {built}: install a build that fits"
        )
    other = [f"{name} {there}" for name, there in host.versions.items() if there != here.get(name)]
    other += [f"no {name}" for name in here if name not in host.versions]
    if other:
        faults.append(f"other versions than here: {', '.join(other)}; install the same on all nodes")
    for fault in faults:
        yield Finding("bad", subject, fault)
    for note in host.notes:
        yield Finding("note", subject, note)
    if not faults:
        gpus = ", ".join(f"{host.gpus.count(name)} × {name}" for name in dict.fromkeys(host.gpus)) or "no GPU"
        faiss = f"faiss {host.faiss}" if host.faiss else "no faiss"
        free = f"{host.free / _GIB:,.0f} GiB free for Ray"
        yield Finding("ok", subject, f"{answer.resources.get('CPU', 0):g} CPUs, {gpus}; {faiss}; {free}")
