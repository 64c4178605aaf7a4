"""The smallest budget at which each sample is beaten, by bisection over a ladder of budgets.

Attacks of minimal norm (DeepFool, FAB, FMN, Brendel & Bethge's) follow the boundary of a margin that can be
differentiated. Whether an answer that is generated word by word still scores has none, so the attacks stay what they
are at one budget, rounds that raise a loss, and the budget is searched for around them:

1. All rounds at the largest budget. Who stands there is not beaten at all.
2. Bisection downwards, by what is cheap: the image that beat the sample, projected into the smaller budget, is
   answered (no gradient step); if it has lost its grip, the round that found it goes on from it, against the same text.
3. Where that ends, all rounds one rung below, as they would be run at that budget alone. Who is beaten there goes on
   with 2; else the search is over.

So the budget found has an image that shows it, and one rung below the whole protocol has failed. A sample pays for one
or two failures of all rounds, where a list of fixed budgets pays for one at each that it withstands. What all rounds
would find two or more rungs below a failure is not looked for: an attack that fails in a budget and succeeds in a
smaller one has missed a point that it was allowed.

Shapes: B samples, C channel, H/W image.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from rllava.attacks.engine import AnswerLoss, Attacked, Engine, Judge
from rllava.attacks.memory import Batches
from rllava.attacks.outcome import GRID, Outcome
from rllava.attacks.rounds import LARGER, Round

BELOW_PROOF = 3
"""Rungs that the cheap rounds try below one at which they had failed and all rounds have not: the new image is rarely
much nearer, and each failure costs steps. Below these, all rounds have their turn again."""

SHORTER = 4
"""Of a round that goes on from the image of a larger budget, one step in so many is left: it begins beside the goal."""

Stage = Literal["largest", "descent", "proof", "done"]


def ladder(smallest: float, largest: float, per_octave: int) -> tuple[float, ...]:
    """Budgets from the largest downwards, each smaller by the same factor, rounded down to the grid of scored images.

    Args:
        smallest: in 1/255; none is below it.
        per_octave: how many there are to a factor of two.

    Returns:
        Rising; two of them are never equal.
    """
    found, number = {largest}, 1
    while (value := largest * 2 ** (-number / per_octave)) >= smallest * (1 - 1e-9):
        found.add(int(value * GRID + 1e-6) / GRID)
        number += 1
    return tuple(sorted(found - {0.0}))


@dataclass
class Descent:
    """What is known of one sample.

    Attributes:
        prediction: answer to the image; so the score.
        image_CHW: the one that beat it at :attr:`rung`; where none did, its worst at the largest budget.
        stage: what is tried next.
        rung: number of the smallest budget at which it was beaten; None: at none so far.
        failed: number of the largest budget below that at which the cheap rounds have failed since; -1: none.
        via: number of the round that beat it first, or last of all rounds at one budget.
        text: that this round attacked; None: visual tokens.
        best_round: name of the round that found the image, ``"clean"`` where none helped.
        rounds: names of all rounds, in order; so the next three.
        rungs: number of the budget of each.
        forwards: forward passes, answers left out.
        steps: gradient steps.
        zero_gradients: share of exactly zero gradient entries, summed over steps.
        error: why the rounds that prove the sample not beaten broke off, or None.
    """

    prediction: str
    score: float
    image_CHW: Tensor
    stage: Stage = "largest"
    rung: int | None = None
    failed: int = -1
    via: int = 0
    text: str | None = None
    best_round: str = "clean"
    rounds: list[str] = field(default_factory=list)
    rungs: list[int] = field(default_factory=list)
    round_predictions: list[str | None] = field(default_factory=list)
    round_scores: list[float | None] = field(default_factory=list)
    forwards: int = 0
    steps: int = 0
    zero_gradients: float = 0.0
    error: str | None = None

    @property
    def zero_gradient_share(self) -> float | None:
        """Mean share of exactly zero gradient entries; None if there was no step."""
        return self.zero_gradients / self.steps if self.steps else None

    def probe(self, rungs: int) -> int:
        """Number of the budget that is tried next.

        Args:
            rungs: how many budgets there are.
        """
        if self.rung is None:
            return rungs - 1
        return self.rung - 1 if self.stage == "proof" else (self.failed + self.rung) // 2  # of who is done, any

    def note(self, outcome: Outcome, probe: int, beaten: bool, names: Sequence[str]) -> None:
        """Takes in what rounds at a budget did, and decides what is next.

        Args:
            probe: number of that budget.
            names: of the protocol's rounds.
        """
        self.rounds += outcome.rounds
        self.rungs += [probe] * len(outcome.rounds)
        self.round_predictions += outcome.round_predictions
        self.round_scores += outcome.round_scores
        self.forwards += outcome.forwards
        self.steps += outcome.steps
        self.zero_gradients += outcome.zero_gradients
        if beaten or self.stage == "largest":
            self.prediction, self.score, self.image_CHW = outcome.prediction, outcome.score, outcome.image_CHW
            self.best_round = outcome.best_round
        if beaten:
            if self.stage != "descent":
                self.failed = -1 if self.stage == "largest" else max(-1, probe - 1 - BELOW_PROOF)
                self.via = names.index(outcome.best_round)
                self.text = None if outcome.evidence is None else outcome.evidence.text
            self.rung = probe
        elif self.stage == "descent":
            self.failed = probe
        else:
            self.stage, self.error = "done", outcome.error
            return
        self.stage = "done" if self.rung == 0 else "proof" if self.rung == self.failed + 1 else "descent"

    def state_dict(self) -> dict[str, Any]:
        """All of it as tensors, numbers and text; the clean image is left out."""
        state = {name: list(value) if isinstance(value, list) else value for name, value in self.__dict__.items()}
        return state | ({"image_CHW": None} if self.best_round == "clean" else {})

    @classmethod
    def from_state(cls, state: Mapping[str, Any], clean_CHW: Tensor) -> "Descent":
        """From what :meth:`state_dict` gave."""
        found = cls(**state)
        found.image_CHW = clean_CHW if state["image_CHW"] is None else state["image_CHW"].to(clean_CHW.device)
        return found


class SmallestBudgets:
    """A protocol's rounds over some samples, each at the budgets that its own search wants.

    The searches go on together: what every sample tries next is one run of an engine, which keeps as many in flight as
    fit. No sample sees another's budget. Plain data between two looks, as the engine's.

    Args:
        rounds: of the protocol; they start from no other evaluation's images.
        attacked: with the scores below which a sample is beaten (``floors``). Samples whose clean score is are not
            attacked: their :attr:`Descent.stage` is ``"done"`` from the start.
        budgets: in 1/255, rising.
        answer_loss: see :class:`rllava.attacks.engine.Engine`; so the others.
        dropped: whether a sample is beaten at a score, whatever its floor.
    """

    def __init__(
        self,
        rounds: Sequence[Round],
        attacked: Attacked,
        *,
        budgets: Sequence[float],
        answer_loss: AnswerLoss,
        judge: Judge,
        dropped: Callable[[float], bool],
        in_flight: int,
        batches: Batches | None = None,
    ) -> None:
        self.names = [entry.name for entry in rounds]
        self.rounds = (*rounds, *(cheap for entry in rounds for cheap in (projected(entry), warm(entry))))
        self.attacked, self.budgets = attacked, tuple(budgets)
        self.answer_loss, self.judge, self.dropped = answer_loss, judge, dropped
        self.in_flight, self.batches = in_flight, batches or Batches(in_flight)
        self.searches = [
            Descent(*clean) for clean in zip(attacked.predictions, attacked.scores, attacked.images_BCHW, strict=True)
        ]
        self.largest: list[Outcome] = []
        self.engine: Engine | None = None
        everybody = self._new_engine()
        for b, search in enumerate(self.searches):
            if everybody.is_dropped(b, search.score):
                search.stage = "done"

    def run(self, save: Callable[[dict[str, Any]], None] | None = None, every_s: float = 60.0) -> list[Descent]:
        """Searches until nothing is left to do.

        Args:
            save: given :meth:`state_dict` now and then.
            every_s: seconds between two states; 0 saves after every look.
        """
        saved = time.monotonic()

        def keep(engine: dict[str, Any]) -> None:
            nonlocal saved
            assert save is not None
            save(self._state_with(engine))
            saved = time.monotonic()

        while any(search.stage != "done" for search in self.searches):
            self.engine = self.engine or self._new_engine()
            self.engine.run(None if save is None else keep, every_s, saved)
            self._take_in(self.engine)
            self.engine = None
        return self.searches

    def state_dict(self) -> dict[str, Any]:
        """All that is known and in flight, as tensors, numbers and text."""
        return self._state_with(None if self.engine is None else self.engine.state_dict())

    def _state_with(self, engine: dict[str, Any] | None) -> dict[str, Any]:
        return {
            "searches": [search.state_dict() for search in self.searches],
            "largest": [outcome.state_dict() for outcome in self.largest],
            "engine": engine,
            "limit": self.batches.limit,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where another search of the same arguments was.

        Args:
            state: from its :meth:`state_dict`.
        """
        images_BCHW = self.attacked.images_BCHW
        pairs = list(zip(state["searches"], images_BCHW, strict=True))
        self.searches = [Descent.from_state(saved, clean_CHW) for saved, clean_CHW in pairs]
        self.largest = []
        for saved, clean_CHW in zip(state["largest"], images_BCHW, strict=False):  # none before its end
            self.largest.append(Outcome("", 0.0, clean_CHW))
            self.largest[-1].load_state_dict(saved, clean_CHW)
        self.batches.limit = min(self.batches.limit, int(state["limit"]))
        self.engine = None
        if state["engine"] is not None:
            self.engine = self._new_engine()
            self.engine.load_state_dict(state["engine"])

    def _new_engine(self) -> Engine:
        """What every sample tries next."""
        images_BCHW = torch.stack([search.image_CHW for search in self.searches])
        texts = {b: search.text for b, search in enumerate(self.searches) if search.text is not None}
        budgets = [self.budgets[search.probe(len(self.budgets))] for search in self.searches]
        return Engine(
            self.rounds,
            replace(self.attacked, others={LARGER: images_BCHW}, texts=texts),
            epsilon=budgets,
            answer_loss=self.answer_loss,
            judge=self.judge,
            dropped=self.dropped,
            in_flight=self.in_flight,
            batches=self.batches,
            takes=[self._takes(search) for search in self.searches],
        )

    def _takes(self, search: Descent) -> Collection[int]:
        count = len(self.names)
        if search.stage == "done":
            return ()
        return range(count) if search.stage != "descent" else (count + 2 * search.via, count + 2 * search.via + 1)

    def _take_in(self, engine: Engine) -> None:
        for b, (search, outcome) in enumerate(zip(self.searches, engine.outcomes, strict=True)):
            if search.stage != "done":
                beaten = engine.is_dropped(b, outcome.score)
                search.note(outcome, search.probe(len(self.budgets)), beaten, self.names)
        if not self.largest:
            self.largest = engine.outcomes


def projected(entry: Round) -> Round:
    """A round that answers the image of a larger budget, projected into the one at hand, and takes no step."""
    return replace(
        entry, name=f"{entry.name}-projected", steps=0, start=LARGER, width=1.0, judged=True, answers=(), gives_up=None
    )


def warm(entry: Round) -> Round:
    """A round that goes on from the image of a larger budget; points on the way are answered, so that it may end."""
    steps = -(-entry.steps // SHORTER)
    answers = {*(step for step in entry.answers if step < steps), steps // 2} - {0}
    return replace(
        entry, name=f"{entry.name}-warm", steps=steps, start=LARGER, width=1.0, judged=True,
        answers=tuple(sorted(answers)), gives_up=None,
    )  # fmt: skip
