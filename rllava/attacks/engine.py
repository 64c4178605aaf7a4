"""The engine: runs a protocol over many samples, as many at a time as fit; whose attack ends makes place for the next.

The samples in flight may be in different rounds and at different steps. Each look at their points is one batch. What
the engine holds between two looks is plain data: :meth:`Engine.state_dict` at any moment, loaded into a new engine,
goes on to the same results, bit by bit on a CPU.

Knows neither LLaVA nor metric: it is given a loss per (sample, text, precision) and a judge that answers and scores.

Shapes: B all samples, L samples in flight, N some of them, C channel, H/W image.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rllava.attacks.apgd import Lanes, absorb, enter, move
from rllava.attacks.common import PIXEL, Look, loss_and_gradient, loss_only, project, start_point
from rllava.attacks.memory import Batches
from rllava.attacks.outcome import Evidence, Outcome, snap
from rllava.attacks.protocols import Round


class Task(NamedTuple):
    """Whose loss is wanted: that of ``text`` as the answer of sample ``sample``."""

    sample: int
    text: str


AnswerLoss = Callable[[Tensor, Sequence[Task], str], Tensor]
"""``loss(pixels_NCHW, tasks, precision) -> loss_N``: cross-entropy of each task's text for its pixels. Rounds maximise
it, targeted ones minimise it."""

Judge = Callable[[Tensor, Sequence[int], str], tuple[list[str], list[float]]]
"""``judge(images_NCHW, samples, precision) -> answers, scores`` of those samples."""

Decoys = Callable[[int, Tensor], Sequence[str]]
"""``decoys(sample, image_CHW)``: wrong answers to aim at from an image, the most promising first."""


@dataclass(frozen=True)
class Victims:
    """What is attacked.

    Attributes:
        images_BCHW: clean images, float32 in [0, 1], multiples of 1/255.
        labels: per sample, the texts whose loss untargeted rounds maximise.
        predictions: clean answers.
        scores: their scores.
        seeds: one per sample, of whatever is random.
        decoys: wrong answers of a sample, for rounds that aim at them; None where no round does.
        others: images that attacks on other models found, by name; where a sample has none, the clean image.
    """

    images_BCHW: Tensor
    labels: Sequence[Sequence[str]]
    predictions: Sequence[str]
    scores: Sequence[float]
    seeds: Sequence[int]
    decoys: Decoys | None = None
    others: Mapping[str, Tensor] | None = None


@dataclass
class _Place:
    """A place in flight: which sample, in which round, whose text, how many looks are done, the worst answer so far."""

    sample: int
    round: int
    text: str
    looks: int = 0
    worst: tuple[str, float, Tensor] | None = None

    @property
    def steps(self) -> int:
        """Gradient steps taken."""
        return self.looks - 1


class Engine:
    """A protocol's rounds over some samples at one budget.

    A round may only lower a sample's score. A sample whose score in a round (or on the clean image) is dropped takes
    no part in later rounds; neither does one that lacks the round's label. Samples start in order. Between two rounds
    of the same precision a sample keeps its place; the precisions follow one another as in the protocol.

    Args:
        rounds: of the protocol.
        victims: what is attacked.
        epsilon: budget in 1/255.
        answer_loss: see :data:`AnswerLoss`.
        judge: see :data:`Judge`.
        dropped: whether nothing is left to attack at a score.
        places: most samples in flight.
        batches: splits looks that do not fit into memory; by default one that starts at ``places``.
    """

    def __init__(
        self,
        rounds: Sequence[Round],
        victims: Victims,
        *,
        epsilon: float,
        answer_loss: AnswerLoss,
        judge: Judge,
        dropped: Callable[[float], bool],
        places: int,
        batches: Batches | None = None,
    ) -> None:
        assert places >= 1
        self.rounds, self.victims, self.epsilon = tuple(rounds), victims, epsilon
        self.answer_loss, self.judge, self.dropped, self.most = answer_loss, judge, dropped, places
        self.batches = batches or Batches(places)
        self.columns = max((entry.steps for entry in self.rounds), default=0)
        self.outcomes = [
            Outcome(answer, score, image_CHW)
            for answer, score, image_CHW in zip(victims.predictions, victims.scores, victims.images_BCHW, strict=True)
        ]
        self.decoys: dict[int, tuple[str, list[str]]] = {}  # per sample: from which round's image, and which texts
        self.precisions = tuple(dict.fromkeys(entry.precision for entry in self.rounds))
        self.precision = self.precisions[0] if self.precisions else "float32"
        self.waiting: dict[str, list[tuple[int, int]]] = {precision: [] for precision in self.precisions}
        for sample, score in enumerate(victims.scores):
            if not dropped(score):
                self._enqueue(sample, 0)
        self.places: list[_Place] = []
        self.lanes: Lanes | None = None

    def run(self, save: Callable[[dict[str, Any]], None] | None = None, every_s: float = 60.0) -> list[Outcome]:
        """Attacks until nothing is left to do.

        Args:
            save: given :meth:`state_dict` now and then.
            every_s: seconds between two states; 0 saves after every look.

        Returns:
            One outcome per sample.
        """
        saved = time.monotonic()
        while self._fill():
            self._look()
            if save is not None and time.monotonic() - saved >= every_s:
                save(self.state_dict())
                saved = time.monotonic()
        return self.outcomes

    def state_dict(self) -> dict[str, Any]:
        """All that is in flight, as tensors, numbers and text (``torch.load(weights_only=True)`` reads it).

        Returns:
            The state between two looks; it stays as it is when the engine goes on.
        """
        return {
            "outcomes": [outcome.state_dict() for outcome in self.outcomes],
            "decoys": {sample: [origin, list(texts)] for sample, (origin, texts) in self.decoys.items()},
            "precision": self.precision,
            "waiting": {precision: [list(pair) for pair in queue] for precision, queue in self.waiting.items()},
            "places": [list(vars(place).values()) for place in self.places],
            "lanes": None if self.lanes is None else {k: v.clone() for k, v in self.lanes.tensors().items()},
            "limit": self.batches.limit,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where another engine of the same arguments was, if need be in smaller batches.

        Args:
            state: from its :meth:`state_dict`.
        """
        images_BCHW = self.victims.images_BCHW
        for outcome, image_CHW, saved in zip(self.outcomes, images_BCHW, state["outcomes"], strict=True):
            outcome.load_state_dict(saved, image_CHW)
        self.decoys = {sample: (origin, list(texts)) for sample, (origin, texts) in state["decoys"].items()}
        self.precision = state["precision"]
        self.waiting = {precision: [(s, r) for s, r in queue] for precision, queue in state["waiting"].items()}
        self.places = [_place(fields, images_BCHW.device) for fields in state["places"]]
        lanes = state["lanes"]
        self.lanes = None if lanes is None else Lanes(**{k: v.to(images_BCHW.device).clone() for k, v in lanes.items()})
        self.batches.limit = min(self.batches.limit, int(state["limit"]))

    def _fill(self) -> bool:
        """Gives free places to those who wait; False when nobody is left."""
        if not self.places and not self.waiting.get(self.precision):
            self.precision = next((p for p in self.precisions if self.waiting[p]), self.precision)
        queue = self.waiting.get(self.precision, [])
        starting: list[_Place] = []
        while queue and len(self.places) + len(starting) < self.most:
            sample, index = queue.pop(0)
            text = self._text(sample, index)
            assert text is not None
            starting.append(_Place(sample, index, text))
        self._start(starting)
        return bool(self.places)

    def _start(self, starting: list[_Place]) -> None:
        if not starting:
            return
        samples = [place.sample for place in starting]
        rounds = [self.rounds[place.round] for place in starting]
        clean_NCHW = self.victims.images_BCHW[samples]
        points = [self._start_point(place) for place in starting]
        lanes = enter(
            clean_NCHW,
            torch.stack(points),
            epsilon=[self.epsilon * entry.width for entry in rounds],
            steps=[entry.steps for entry in rounds],
            step_size=[entry.step_size for entry in rounds],
            columns=self.columns,
        )
        self.lanes = lanes if self.lanes is None or not self.places else self.lanes.join(lanes)
        self.places += starting

    def _start_point(self, place: _Place) -> Tensor:
        entry, sample = self.rounds[place.round], place.sample
        clean_1CHW, outcome = self.victims.images_BCHW[sample][None], self.outcomes[sample]
        budget = self.epsilon * entry.width
        if entry.start == "random":
            seed = self.victims.seeds[sample] * 1_000_003 + place.round
            return start_point("random", clean_1CHW, budget, [seed])[0]
        image_CHW = clean_1CHW[0]
        if entry.start == "best":
            image_CHW = outcome.image_CHW
        elif entry.start == "previous" and outcome.previous_CHW is not None:
            image_CHW = outcome.previous_CHW
        elif entry.start.startswith("other:") and self.victims.others is not None:
            image_CHW = self.victims.others[entry.start.removeprefix("other:")][sample].to(clean_1CHW)
        return project(image_CHW[None], clean_1CHW, budget)[0]

    def _look(self) -> None:
        """One look of every sample in flight, one step of those that are not done, a verdict on those that are."""
        assert self.lanes is not None
        last = [place.looks == self.rounds[place.round].steps for place in self.places]
        looks: list[Look] = []
        order: list[int] = []
        # The last point of a round needs no gradient: no step follows.
        for rows, gradient in ((_where(last, False), True), (_where(last, True), False)):
            looks += self.batches.run(lambda part, gradient=gradient: self._look_at(part, gradient), rows)  # type: ignore[misc]
            order += rows
        back = torch.tensor(order, device=self.lanes.clean_LCHW.device).argsort()
        absorb(self.lanes, Look(*(torch.cat(parts)[back] for parts in zip(*looks, strict=True))))
        for place in self.places:
            place.looks += 1
        leaving = self._answer()
        going_on = self._finish(leaving) if leaving else []
        if self.places:
            move(self.lanes)
        self._start(going_on)

    def _look_at(self, rows: Sequence[int], gradient: bool) -> Look:
        assert self.lanes is not None
        tasks = [Task(self.places[row].sample, self.places[row].text) for row in rows]
        signs = [-1.0 if self.rounds[self.places[row].round].targeted else 1.0 for row in rows]
        points_NCHW = self.lanes.point_LCHW[torch.tensor(rows, device=self.lanes.point_LCHW.device)]
        sign_N = torch.tensor(signs, device=points_NCHW.device)

        def loss(pixels_NCHW: Tensor, index_N: Tensor) -> Tensor:
            return sign_N * self.answer_loss(pixels_NCHW, tasks, self.precision)

        return (loss_and_gradient if gradient else loss_only)(loss, points_NCHW, torch.arange(len(rows)))

    def _answer(self) -> list[int]:
        """Answers the points and images that are due; which rows are done, or hold a sample that is dropped."""
        assert self.lanes is not None
        done, due, images = [], [], []
        for row, place in enumerate(self.places):
            entry = self.rounds[place.round]
            if place.steps == entry.steps:
                done.append(row)
            if place.steps == entry.steps and entry.judged:
                due.append(row)
                images.append(self.lanes.best_LCHW[row])
            elif place.steps in entry.answers:
                due.append(row)
                images.append(self.lanes.point_LCHW[row])
        if not due:
            return done
        clean_NCHW = self.victims.images_BCHW[[self.places[row].sample for row in due]]
        images_NCHW = snap(torch.stack(images), clean_NCHW, self.epsilon)
        assert within(images_NCHW, clean_NCHW, self.epsilon), "an attack left its budget"
        for verdicts in self.batches.run(lambda part: self._judge(images_NCHW, due, part), range(len(due))):
            for n, answer, score in verdicts:
                place = self.places[due[n]]
                if place.worst is None or score < place.worst[1]:
                    place.worst = (answer, score, images_NCHW[n].clone())  # a view would keep the whole batch alive
        dropped = [row for row in due if self.dropped(self.places[row].worst[1])]  # type: ignore[index]
        return sorted({*done, *dropped})

    def _judge(self, images_NCHW: Tensor, rows: Sequence[int], part: Sequence[int]) -> list[tuple[int, str, float]]:
        samples = [self.places[rows[n]].sample for n in part]
        answers, scores = self.judge(images_NCHW[list(part)], samples, self.precision)
        return list(zip(part, answers, scores, strict=True))

    def _finish(self, rows: list[int]) -> list[_Place]:
        """Notes what the attacks in some rows found and frees them; which rounds of this precision follow at once."""
        assert self.lanes is not None
        going_on: list[_Place] = []
        for row in rows:
            place = self.places[row]
            entry, outcome = self.rounds[place.round], self.outcomes[place.sample]
            evidence = Evidence.of(self.lanes, row, entry, place.text, place.steps)
            if place.worst is None:
                outcome.note(entry, evidence, evidence.best_CHW, None)
            else:
                answer, score, image_CHW = place.worst
                outcome.note(entry, evidence, image_CHW, (answer, score))
                if self.dropped(score):
                    continue
            if entry.gives_up is not None and bool((evidence.loss_S < entry.gives_up).all()):
                continue
            following = self._enqueue(place.sample, place.round + 1, keep=True)
            if following is not None:
                going_on.append(following)
        staying = [row for row in range(len(self.places)) if row not in set(rows)]
        self.lanes = self.lanes.rows(staying)
        self.places = [self.places[row] for row in staying]
        return going_on

    def _enqueue(self, sample: int, index: int, keep: bool = False) -> _Place | None:
        """Sends a sample to its next round from ``index`` on, if there is one.

        With ``keep``, a round of the running precision is handed back at once instead of waiting in the queue.
        """
        for following in range(index, len(self.rounds)):
            text = self._text(sample, following)
            if text is None:
                continue
            if keep and self.rounds[following].precision == self.precision:
                return _Place(sample, following, text)
            self.waiting[self.rounds[following].precision].append((sample, following))
            return None
        return None

    def _text(self, sample: int, index: int) -> str | None:
        """The text a round attacks of a sample; None where the sample has none and skips the round."""
        entry, outcome, labels = self.rounds[index], self.outcomes[sample], self.victims.labels[sample]
        if entry.start.startswith("other:") and entry.start.removeprefix("other:") not in (self.victims.others or {}):
            return None
        if isinstance(entry.label, int):
            return labels[entry.label] if entry.label < len(labels) else None
        if entry.target is not None:
            return entry.target
        if entry.label == "best":
            return labels[outcome.label or 0] if labels else None
        if entry.label == "answer":
            return outcome.prediction or next(iter(labels), None)
        assert entry.decoy is not None
        assert self.victims.decoys is not None
        if sample not in self.decoys or self.decoys[sample][0] != outcome.best_round:
            texts = self.victims.decoys(sample, outcome.image_CHW)
            self.decoys[sample] = (outcome.best_round, [text for text in texts if text != outcome.prediction])
        _, texts = self.decoys[sample]
        return texts[entry.decoy] if entry.decoy < len(texts) else None


def _place(fields: Sequence[Any], device: torch.device) -> _Place:
    sample, index, text, looks, worst = fields
    return _Place(sample, index, text, looks, None if worst is None else (worst[0], worst[1], worst[2].to(device)))


def _where(flags: Sequence[bool], value: bool) -> list[int]:
    return [row for row, flag in enumerate(flags) if flag == value]


def within(images_BCHW: Tensor, clean_BCHW: Tensor, epsilon: float) -> bool:
    """Whether the promise every attack makes is kept.

    Args:
        images_BCHW: attacked.
        clean_BCHW: clean.
        epsilon: budget in 1/255.

    Returns:
        True if no pixel left the budget by more than rounding.
    """
    return float((images_BCHW - clean_BCHW).abs().max()) / PIXEL <= epsilon + 1e-3
