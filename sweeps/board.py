"""Progress of a sweep: a live table on a terminal, plain lines in a log file."""

import time
from dataclasses import dataclass
from typing import Any

from ray.tune import Callback
from rich.console import Console
from rich.live import Live
from rich.table import Table

TRAIN_SHARE = 0.6
"""Share of a candidate's work that training is thought to be, for the time left."""

LINE_EVERY_S = 5.0
"""A candidate's progress makes at most one line in so many seconds; changes of phase always do."""


@dataclass
class Row:
    """What is known of one candidate; ``work`` is how much it has to do compared with the others, ``share`` is done."""

    work: float = 1.0
    phase: str = "queued"
    text: str = "queued"
    share: float = 0.0
    line_at: float = 0.0


class Board(Callback):  # type: ignore[misc]  # Ray has no types
    """Collects what trials report and shows it.

    Args:
        candidates: names, in order, and whether each has a LLaVA to train (rather than to find).
    """

    def __init__(self, candidates: dict[str, bool]) -> None:
        self.rows = {name: Row(1.0 if trains else 1.0 - TRAIN_SHARE) for name, trains in candidates.items()}
        self.started = time.time()
        self.refusals: dict[str, str] = {}
        self.width = max(map(len, candidates))
        terminal = Console(stderr=True)
        self.live = (
            Live(console=terminal, get_renderable=self._table, refresh_per_second=2) if terminal.is_terminal else None
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
        return {**self.__dict__, "live": None}

    def say(self, text: str) -> None:
        """Tells something about the sweep as a whole.

        Args:
            text: one line.
        """
        if self.live is not None:
            self.live.console.print(text, highlight=False)
        else:
            print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Called by Ray Tune with every report of a trial.

        Args:
            iteration: of Tune's loop.
            trials: all.
            trial: that reported.
            result: what it reported.
            **info: more, unused.
        """
        name = str(result["config"]["candidate"])
        if result.get("phase") == "refused":
            self.refusals[name] = str(result["error"])
        self.update(name, result)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called by Ray Tune when a trial failed for good, or is about to be started again.

        Args:
            iteration: of Tune's loop.
            trials: all.
            trial: that failed.
            **info: more, unused.
        """
        self.rows[str(trial.config["candidate"])].text = "failed; see the messages below"

    def update(self, name: str, result: dict[str, Any]) -> None:
        """Notes a report and shows it.

        Args:
            name: of the candidate.
            result: what its trial reported.
        """
        row = self.rows[name]
        before, row.phase = row.phase, str(result.get("phase", row.phase))
        row.text, row.share = self._describe(row, result)
        if self.live is not None:
            return  # it draws itself
        if row.phase != before or row.phase == "found" or time.time() - row.line_at > LINE_EVERY_S:
            row.line_at = time.time()
            left = self.time_left()
            print(f"{time.strftime('%H:%M:%S')} {name:<{self.width}}  {row.text}{left and f'  ({left})'}", flush=True)

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

    def _describe(self, row: Row, result: dict[str, Any]) -> tuple[str, float]:
        phase, share = result.get("phase"), TRAIN_SHARE if row.work == 1.0 else 0.0
        if phase == "found":
            found_model = result["what"] == "model"
            return f"found in storage: {result['what']}", share if found_model else 1.0
        if phase == "waiting":
            return f"waiting for {result['holder']}, which is working on the same", row.share
        if phase == "starting":
            return "starting training workers", 0.01
        if phase == "train":
            done = (result["stage"] - 1 + result["step"] / result["steps"]) / 2
            at = f"step {result['step']} of {result['steps']}"
            return f"training stage {result['stage']}: {at}, loss {result['loss']:.3f}", share * done
        if phase == "attack":
            if not result["parts"]:
                return f"attacking: {result['of']} parts to do", row.share
            text = (
                f"attacking: part {result['parts']} of {result['of']} "
                f"({result['benchmark']} at {result['epsilon']:g}/255: mean score {result['mean']:.1f})"
            )
            return text, share + (1 - share) * result["parts"] / result["of"]
        if phase == "done":
            return f"done: clean {result['clean']:.1f}, at the largest budget {result['robust']:.1f}", 1.0
        if phase == "refused":
            return f"refused: {result['error']}", row.share
        return row.text, row.share

    def _table(self) -> Table:
        minutes, seconds = divmod(int(time.time() - self.started), 60)
        table = Table(title=f"{minutes}:{seconds:02d} {self.time_left()}", title_justify="left", box=None)
        table.add_column("candidate")
        table.add_column("")
        table.add_column("now")
        for name, row in self.rows.items():
            table.add_row(name, f"{100 * row.share:3.0f} %", row.text)
        return table
