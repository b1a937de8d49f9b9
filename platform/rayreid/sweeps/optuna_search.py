"""Optuna search for Ray Tune, with its study on the disk so that a later command continues it."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ray.tune.search import Searcher

from rayreid.config import Sweep
from rayreid.config.loading import describe
from rayreid.errors import missing_extra
from rayreid.state_files import if_whole, reading
from rayreid.sweeps.trials import rounded

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution
    from optuna.storages import JournalStorage

JOURNAL = "search.log"
_DONE = "done"
_STUDY = "sweep"


class OptunaSearcher(Searcher):
    """Searcher that suggests `sweep.trials` combinations and stores their results in a study on the disk.

    Ray's own wrapper of Optuna loses the unfinished trials with its process, and draws the same trials again with the
    same seed. This searcher first repeats trials that an interrupted or failed command left, and uses no seed twice.

    Args:
        sweep: The search space and the metric.
        folder: Folder of the study; an existing study is continued.

    Raises:
        UserError: Optuna is not installed.
    """

    def __init__(self, sweep: Sweep, folder: Path):
        super().__init__(metric=sweep.metric, mode="max")
        self.sweep, self.folder = sweep, folder
        self._open()

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the study, which is on the disk (Tune pickles its searcher)."""
        return {key: value for key, value in self.__dict__.items() if key not in ("_study", "_asked")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def _open(self) -> None:
        optuna = require_optuna()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        path = self.folder / JOURNAL
        study = if_whole(path, partial(_study_in, path), "the search begins again; trials with results cost no time")
        study = study or _study_in(path)
        states = optuna.trial.TrialState
        known = study.get_trials(deepcopy=False)
        for one in known:
            if one.state == states.RUNNING:  # left by a process that has ended
                study.tell(one.number, state=states.FAIL)
        # With the plain seed the sampler would draw its first trials again.
        study.sampler = optuna.samplers.TPESampler(seed=self.sweep.seed + len(known))
        self._study = study
        self._asked: dict[str, Trial] = {}
        finished = [one.params for one in known if one.state == states.COMPLETE]
        self._again: list[dict[str, Any]] = []
        for one in known:
            if one.params and one.params not in finished + self._again:
                self._again.append(one.params)
        self._left = (self.sweep.trials or 0) - len(finished)

    @property
    def left(self) -> int:
        """Number of trials that are still to be run."""
        return max(0, self._left - len(self._asked))

    def done(self) -> list[dict[str, Any]]:
        """Return the combinations of the trials that earlier commands have finished."""
        return _done(self._study)

    def suggest(self, trial_id: str) -> dict[str, Any] | str:  # type: ignore[override]  # Tune's type omits FINISHED
        """Return the next combination as JSON under `changes`, with its label."""
        if self.left == 0:
            return Searcher.FINISHED
        if self._again:
            self._study.enqueue_trial(self._again.pop(0))
        asked = self._study.ask(fixed_distributions=_distributions(self.sweep))
        self._asked[trial_id] = asked
        changes = _changes(self.sweep, asked.params)
        return {"label": describe(changes), "changes": json.dumps(changes)}

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Store the result of a trial, or that it failed."""
        asked = self._asked.pop(trial_id)
        self._left -= 1
        if error or not result or self.metric not in result:
            self._study.tell(asked, state=require_optuna().trial.TrialState.FAIL)
            return
        asked.set_user_attr(_DONE, _changes(self.sweep, asked.params))
        self._study.tell(asked, float(result[self.metric]))

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the study is on the disk."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the study is on the disk."""


def finished(folder: Path) -> list[dict[str, Any]]:
    """Return the combinations of the trials that a search has finished so far; nothing is written.

    The search may still run.

    Args:
        folder: Folder of the study.

    Raises:
        UserError: Optuna is not installed, or the study is damaged.
    """
    path = folder / JOURNAL
    if not path.exists():
        return []
    optuna = require_optuna()
    with reading(path):
        storage = _storage(path)
        names = optuna.get_all_study_names(storage)  # none if the process was killed while it created the study
        return _done(optuna.load_study(study_name=_STUDY, storage=storage)) if _STUDY in names else []


def _done(study: "Study") -> list[dict[str, Any]]:
    return [one.user_attrs[_DONE] for one in study.get_trials(deepcopy=False) if _DONE in one.user_attrs]


def _study_in(path: Path) -> "Study":
    """Return the study in a journal, created if it does not exist.

    Raises:
        DamagedFileError: The journal is not one of a study.
    """
    optuna = require_optuna()
    with reading(path):
        study: Study = optuna.create_study(
            storage=_storage(path), study_name=_STUDY, direction="maximize", load_if_exists=True
        )
        return study


def _storage(path: Path) -> "JournalStorage":
    storages = require_optuna().storages
    return storages.JournalStorage(storages.journal.JournalFileBackend(str(path)))


def require_optuna() -> ModuleType:
    """Import Optuna and return its module.

    Raises:
        UserError: Optuna is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise missing_extra("sweep.search: optuna", "optuna", ["optuna"]) from None
    return optuna


def _distributions(sweep: Sweep) -> "dict[str, BaseDistribution]":
    """Return the distribution of each key. Lists are searched by index, because values may be anything YAML allows."""
    kinds = require_optuna().distributions
    made: dict[str, BaseDistribution] = {}
    for key, values in sweep.parameters.items():
        if isinstance(values, list):
            made[key] = kinds.CategoricalDistribution(list(range(len(values))))
        elif values.loguniform is not None:
            made[key] = kinds.FloatDistribution(*values.loguniform, log=True)
        else:
            assert values.uniform is not None
            made[key] = kinds.FloatDistribution(*values.uniform)
    return made


def _changes(sweep: Sweep, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changes that a suggestion makes to the experiment."""
    return {
        key: values[params[key]] if isinstance(values, list) else rounded(params[key])
        for key, values in sweep.parameters.items()
    }
