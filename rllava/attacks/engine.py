"""The engine: runs a protocol over many samples, as many at a time as fit; whoever is done makes room for the next.

The samples in flight may be in different rounds and at different steps. Each look at their points is one batch. What
the engine holds between two looks is plain data: :meth:`Engine.state_dict` at any moment, loaded into a new engine,
goes on to the same results, bit by bit on a CPU.

Knows neither LLaVA nor metric: it is given a loss per (sample, text, precision) and a judge that answers and scores.

Shapes: B all samples, L samples in flight, N some of them, C channel, H/W image.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rllava.attacks.common import PIXEL, Look, Norm, l2_norm, loss_and_gradient, loss_only, project, start_point
from rllava.attacks.memory import Batches
from rllava.attacks.outcome import Evidence, Outcome, snap
from rllava.attacks.rounds import LARGER, Round, Start
from rllava.attacks.stepper import ATTACKS, Entering, Lanes


class Aim(NamedTuple):
    """Whose loss is wanted: that of ``text`` as the answer of sample ``sample``; None: of its visual tokens."""

    sample: int
    text: str | None


AnswerLoss = Callable[[Tensor, Sequence[Aim], str], Tensor]
"""``loss(pixels_NCHW, aims, precision) -> loss_N``: cross-entropy of each aim's text for its pixels; or, of aims
without text, which come among themselves, how far the visual tokens are from the clean image's. Rounds maximise it,
targeted ones minimise it."""

Judge = Callable[[Tensor, Sequence[int], str], tuple[list[str], list[float]]]
"""``judge(images_NCHW, samples, precision) -> answers, scores`` of those samples."""

Decoys = Callable[[int, Tensor], Sequence[str]]
"""``decoys(sample, image_CHW)``: wrong answers to aim at from an image, the most promising first."""


@dataclass(frozen=True)
class Attacked:
    """What is attacked.

    Attributes:
        images_BCHW: clean images, float32 in [0, 1], multiples of 1/255.
        labels: per sample, the texts whose loss untargeted rounds maximise.
        seeds: one per sample, of whatever is random.
        decoys: wrong answers of a sample, for rounds that aim at them; None where no round does.
        others: images that other evaluations found, by the start that they are; where a sample has none, the clean
            image.
        texts: what rounds attack that start from a larger budget's image, by sample, in place of their label's text.
        floors: per sample, the score below which nothing is left to attack, whatever else is dropped; None: no such.
    """

    images_BCHW: Tensor
    labels: Sequence[Sequence[str]]
    predictions: Sequence[str]
    scores: Sequence[float]
    seeds: Sequence[int]
    decoys: Decoys | None = None
    others: Mapping[Start, Tensor] | None = None
    texts: Mapping[int, str] | None = None
    floors: Sequence[float] | None = None


@dataclass
class _Run:
    """A sample in flight: which one, in which round, whose text, how many looks are done, the worst answer so far."""

    sample: int
    round: int
    text: str | None
    looks: int = 0
    worst: tuple[str, float, Tensor] | None = None

    @property
    def steps(self) -> int:
        """Gradient steps taken."""
        return self.looks - 1


class Engine:
    """A protocol's rounds over some samples, each at its own budget.

    A round may only lower a sample's score. A sample whose score in a round (or on the clean image) is dropped takes
    no part in later rounds; neither does one that lacks the round's label. Samples start in order. Between two rounds
    of one kind (:attr:`rllava.attacks.rounds.Round.kind`) a sample stays in flight; kinds follow one another as in the
    protocol.

    Args:
        epsilon: budget in 1/255, of all or of each sample.
        answer_loss: see :data:`AnswerLoss`.
        judge: see :data:`Judge`.
        dropped: whether nothing is left to attack at a score.
        batches: splits looks that do not fit into memory; by default one that starts at that.
        takes: per sample, the numbers of the rounds that it takes part in; None: all do in all.

    Raises:
        ValueError: if an attack of a round does not keep budgets of that norm.
    """

    def __init__(
        self,
        rounds: Sequence[Round],
        attacked: Attacked,
        *,
        epsilon: float | Sequence[float],
        answer_loss: AnswerLoss,
        judge: Judge,
        dropped: Callable[[float], bool],
        in_flight: int,
        batches: Batches | None = None,
        norm: Norm = "linf",
        takes: Sequence[Collection[int]] | None = None,
    ) -> None:
        assert in_flight >= 1
        for entry in rounds:
            if norm not in ATTACKS.get(entry.attack).norms:
                raise ValueError(f"round {entry.name}: attack {entry.attack} keeps no {norm} budget")
        self.rounds, self.attacked, self.takes = tuple(rounds), attacked, takes
        self.budgets = [epsilon] * len(attacked.labels) if isinstance(epsilon, int | float) else list(epsilon)
        self.answer_loss, self.judge, self.dropped, self.most = answer_loss, judge, dropped, in_flight
        self.batches, self.norm = batches or Batches(in_flight), norm
        self.columns = max((entry.steps for entry in self.rounds), default=0)
        self.outcomes = [
            Outcome(answer, score, image_CHW)
            for answer, score, image_CHW in zip(
                attacked.predictions, attacked.scores, attacked.images_BCHW, strict=True
            )
        ]
        self.decoys: dict[int, tuple[str, list[str]]] = {}  # per sample: from which round's image, and which texts
        self.kinds = tuple(dict.fromkeys(entry.kind for entry in self.rounds))
        self.kind = self.kinds[0] if self.kinds else ("float32", "apgd", False)
        self.waiting: dict[tuple[str, str, bool], list[tuple[int, int]]] = {kind: [] for kind in self.kinds}
        for sample, score in enumerate(attacked.scores):
            if not self.is_dropped(sample, score):
                self._enqueue(sample, 0)
        self.running: list[_Run] = []
        self.lanes: Lanes | None = None

    def run(
        self,
        save: Callable[[dict[str, Any]], None] | None = None,
        every_s: float = 60.0,
        saved: float | None = None,
    ) -> list[Outcome]:
        """Attacks until nothing is left to do.

        Args:
            save: given :meth:`state_dict` now and then.
            every_s: seconds between two states; 0 saves after every look.
            saved: when the last one was, by the monotonic clock; None: now.
        """
        saved = time.monotonic() if saved is None else saved
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
            "running": [list(vars(run).values()) for run in self.running],
            "lanes": None if self.lanes is None else {k: v.clone() for k, v in self.lanes.tensors().items()},
            "limit": self.batches.limit,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where another engine of the same arguments was, if need be in smaller batches.

        Args:
            state: from its :meth:`state_dict`.
        """
        images_BCHW = self.attacked.images_BCHW
        for outcome, image_CHW, saved in zip(self.outcomes, images_BCHW, state["outcomes"], strict=True):
            outcome.load_state_dict(saved, image_CHW)
        self.decoys = {sample: (origin, list(texts)) for sample, (origin, texts) in state["decoys"].items()}
        self.kind = tuple(state["kind"])
        self.waiting = {tuple(kind): [(s, r) for s, r in queue] for kind, queue in state["waiting"]}
        self.running = [_run_of(fields, images_BCHW.device) for fields in state["running"]]
        self.lanes = None
        if state["lanes"] is not None:
            tensors = {name: value.to(images_BCHW.device).clone() for name, value in state["lanes"].items()}
            self.lanes = self.attack(norm=self.norm, **tensors)
        self.batches.limit = min(self.batches.limit, int(state["limit"]))

    def is_dropped(self, sample: int, score: float) -> bool:
        """Whether nothing is left to attack of a sample at a score."""
        return self.dropped(score) or (self.attacked.floors is not None and score < self.attacked.floors[sample])

    @property
    def precision(self) -> str:
        """Of the model that is attacked at the moment."""
        return self.kind[0]

    @property
    def attack(self) -> type[Lanes]:
        """By which it is."""
        return ATTACKS.get(self.kind[1])

    def _fill(self) -> bool:
        """Starts those who wait, as far as there is room; False when nobody is left."""
        if not self.running and not self.waiting.get(self.kind):
            self.kind = next((kind for kind in self.kinds if self.waiting[kind]), self.kind)
        queue = self.waiting.get(self.kind, [])
        starting: list[_Run] = []
        while queue and len(self.running) + len(starting) < self.most:
            sample, index = queue.pop(0)
            aim = self._aim(sample, index)
            assert aim is not None
            starting.append(_Run(sample, index, aim.text))
        self._start(starting)
        return bool(self.running)

    def _start(self, starting: list[_Run]) -> None:
        if not starting:
            return
        samples = [run.sample for run in starting]
        rounds = [self.rounds[run.round] for run in starting]
        clean_NCHW = self.attacked.images_BCHW[samples]
        points = [self._start_point(run) for run in starting]
        budgets = [self.budgets[run.sample] * entry.width for run, entry in zip(starting, rounds, strict=True)]
        lanes = self.attack.enter(
            Entering(
                clean_NCHW,
                torch.stack(points),
                budgets,
                [entry.steps for entry in rounds],
                [entry.step_size / (e if entry.absolute else 1) for entry, e in zip(rounds, budgets, strict=True)],
                seeds=[self._seed(run) for run in starting],
                columns=self.columns,
                norm=self.norm,
            )
        )
        self.lanes = lanes if self.lanes is None or not self.running else self.lanes.join(lanes)
        self.running += starting

    def _start_point(self, run: _Run) -> Tensor:
        entry, sample = self.rounds[run.round], run.sample
        clean_1CHW, outcome = self.attacked.images_BCHW[sample][None], self.outcomes[sample]
        budget = self.budgets[sample] * entry.width
        if entry.start.at == "random":
            return start_point("random", clean_1CHW, budget, [self._seed(run)], self.norm)[0]
        image_CHW = clean_1CHW[0]
        if entry.start.at == "best":
            image_CHW = outcome.image_CHW
        elif entry.start.at == "previous" and outcome.previous_CHW is not None:
            image_CHW = outcome.previous_CHW
        elif entry.start.found and self.attacked.others is not None:
            image_CHW = self.attacked.others[entry.start][sample].to(clean_1CHW)
        return project(image_CHW[None], clean_1CHW, budget, self.norm)[0]

    def _seed(self, run: _Run) -> int:
        return self.attacked.seeds[run.sample] * 1_000_003 + run.round

    def _look(self) -> None:
        """One look of every sample in flight, one step of those that are not done, a verdict on those that are."""
        assert self.lanes is not None
        last = [run.looks == self.rounds[run.round].steps for run in self.running]
        looks: list[Look] = []
        order: list[int] = []
        # The last point of a round needs no gradient: no step follows.
        for rows, gradient in ((_where(last, False), self.attack.gradients), (_where(last, True), False)):
            looks += self.batches.run(lambda part, gradient=gradient: self._look_at(part, gradient), rows)  # type: ignore[misc]
            order += rows
        back = torch.tensor(order, device=self.lanes.clean_LCHW.device).argsort()
        self.lanes.absorb(Look(*(torch.cat(parts)[back] for parts in zip(*looks, strict=True))))
        for run in self.running:
            run.looks += 1
        leaving = self._answer()
        going_on = self._finish(leaving) if leaving else []
        if self.running:
            self.lanes.move()
        self._start(going_on)

    def _look_at(self, rows: Sequence[int], gradient: bool) -> Look:
        assert self.lanes is not None
        aims = [Aim(self.running[row].sample, self.running[row].text) for row in rows]
        signs = [-1.0 if self.rounds[self.running[row].round].targeted else 1.0 for row in rows]
        points_NCHW = self.lanes.point_LCHW[torch.tensor(rows, device=self.lanes.point_LCHW.device)]
        sign_N = torch.tensor(signs, device=points_NCHW.device)

        def loss(pixels_NCHW: Tensor, index_N: Tensor) -> Tensor:
            return sign_N * self.answer_loss(pixels_NCHW, aims, self.precision)

        return (loss_and_gradient if gradient else loss_only)(loss, points_NCHW, torch.arange(len(rows)))

    def _answer(self) -> list[int]:
        """Answers the points and images that are due; which rows are done, or hold a sample that is dropped."""
        assert self.lanes is not None
        done, due, images = [], [], []
        for row, run in enumerate(self.running):
            entry = self.rounds[run.round]
            if run.steps == entry.steps:
                done.append(row)
            if run.steps == entry.steps and entry.judged:
                due.append(row)
                images.append(self.lanes.best_LCHW[row])
            elif run.steps in entry.answers:
                due.append(row)
                images.append(self.lanes.point_LCHW[row])
        if not due:
            return done
        samples = [self.running[row].sample for row in due]
        clean_NCHW, budgets = self.attacked.images_BCHW[samples], [self.budgets[sample] for sample in samples]
        images_NCHW = snap(torch.stack(images), clean_NCHW, budgets, self.norm)
        assert within(images_NCHW, clean_NCHW, budgets, self.norm), "an attack left its budget"
        for verdicts in self.batches.run(lambda part: self._judge(images_NCHW, due, part), range(len(due))):
            for n, answer, score in verdicts:
                run = self.running[due[n]]
                if run.worst is None or score < run.worst[1]:
                    run.worst = (answer, score, images_NCHW[n].clone())  # a view would keep the whole batch alive
        dropped = [row for row in due if self.is_dropped(self.running[row].sample, self.running[row].worst[1])]  # type: ignore[index]
        return sorted({*done, *dropped})

    def _judge(self, images_NCHW: Tensor, rows: Sequence[int], part: Sequence[int]) -> list[tuple[int, str, float]]:
        samples = [self.running[rows[n]].sample for n in part]
        answers, scores = self.judge(images_NCHW[list(part)], samples, self.precision)
        return list(zip(part, answers, scores, strict=True))

    def _finish(self, rows: list[int]) -> list[_Run]:
        """Notes what the attacks in some rows found and frees them; which rounds of this kind follow at once."""
        assert self.lanes is not None
        going_on: list[_Run] = []
        for row in rows:
            run = self.running[row]
            entry, outcome = self.rounds[run.round], self.outcomes[run.sample]
            evidence = Evidence.of(self.lanes, row, entry, run.text, run.steps)
            if run.worst is None:
                outcome.note(entry, evidence, evidence.best_CHW, None)
            else:
                answer, score, image_CHW = run.worst
                outcome.note(entry, evidence, image_CHW, (answer, score))
                if self.is_dropped(run.sample, score):
                    continue
            if entry.gives_up is not None and bool((evidence.loss_S < entry.gives_up).all()):
                continue
            following = self._enqueue(run.sample, run.round + 1, keep=True)
            if following is not None:
                going_on.append(following)
        staying = [row for row in range(len(self.running)) if row not in set(rows)]
        self.lanes = self.lanes.rows(staying)
        self.running = [self.running[row] for row in staying]
        return going_on

    def _enqueue(self, sample: int, index: int, keep: bool = False) -> _Run | None:
        """Sends a sample to its next round from ``index`` on, if there is one.

        With ``keep``, a round of the running kind is handed back at once instead of waiting in the queue.
        """
        for following in range(index, len(self.rounds)):
            aim = self._aim(sample, following)
            if aim is None:
                continue
            if keep and self.rounds[following].kind == self.kind:
                return _Run(sample, following, aim.text)
            self.waiting[self.rounds[following].kind].append((sample, following))
            return None
        return None

    def _aim(self, sample: int, index: int) -> Aim | None:
        """What a round attacks of a sample; None where the sample has no such thing and skips the round."""
        entry, outcome, labels = self.rounds[index], self.outcomes[sample], self.attacked.labels[sample]
        label = entry.label
        if self.takes is not None and index not in self.takes[sample]:
            return None
        if entry.start.found and entry.start not in (self.attacked.others or {}):
            return None
        if entry.start == LARGER and label.of != "tokens" and sample in (self.attacked.texts or {}):
            return Aim(sample, (self.attacked.texts or {})[sample])
        text: str | None
        match label.of:
            case "tokens":
                return Aim(sample, None)
            case "text":
                text = label.text
            case "best":
                text = labels[outcome.label or 0] if labels else None
            case "answer":
                text = outcome.prediction or next(iter(labels), None)
            case "reference":
                text = _at(labels, label.number)
            case "decoy":
                text = _at(self._decoys_of(sample, outcome), label.number)
        return None if text is None else Aim(sample, text)

    def _decoys_of(self, sample: int, outcome: Outcome) -> list[str]:
        """Wrong answers, ranked anew when another image is the sample's worst."""
        assert self.attacked.decoys is not None
        if sample not in self.decoys or self.decoys[sample][0] != outcome.best_round:
            texts = self.attacked.decoys(sample, outcome.image_CHW)
            self.decoys[sample] = (outcome.best_round, [text for text in texts if text != outcome.prediction])
        return self.decoys[sample][1]


def _at(texts: Sequence[str], number: int | None) -> str | None:
    assert number is not None
    return texts[number] if number < len(texts) else None


def _run_of(fields: Sequence[Any], device: torch.device) -> _Run:
    sample, index, text, looks, worst = fields
    return _Run(sample, index, text, looks, None if worst is None else (worst[0], worst[1], worst[2].to(device)))


def _where(flags: Sequence[bool], value: bool) -> list[int]:
    return [row for row, flag in enumerate(flags) if flag == value]


def within(images_BCHW: Tensor, clean_BCHW: Tensor, budgets: Sequence[float], norm: Norm = "linf") -> bool:
    """Whether the promise every attack makes is kept: no image left its budget, in 1/255, by more than rounding."""
    delta_BCHW = images_BCHW - clean_BCHW
    largest_B = delta_BCHW.abs().flatten(1).amax(1) if norm == "linf" else l2_norm(delta_BCHW)
    return all(
        value / PIXEL <= budget + 1e-3 for value, budget in zip(largest_B.flatten().tolist(), budgets, strict=True)
    )
