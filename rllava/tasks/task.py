"""What a task is: prompt, decoding, metric, the texts that attacks aim at; and the registry of its kinds.

A kind of task is a subclass of :class:`Task`; an instance of it is part of a benchmark's spec. It is a plain
description: neither Ray nor torch is needed to read it.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rllava.errors import UserError
from rllava.metrics.metric import METRICS
from rllava.registry import Registry
from rllava.tasks.decoys import most_common_answers


@dataclass(frozen=True)
class Decoding:
    """How an answer is generated.

    Attributes:
        temperature: of the distribution that tokens are drawn from; 0: greedy.
        draws: answers per image; more than one only if they are drawn. Each is drawn by a seed of its own, made of the
            sample's id and the draw's number.
        top_k: of drawn answers, tokens that can be drawn at each step; 0: all. 50 is what Hugging Face's ``generate``
            keeps unless told otherwise, and so what published evaluations kept.
    """

    max_new_tokens: int
    temperature: float = 0.0
    draws: int = 1
    top_k: int = 50

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.temperature < 0 or self.draws < 1:
            raise ValueError(
                f"decoding: expected max_new_tokens and draws of at least 1 and a temperature of at least 0, got {self}"
            )
        if self.top_k < 0:
            raise ValueError(f"top_k: expected a number of tokens, or 0 for all, got {self.top_k}")
        if self.greedy and self.draws > 1:
            raise ValueError(f"draws: greedy answers are all the same, got {self.draws} of them; give a temperature")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken at every step."""
        return self.temperature == 0


def without_image(prompt: str) -> str:
    """A user's turn without its image marker, and the line that it stands on."""
    return prompt.replace("<image>\n", "").replace("<image>", "")


@dataclass(frozen=True)
class Needs:
    """What a row must have to be asked and scored.

    Attributes:
        references: at least one that is not blank.
    """

    references: bool = True
    image: bool = True


@dataclass(frozen=True)
class Task(ABC):
    """What is asked and how it is scored.

    A subclass says ``kind``, the word by which protocols find their rounds against such tasks; whether it
    ``needs_image``; and its ``version``, raised when it asks otherwise, aims at other texts or drops other samples.
    What is attacked as another kind is a subclass of that.

    Attributes:
        prompt: the user's turn; ``{question}`` stands for the sample's question.
        metric: name in :data:`rllava.metrics.metric.METRICS`.
        drop_threshold: in the metric's units; see :meth:`drops`.
    """

    kind: ClassVar[str]
    needs_image: ClassVar[bool] = True
    version: ClassVar[int] = 1

    prompt: str
    decoding: Decoding
    metric: str
    drop_threshold: float = 0.0

    def versions(self) -> Mapping[str, int]:
        """Of the kind, and of the metric, whose frozen state lies beside a benchmark's shards."""
        return {"task": self.version, "metric": METRICS.get(self.metric).version}

    @abstractmethod
    def labels(self, references: Sequence[str]) -> list[str]:
        """The texts whose loss a protocol's untargeted rounds maximise.

        Args:
            references: of a sample, none of them blank; there may be none where the metric needs none.

        Returns:
            Texts, in the order in which rounds number them; a round that wants one more than there are is skipped.
        """

    @property
    def needs(self) -> Needs:
        """What a row must have to be asked and scored."""
        return Needs(references=METRICS.get(self.metric).needs_references, image=self.needs_image)

    def ask(self, question: str) -> str:
        """The user's turn about a sample.

        Args:
            question: the sample's; empty where the prompt has no place for one.
        """
        return self.prompt.replace("{question}", question)

    def decoys(self, references_of_each_sample: Iterable[Sequence[str]]) -> tuple[str, ...]:
        """Answers of which those that are wrong for a sample can be aimed at.

        They depend on the fixed sample list alone, so that a sample's decoys do not depend on the shard it is in.

        Args:
            references_of_each_sample: in the order of the sample list.

        Returns:
            Different texts; see :func:`rllava.tasks.decoys.most_common_answers`.
        """
        return most_common_answers(references_of_each_sample)

    def drops(self, score: float) -> bool:
        """Tells whether a sample is left out of later rounds, because nothing is left to attack.

        The score is 0, or below the threshold (Robust-LLaVA ``vlm_eval/run_evaluation.py``: 10.0 for captions of COCO,
        0 for short answers).

        Args:
            score: the sample's worst score so far.

        Returns:
            True if the sample is not attacked any more.
        """
        return score < self.drop_threshold or score == 0.0

    def check(self, attacked: bool) -> None:
        """Refuses what cannot be evaluated.

        Args:
            attacked: whether images are searched for on which it scores least, rather than shown as they are.

        Raises:
            UserError: if the metric is unknown, or an attack would score drawn answers, or take the best scores for the
                worst.
        """
        metric = METRICS.get(self.metric)
        if attacked and not self.decoding.greedy:
            raise UserError(
                f"task {self.kind}: an attack keeps the image on which one answer scores least, which of drawn answers "
                f"(temperature {self.decoding.temperature:g}) would be luck; give a temperature of 0, or budget 0 alone"
            )
        if attacked and not metric.higher_is_better:
            raise UserError(
                f"task {self.kind}: metric {metric.name} is better the lower it is, and an attack looks for the lowest "
                "score; give a metric that is better the higher it is, or budget 0 alone"
            )


TASKS: Registry[type[Task]] = Registry("kind of task", "rllava.tasks")
