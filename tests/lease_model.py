"""A model of processes that make one artifact: the real lease on a simulated storage, under a random schedule.

Every operation on the storage is atomic, and between any two of them another process may run, time may pass, a process
may be suspended or killed, and the storage's clock may jump.
"""

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from rayreid.storage.lease import Lease, LeaseLostError, check_held
from rayreid.storage.lease_place import UNREADABLE, Holder, LeasePlace
from rayreid.storage.metrics_log import Newest

RESULTS = ("weights", "table")
_LONGEST_SECONDS = 20_000.0


class Killed(BaseException):
    """Raised in the threads of a process that is killed; it does nothing more, not even in its `finally` blocks."""


@dataclass
class Process:
    """A process of a machine."""

    host: str
    pid: int
    killed: bool = False
    awake_at: float = 0.0
    suspended: bool = False
    outcome: str = ""


@dataclass
class Actor:
    """A thread of a process: its main one, or that of its lease's beat."""

    process: Process
    wakes: float = 0.0
    done: bool = False
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))


class World:
    """Storage, machines and processes.

    Args:
        seed: Seed of the schedule.
        writers: Number of processes that want to make the artifact.
        machines: Number of machines on which they run.
        harm: Probability of a fault at each operation.
    """

    def __init__(self, seed: int, writers: int, machines: int, harm: float = 0.03):
        self.random = random.Random(seed)
        self.harm = harm
        self.time, self.skew = 0.0, 1e6
        self.files: dict[str, tuple[object, int]] = {}
        self.rows: list[tuple[int, str]] = []
        self.processes: list[Process] = []
        self.actors: list[Actor] = []
        self.numbers: list[int] = []
        self.finished: list[str] = []
        self.faults: list[str] = []
        self.current: Actor | None = None
        self.over = threading.Semaphore(0)
        self.machines = machines
        self.restarts = writers
        for _ in range(writers):
            self.start_writer()

    def run(self) -> "World":
        """Run until all processes have ended."""
        self._pass_on(None)
        self.over.acquire()
        return self

    def start_writer(self) -> None:
        """Start a process that makes the artifact."""
        number = len(self.processes)
        process = Process(f"machine{self.random.randrange(self.machines)}", number + 1)
        self.processes.append(process)
        self.start(process, lambda: Writer(self, process).work(), self.time + self.random.uniform(0, 5))

    def start(self, process: Process, work: Callable[[], None], wakes: float) -> None:
        """Start a thread of a process."""
        actor = Actor(process, wakes)

        def live() -> None:
            actor.turn.acquire()
            try:
                if not process.killed:
                    work()
            except Killed:
                pass
            except Exception as error:  # the schedule goes on, and the test fails
                self.faults.append(f"pid {process.pid}: {type(error).__name__}: {error}")
            actor.done = True
            self._pass_on(None)

        self.actors.append(actor)
        threading.Thread(target=live, daemon=True).start()

    def step(self) -> None:
        """Let anything happen before the running thread's next operation."""
        me = self.current
        assert me is not None
        if me.process.killed:
            raise Killed
        self._harm()
        if self.random.random() < 0.3 or me.process.killed or me.process.awake_at > self.time:
            self._pass_on(me)
        if me.process.killed:
            raise Killed

    def sleep(self, seconds: float) -> None:
        """Let the running thread sleep."""
        me = self.current
        assert me is not None
        if me.process.killed:
            raise Killed
        me.wakes = self.time + seconds
        self._pass_on(me)
        if me.process.killed:
            raise Killed

    def now(self) -> int:
        """The time by the storage's clock, in ns."""
        return int((self.time + self.skew) * 1e9)

    def _harm(self) -> None:
        self.time += self.random.choice((0.0, 0.001, 0.1))
        if self.random.random() > self.harm:
            return
        alive = [process for process in self.processes if not process.killed and not process.outcome]
        victim = self.random.choice(alive)
        match self.random.randrange(5):
            case 0 | 1:
                victim.awake_at = self.time + self.random.choice((1, 10, 40, 100, 400))
                victim.suspended = True
            case 2:
                victim.killed = True
                if self.restarts:
                    self.restarts -= 1
                    self.start_writer()
            case 3:
                self.skew += self.random.choice((-400, -40, -5, 5, 40, 400))
            case 4:  # everything stands still
                self.time += self.random.choice((1, 10, 40))

    def _pass_on(self, me: Actor | None) -> None:
        """Let another thread run, and return when it is this one's turn again."""
        chosen = self._next()
        if chosen is me and me is not None:
            return
        self.current = chosen
        (self.over if chosen is None else chosen.turn).release()
        if me is not None:
            me.turn.acquire()

    def _next(self) -> Actor | None:
        left = [actor for actor in self.actors if not actor.done]
        if not left:
            return None
        if self.time > _LONGEST_SECONDS:
            self.faults.append("somebody waits without end")
            for process in self.processes:
                process.killed = True
        ready = [actor for actor in left if self._ready_at(actor) <= self.time]
        if not ready:
            self.time = min(map(self._ready_at, left))
            ready = [actor for actor in left if self._ready_at(actor) <= self.time]
        return self.random.choice(ready)

    def _ready_at(self, actor: Actor) -> float:
        return 0.0 if actor.process.killed else max(actor.wakes, actor.process.awake_at)


class SimulatedPlace(LeasePlace):
    """The lease file on the simulated storage, as one process sees it."""

    def __init__(self, world: World, process: Process, path):
        super().__init__(path)
        self.world, self.process = world, process

    def me(self, token: str) -> Holder:
        return Holder(token, self.process.host, self.process.pid, self.process.pid)

    def create(self, holder: Holder) -> bool:
        self.world.step()
        if "lease" in self.world.files:
            return False
        self.world.files["lease"] = (holder, self.world.now())
        return True

    def holder(self) -> Holder | None:
        self.world.step()
        found = self.world.files.get("lease")
        return found[0] if found else None

    def written(self) -> int | None:
        self.world.step()
        return self._modified("lease")

    def now(self) -> int:
        self.world.step()
        return self.world.now()

    def touch(self) -> None:
        self.world.step()
        if "lease" not in self.world.files:
            raise FileNotFoundError
        self.world.files["lease"] = (self.world.files["lease"][0], self.world.now())

    def remove(self) -> None:
        self.world.step()
        found, _ = self.world.files.pop("lease", (None, 0))
        if found is None or found.token == UNREADABLE or found.pid == self.process.pid:
            return
        owner = next(process for process in self.world.processes if process.pid == found.pid)
        if owner.killed or owner.outcome:
            return
        # A tombstone's creator that is suspended for long may remove a later lease: then this one stood still.
        if owner.host == self.process.host and not self.process.suspended:
            self.world.faults.append("a live process of the same machine was robbed")
        elif not (owner.suspended or self.process.suspended):
            self.world.faults.append("a process that never stood still was robbed")

    def set_aside(self) -> None:
        self.world.step()
        self.world.files.pop("lease", None)

    def bury(self, token: str) -> bool:
        self.world.step()
        if f"{token}.gone" in self.world.files:
            return False
        self.world.files[f"{token}.gone"] = (token, self.world.now())
        return True

    def buried(self, token: str) -> int | None:
        self.world.step()
        return self._modified(f"{token}.gone")

    def end_burial(self, token: str) -> None:
        self.world.step()
        self.world.files.pop(f"{token}.gone", None)

    def burials(self) -> list[str]:
        self.world.step()
        return [name.removesuffix(".gone") for name in self.world.files if name.endswith(".gone")]

    def alive(self, holder: Holder) -> bool | None:
        self.world.step()
        if holder.host != self.process.host:
            return None
        owner = next(process for process in self.world.processes if process.pid == holder.pid)
        return not (owner.killed or owner.outcome)

    def monotonic(self) -> float:
        return self.world.time

    def sleep(self, seconds: float) -> None:
        self.world.sleep(seconds)

    def wait(self, event: threading.Event, seconds: float) -> bool:
        self.world.sleep(seconds)
        return event.is_set()

    def _modified(self, name: str) -> int | None:
        found = self.world.files.get(name)
        return found[1] if found else None


class Writer:
    """What a process does to make the artifact: the order of `Artifact.writing`, `files.replacing` and `finish`."""

    def __init__(self, world: World, process: Process):
        self.world, self.process = world, process
        self.place = SimulatedPlace(world, process, _Anywhere())
        self.lease = Lease(_Anywhere(), place=self.place)
        self.temporaries = 0

    def work(self) -> None:
        self.lease.take()
        self.world.start(self.process, self.lease._keep, self.world.time)
        try:
            outcome = self._make()
        except LeaseLostError:
            outcome = "refused"
        except FileNotFoundError:  # its temporary file was removed by the new holder
            outcome = "refused"
        self.lease._released.set()
        self.lease.release()
        self.process.outcome = outcome

    def _make(self) -> str:
        for temporary in self._op(lambda files: [name for name in files if name.endswith(".tmp")]):
            self._op(lambda files, name=temporary: files.pop(name, None))
        if self._op(lambda files: "artifact" in files):
            return "found"
        number = self._op(lambda files: files.get("number", (0, 0))[0]) + 1
        self._write("number", number)
        self.world.numbers.append(number)
        for row in range(3):
            check_held(self.place, self.lease.token)
            self._op(lambda files: self.world.rows.append((number, self.lease.token)))
            if row == 1:
                self.world.sleep(self.world.random.choice((0.0, 1.0, 20.0)))
        for name in RESULTS:
            self._write(name, self.lease.token)
        self._write("artifact", self.lease.token, new=True)
        self.world.finished.append(self.lease.token)
        return "finished"

    def _write(self, name: str, content: object, new: bool = False) -> None:
        self.temporaries += 1
        temporary = f"{name}.{self.process.pid}.{self.temporaries}.tmp"
        self._op(lambda files: files.__setitem__(temporary, (content, 0)))
        check_held(self.place, self.lease.token)

        def rename(files: dict[str, tuple[object, int]]) -> None:
            if temporary not in files:
                raise FileNotFoundError
            if new and name in files:
                raise LeaseLostError("finished")
            if "artifact" in files:
                self.world.faults.append(f"{name} was written after the artifact was complete")
            files[name] = files.pop(temporary)

        self._op(rename)

    def _op(self, work: Callable[[dict[str, tuple[object, int]]], object]):
        self.world.step()
        return work(self.world.files)


class _Anywhere:
    """A path of which only messages speak."""

    parent = "artifact"


def check(world: World) -> list[str]:
    """What is wrong with the outcome of a schedule."""
    wrong = list(world.faults)
    if len(world.finished) > 1:
        wrong.append("it was finished twice")
    if len(set(world.numbers)) < len(world.numbers):
        wrong.append(f"two writers have one number: {world.numbers}")
    if "artifact" in world.files:
        owner = world.files["artifact"][0]
        if any(world.files[name][0] != owner for name in RESULTS):
            wrong.append("its files are of several writers")
        newest = Newest()
        read = [token for number, token in world.rows if newest.counts(number)]
        if owner not in read:
            wrong.append("the finisher's rows are missing")
        elif set(read[read.index(owner) :]) != {owner}:
            wrong.append("rows of another writer follow the finisher's")
    elif not any(process.killed or process.outcome == "refused" for process in world.processes):
        wrong.append("nobody made it")
    return wrong


def explore(seeds: range, writers: int, machines: int) -> tuple[list[str], dict[str, int]]:
    """Run many schedules; what went wrong, and how often writers came to which end."""
    wrong, outcomes = [], dict.fromkeys(("finished", "found", "refused", "killed"), 0)
    for seed in seeds:
        world = World(seed, writers, machines).run()
        wrong += [f"seed {seed}, {writers} writers, {machines} machines: {text}" for text in check(world)]
        for process in world.processes:
            outcomes[process.outcome or "killed"] += 1
    return wrong, outcomes
