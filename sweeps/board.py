"""Progress of a sweep: a live table on a terminal, plain lines in a log file."""

import pickle
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.tune import Callback
from rich.console import Console
from rich.live import Live
from rich.table import Table

from sweeps.console import say, shown_errors
from sweeps.events import (
    Done,
    Evaluating,
    Event,
    Found,
    Imaging,
    Interrupted,
    Judging,
    Optimising,
    Refused,
    Starting,
    Training,
    Waiting,
)
from sweeps.failures import in_few_words

TRAIN_SHARE = 0.6
"""Share of a candidate's work that training is thought to be, for the time left."""

LINE_EVERY_S = 5.0
"""A candidate's progress makes at most one line in so many seconds; changes of phase always do."""


@dataclass
class Row:
    """What is known of one candidate; ``work`` is how much it has to do compared with the others, ``share`` is done."""

    work: float = 1.0
    last: type[Event] | None = None
    text: str = "queued"
    share: float = 0.0
    line_at: float = 0.0


class Board(Callback):  # type: ignore[misc]  # Ray has no types
    """Collects what trials tell and shows it.

    Args:
        candidates: names, in order, and whether each has a LLaVA to train (rather than to find).
        kept: what storage holds of a candidate, in words.
        after_failure: called before a trial is started again.
    """

    def __init__(
        self,
        candidates: dict[str, bool],
        kept: Callable[[str], str] = lambda _: "what is in storage",
        after_failure: Callable[[], None] = lambda: None,
    ) -> None:
        self.rows = {name: Row(1.0 if trains else 1.0 - TRAIN_SHARE) for name, trains in candidates.items()}
        self.kept = kept
        self.after_failure = after_failure
        self.started = time.time()
        self.refusals: dict[str, str] = {}
        self.failures: dict[str, str] = {}
        self.width = max(map(len, candidates))
        terminal = Console(file=shown_errors())
        # A library that prints while the table is shown has no business on the terminal.
        self.live = (
            Live(
                console=terminal,
                get_renderable=self._table,
                refresh_per_second=2,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            if terminal.is_terminal
            else None
        )

    def __enter__(self) -> "Board":
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def __getstate__(self) -> dict[str, Any]:
        """Ray Tune stores its callbacks; a terminal cannot be stored."""
        return {**self.__dict__, "live": None, "kept": None, "after_failure": None}

    def say(self, text: str) -> None:
        """Tells something about the sweep as a whole."""
        line = f"{time.strftime('%H:%M:%S')} {text}"
        if self.live is not None:
            self.live.console.print(line, highlight=False, markup=False, soft_wrap=True)
        else:
            say(line)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Called by Ray Tune with every report of a trial."""
        self.update(str(result["config"]["candidate"]), result["event"])

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called by Ray Tune when a trial failed and is about to be started again."""
        name, reason = str(trial.config["candidate"]), in_few_words(_error_of(trial))
        row = self.rows[name]
        row.text, row.last = f"started again: {reason}", None
        self.say(f"{name:<{self.width}}  started again ({reason}); kept: {self._kept(name)}")
        try:
            self.after_failure()
        except Exception:  # what is raised here would end all trials
            traceback.print_exc()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called by Ray Tune when a trial failed for good."""
        name = str(trial.config["candidate"])
        self.failures[name] = in_few_words(_error_of(trial))
        self.rows[name].text = f"failed: {self.failures[name]}"
        self.say(f"{name:<{self.width}}  {self.rows[name].text}; kept: {self._kept(name)}")

    def _kept(self, name: str) -> str:
        try:
            return self.kept(name)
        except Exception:  # a storage that does not answer now is no reason to end all trials
            return "what is in storage"

    def update(self, name: str, event: Event) -> None:
        """Notes what a trial told, and shows it."""
        if isinstance(event, Refused):
            self.refusals[name] = event.mistake
        row = self.rows[name]
        before, row.last = row.last, type(event)
        row.text, row.share = self._describe(row, event)
        if self.live is not None:
            return  # it draws itself
        ended = isinstance(event, Training) and event.step == event.steps
        always = row.last is not before or ended or isinstance(event, Found | Interrupted)
        if always or time.time() - row.line_at > LINE_EVERY_S:
            row.line_at = time.time()
            left = self.time_left()
            self.say(f"{name:<{self.width}}  {row.text}{left and f'  ({left})'}")

    def time_left(self) -> str:
        """An estimate from the share of work done so far.

        Returns:
            Text, empty while nothing can be said.
        """
        share = sum(row.work * row.share for row in self.rows.values()) / sum(row.work for row in self.rows.values())
        elapsed = time.time() - self.started
        if share < 0.03 or share >= 1:
            return ""
        left = elapsed * (1 - share) / share
        return f"about {left / 60:.0f} min left" if left > 90 else f"about {left:.0f} s left"

    def _describe(self, row: Row, event: Event) -> tuple[str, float]:
        share = TRAIN_SHARE if row.work == 1.0 else 0.0
        match event:
            case Found(what):
                return f"found in storage: {what}", share if what == "model" else 1.0
            case Waiting(holder):
                return f"waiting for {holder}, which is working on the same", row.share
            case Starting():
                return "starting training workers", 0.01
            case Training(stage, step, steps, loss):
                done = (stage - 1 + step / steps) / event.stages
                return f"training stage {stage}: step {step} of {steps}, loss {loss:.3f}", share * done
            case Interrupted(reason):
                return f"training goes on from its last checkpoint ({reason})", row.share
            case Imaging(0, of):
                return f"making universal images: {of} to do", row.share
            case Imaging(images, of, what, gained):
                return f"universal image {images} of {of} ({what}: corpus loss down by {gained:.2f})", row.share
            case Optimising(what, step, of, loss):
                return f"universal image {what}: step {step} of {of}, loss {loss:.2f}", row.share
            case Evaluating(0, of):
                return f"evaluating: {of} parts to do", row.share
            case Evaluating(parts, of, what, mean):
                text = f"evaluating: part {parts} of {of} ({what}: mean score {mean:.1f})"
                return text, share + (1 - share) * parts / of
            case Judging(judge, 0, of):
                return f"judging by {judge}: {of} parts to do", row.share
            case Judging(judge, parts, of):
                return f"judging by {judge}: part {parts} of {of}", row.share
            case Done(clean, robust, where):
                scores = {"clean": clean, where: robust}
                return f"done: {', '.join(f'{what} {x:.1f}' for what, x in scores.items() if x is not None)}", 1.0
            case Refused(mistake):
                return f"refused: {mistake}", row.share

    def _table(self) -> Table:
        minutes, seconds = divmod(int(time.time() - self.started), 60)
        table = Table(title=f"{minutes}:{seconds:02d} {self.time_left()}", title_justify="left", box=None)
        table.add_column("candidate")
        table.add_column("")
        table.add_column("now", no_wrap=True, overflow="ellipsis")  # a line per candidate, however narrow the terminal
        for name, row in self.rows.items():
            table.add_row(name, f"{100 * row.share:3.0f} %", row.text)
        return table


def _error_of(trial: Any) -> BaseException | None:
    """The error for which Ray Tune gave up a trial's process; it leaves it in a file."""
    try:
        found: BaseException = pickle.loads(Path(trial.pickled_error_file).read_bytes())
    except Exception:  # none was written, or it cannot be read back: the log has its text
        return None
    return found
