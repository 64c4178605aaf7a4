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

from rllava.attacks.common import PIXEL, Look, Norm, l2_norm, loss_and_gradient, loss_only, project, start_point
from rllava.attacks.memory import Batches
from rllava.attacks.outcome import Evidence, Outcome, snap
from rllava.attacks.rounds import Round, Start
from rllava.attacks.stepper import ATTACKS, Entering, Lanes


class Task(NamedTuple):
    """Whose loss is wanted: that of ``text`` as the answer of sample ``sample``; None: of its visual tokens."""

    sample: int
    text: str | None


AnswerLoss = Callable[[Tensor, Sequence[Task], str], Tensor]
"""``loss(pixels_NCHW, tasks, precision) -> loss_N``: cross-entropy of each task's text for its pixels; or, of tasks
without text, which come among themselves, how far the visual tokens are from the clean image's. Rounds maximise it,
targeted ones minimise it."""

Judge = Callable[[Tensor, Sequence[int], str], tuple[list[str], list[float]]]
"""``judge(images_NCHW, samples, precision) -> answers, scores`` of those samples."""

Decoys = Callable[[int, Tensor], Sequence[str]]
"""``decoys(sample, image_CHW)``: wrong answers to aim at from an image, the most promising first."""


@dataclass(frozen=True)
class Samples:
    """What is attacked.

    Attributes:
        images_BCHW: clean images, float32 in [0, 1], multiples of 1/255.
        labels: per sample, the texts whose loss untargeted rounds maximise.
        seeds: one per sample, of whatever is random.
        decoys: wrong answers of a sample, for rounds that aim at them; None where no round does.
        others: images that other evaluations found, by the start that they are; where a sample has none, the clean
            image.
    """

    images_BCHW: Tensor
    labels: Sequence[Sequence[str]]
    predictions: Sequence[str]
    scores: Sequence[float]
    seeds: Sequence[int]
    decoys: Decoys | None = None
    others: Mapping[Start, Tensor] | None = None


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
    of one kind (:attr:`rllava.attacks.rounds.Round.kind`) a sample keeps its place; kinds follow one another as in the
    protocol.

    Args:
        epsilon: budget in 1/255.
        answer_loss: see :data:`AnswerLoss`.
        judge: see :data:`Judge`.
        dropped: whether nothing is left to attack at a score.
        batches: splits looks that do not fit into memory; by default one that starts at ``places``.

    Raises:
        ValueError: if an attack of a round does not keep budgets of that norm.
    """

    def __init__(
        self,
        rounds: Sequence[Round],
        samples: Samples,
        *,
        epsilon: float,
        answer_loss: AnswerLoss,
        judge: Judge,
        dropped: Callable[[float], bool],
        places: int,
        batches: Batches | None = None,
        norm: Norm = "linf",
    ) -> None:
        assert places >= 1
        for entry in rounds:
            if norm not in ATTACKS.get(entry.attack).norms:
                raise ValueError(f"round {entry.name}: attack {entry.attack} keeps no {norm} budget")
        self.rounds, self.samples, self.epsilon = tuple(rounds), samples, epsilon
        self.answer_loss, self.judge, self.dropped, self.most = answer_loss, judge, dropped, places
        self.batches, self.norm = batches or Batches(places), norm
        self.columns = max((entry.steps for entry in self.rounds), default=0)
        self.outcomes = [
            Outcome(answer, score, image_CHW)
            for answer, score, image_CHW in zip(samples.predictions, samples.scores, samples.images_BCHW, strict=True)
        ]
        self.decoys: dict[int, tuple[str, list[str]]] = {}  # per sample: from which round's image, and which texts
        self.kinds = tuple(dict.fromkeys(entry.kind for entry in self.rounds))
        self.kind = self.kinds[0] if self.kinds else ("float32", "apgd", False)
        self.waiting: dict[tuple[str, str, bool], list[tuple[int, int]]] = {kind: [] for kind in self.kinds}
        for sample, score in enumerate(samples.scores):
            if not dropped(score):
                self._enqueue(sample, 0)
        self.places: list[_Place] = []
        self.lanes: Lanes | None = None

    def run(self, save: Callable[[dict[str, Any]], None] | None = None, every_s: float = 60.0) -> list[Outcome]:
        """Attacks until nothing is left to do.

        Args:
            save: given :meth:`state_dict` now and then.
            every_s: seconds between two states; 0 saves after every look.
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
            "kind": list(self.kind),
            "waiting": [[list(kind), [list(pair) for pair in queue]] for kind, queue in self.waiting.items()],
            "places": [list(vars(place).values()) for place in self.places],
            "lanes": None if self.lanes is None else {k: v.clone() for k, v in self.lanes.tensors().items()},
            "limit": self.batches.limit,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where another engine of the same arguments was, if need be in smaller batches.

        Args:
            state: from its :meth:`state_dict`.
        """
        images_BCHW = self.samples.images_BCHW
        for outcome, image_CHW, saved in zip(self.outcomes, images_BCHW, state["outcomes"], strict=True):
            outcome.load_state_dict(saved, image_CHW)
        self.decoys = {sample: (origin, list(texts)) for sample, (origin, texts) in state["decoys"].items()}
        self.kind = tuple(state["kind"])
        self.waiting = {tuple(kind): [(s, r) for s, r in queue] for kind, queue in state["waiting"]}
        self.places = [_place(fields, images_BCHW.device) for fields in state["places"]]
        self.lanes = None
        if state["lanes"] is not None:
            tensors = {name: value.to(images_BCHW.device).clone() for name, value in state["lanes"].items()}
            self.lanes = self.attack(norm=self.norm, **tensors)
        self.batches.limit = min(self.batches.limit, int(state["limit"]))

    @property
    def precision(self) -> str:
        """Of the model that is attacked at the moment."""
        return self.kind[0]

    @property
    def attack(self) -> type[Lanes]:
        """By which it is."""
        return ATTACKS.get(self.kind[1])

    def _fill(self) -> bool:
        """Gives free places to those who wait; False when nobody is left."""
        if not self.places and not self.waiting.get(self.kind):
            self.kind = next((kind for kind in self.kinds if self.waiting[kind]), self.kind)
        queue = self.waiting.get(self.kind, [])
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
        clean_NCHW = self.samples.images_BCHW[samples]
        points = [self._start_point(place) for place in starting]
        budgets = [self.epsilon * entry.width for entry in rounds]
        lanes = self.attack.enter(
            Entering(
                clean_NCHW,
                torch.stack(points),
                budgets,
                [entry.steps for entry in rounds],
                [entry.step_size / (e if entry.absolute else 1) for entry, e in zip(rounds, budgets, strict=True)],
                seeds=[self._seed(place) for place in starting],
                columns=self.columns,
                norm=self.norm,
            )
        )
        self.lanes = lanes if self.lanes is None or not self.places else self.lanes.join(lanes)
        self.places += starting

    def _start_point(self, place: _Place) -> Tensor:
        entry, sample = self.rounds[place.round], place.sample
        clean_1CHW, outcome = self.samples.images_BCHW[sample][None], self.outcomes[sample]
        budget = self.epsilon * entry.width
        if entry.start.at == "random":
            return start_point("random", clean_1CHW, budget, [self._seed(place)], self.norm)[0]
        image_CHW = clean_1CHW[0]
        if entry.start.at == "best":
            image_CHW = outcome.image_CHW
        elif entry.start.at == "previous" and outcome.previous_CHW is not None:
            image_CHW = outcome.previous_CHW
        elif entry.start.found and self.samples.others is not None:
            image_CHW = self.samples.others[entry.start][sample].to(clean_1CHW)
        return project(image_CHW[None], clean_1CHW, budget, self.norm)[0]

    def _seed(self, place: _Place) -> int:
        return self.samples.seeds[place.sample] * 1_000_003 + place.round

    def _look(self) -> None:
        """One look of every sample in flight, one step of those that are not done, a verdict on those that are."""
        assert self.lanes is not None
        last = [place.looks == self.rounds[place.round].steps for place in self.places]
        looks: list[Look] = []
        order: list[int] = []
        # The last point of a round needs no gradient: no step follows.
        for rows, gradient in ((_where(last, False), self.attack.gradients), (_where(last, True), False)):
            looks += self.batches.run(lambda part, gradient=gradient: self._look_at(part, gradient), rows)  # type: ignore[misc]
            order += rows
        back = torch.tensor(order, device=self.lanes.clean_LCHW.device).argsort()
        self.lanes.absorb(Look(*(torch.cat(parts)[back] for parts in zip(*looks, strict=True))))
        for place in self.places:
            place.looks += 1
        leaving = self._answer()
        going_on = self._finish(leaving) if leaving else []
        if self.places:
            self.lanes.move()
        self._start(going_on)

    def _look_at(self, rows: Sequence[int], gradient: bool) -> Look:
        assert self.lanes is not None
        _, _, at_tokens = self.kind
        tasks = [Task(self.places[row].sample, None if at_tokens else self.places[row].text) for row in rows]
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
        clean_NCHW = self.samples.images_BCHW[[self.places[row].sample for row in due]]
        images_NCHW = snap(torch.stack(images), clean_NCHW, self.epsilon, self.norm)
        assert within(images_NCHW, clean_NCHW, self.epsilon, self.norm), "an attack left its budget"
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
        """Notes what the attacks in some rows found and frees them; which rounds of this kind follow at once."""
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

        With ``keep``, a round of the running kind is handed back at once instead of waiting in the queue.
        """
        for following in range(index, len(self.rounds)):
            text = self._text(sample, following)
            if text is None:
                continue
            if keep and self.rounds[following].kind == self.kind:
                return _Place(sample, following, text)
            self.waiting[self.rounds[following].kind].append((sample, following))
            return None
        return None

    def _text(self, sample: int, index: int) -> str | None:
        """The text a round attacks of a sample; None where the sample has none and skips the round."""
        entry, outcome, labels = self.rounds[index], self.outcomes[sample], self.samples.labels[sample]
        label = entry.label
        if entry.start.found and entry.start not in (self.samples.others or {}):
            return None
        match label.of:
            case "reference":
                return labels[label.number or 0] if (label.number or 0) < len(labels) else None
            case "text":
                return label.text
            case "tokens":
                return ""
            case "best":
                return labels[outcome.label or 0] if labels else None
            case "answer":
                return outcome.prediction or next(iter(labels), None)
        assert self.samples.decoys is not None
        if sample not in self.decoys or self.decoys[sample][0] != outcome.best_round:
            texts = self.samples.decoys(sample, outcome.image_CHW)
            self.decoys[sample] = (outcome.best_round, [text for text in texts if text != outcome.prediction])
        _, texts = self.decoys[sample]
        return texts[label.number or 0] if (label.number or 0) < len(texts) else None


def _place(fields: Sequence[Any], device: torch.device) -> _Place:
    sample, index, text, looks, worst = fields
    return _Place(sample, index, text, looks, None if worst is None else (worst[0], worst[1], worst[2].to(device)))


def _where(flags: Sequence[bool], value: bool) -> list[int]:
    return [row for row, flag in enumerate(flags) if flag == value]


def within(images_BCHW: Tensor, clean_BCHW: Tensor, epsilon: float, norm: Norm = "linf") -> bool:
    """Whether the promise every attack makes is kept: no image left the budget, in 1/255, by more than rounding."""
    delta_BCHW = images_BCHW - clean_BCHW
    largest = delta_BCHW.abs().max() if norm == "linf" else l2_norm(delta_BCHW).max()
    return float(largest) / PIXEL <= epsilon + 1e-3
