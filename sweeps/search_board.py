"""Progress of a search: the trials under way, what is spent and left, the front so far and its hypervolume."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.table import Table

from rllava.fronts import hypervolume
from rllava.search.history import Event, Study
from rllava.search.objectives import OBJECTIVES
from sweeps.board import Board, Row
from sweeps.events import Done, Refused
from sweeps.searching import Search, hours_so_far, outcome_of


class SearchBoard(Board):
    """Shows what trials tell, and tells the study what has come out of them.

    Args:
        after_failure: called before a trial is started again.
    """

    def __init__(self, search: Search, study: Study, after_failure: Callable[[], None] = lambda: None) -> None:
        super().__init__({"": True}, after_failure=after_failure)
        self.rows.clear()
        self.width = 0
        self.search: Search | None = search
        self.study: Study | None = study

    def __getstate__(self) -> dict[str, Any]:
        """Ray Tune stores its callbacks; the state of a search is in storage."""
        return {**super().__getstate__(), "search": None, "study": None}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called by Ray Tune when a trial starts, or starts again."""
        self.rows.setdefault(str(trial.config["candidate"]), Row())

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called by Ray Tune when a trial has ended well, or has found a user's mistake."""
        assert self.search is not None
        assert self.study is not None
        label, number, rung = (trial.config[key] for key in ("candidate", "number", "rung"))
        self.rows.pop(label, None)
        if label in self.refusals:
            hours = hours_so_far(self.search, trial.config["configuration"], rung)
            self.study.happened(Event("refused", number, rung, hours=hours, reason=self.refusals[label]))
            return
        outcome = outcome_of(self.search, trial.config["configuration"], rung)
        self.study.happened(Event("finished", number, rung, values=outcome.values, hours=outcome.hours))
        names = [objective.name for objective in self.search.objectives]
        told = ", ".join(f"{name} {value:.4g}" for name, value in zip(names, outcome.values, strict=True))
        self.say(f"{label}  finished: {told}; {standing(self.search, self.study)}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called by Ray Tune when a trial failed for good."""
        assert self.search is not None
        assert self.study is not None
        self.rows.setdefault(str(trial.config["candidate"]), Row())  # it may have failed before it started
        super().on_trial_error(iteration, trials, trial, **info)
        label, number, rung = (trial.config[key] for key in ("candidate", "number", "rung"))
        self.rows.pop(label, None)
        hours = hours_so_far(self.search, trial.config["configuration"], rung)
        self.study.happened(Event("failed", number, rung, hours=hours, reason=self.failures[label]))

    def update(self, name: str, event: Any) -> None:
        """Notes what a trial told, and shows it; what it comes to is told when it is known."""
        self.rows.setdefault(name, Row())
        if isinstance(event, Done):
            return
        super().update(name, event)
        if isinstance(event, Refused):
            self.say(f"{name}  refused: {event.mistake}")

    def time_left(self) -> str:
        """Nothing is said: how many trials there will be is not known."""
        return ""

    def _table(self) -> Table:
        table = super()._table()
        if self.search is not None and self.study is not None:
            minutes, seconds = divmod(int(time.time() - self.started), 60)
            table.title = f"{minutes}:{seconds:02d}  {standing(self.search, self.study)}"
        return table


def standing(search: Search, study: Study) -> str:
    """Spent and left, the front so far and its hypervolume, in one line."""
    history, limits = study.history, study.limits
    trials = f"{history.trials}{'' if limits.trials is None else f' of {limits.trials}'} trials"
    hours = f"{history.spent:.3g}{'' if limits.hours is None else f' of {limits.hours:g}'} worker-hours spent"
    points = history.points(history.top)
    front = history.front()
    volume = hypervolume(np.array(list(points.values())), reference(search, study)) if points else 0.0
    return f"{trials}, {hours}; rung {history.top}: front of {len(front)} of {len(points)}, hypervolume {volume:.4g}"


def reference(search: Search, study: Study) -> np.ndarray:
    """What everything is better than, by objective, larger is better: by definition, else the worst that was seen."""
    found = []
    for place, objective in enumerate(search.objectives):
        worst = OBJECTIVES.get(objective.kind).worst
        seen = [p[place] for rung in range(study.history.rungs) for p in study.history.points(rung).values()]
        found.append(objective.sign * worst if worst is not None else min(seen, default=0.0))
    return np.array(found, dtype=np.float64)
