"""Other wordings of the question, as a defence: what they gain on stored images, and what is left of it under an attack
that knows them (Robust-LLaVA, its tables 19 and 20, has the first alone)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from rllava.conditions.attack import Attack, Budget, ByProtocol
from rllava.conditions.condition import CONDITIONS, SHOWN, Condition, Passes, Setting
from rllava.conditions.transferred import attacks_of, rows_of_stored
from rllava.data.benchmarks import BenchmarkSpec
from rllava.data.images import encode_png
from rllava.errors import UserError
from rllava.evaluation.shard import ShardWork
from rllava.registry import Registry


@dataclass(frozen=True)
class Wording:
    """A sentence that is put before what is asked.

    Attributes:
        version: raised when the sentence, or where it is put, changes.
    """

    name: str
    sentence: str
    version: int = 1

    def reword(self, prompt: str) -> str:
        """A user's turn with the sentence, after the image if there is one."""
        marker, image, question = prompt.rpartition("<image>\n")
        return f"{marker}{image}{self.sentence} {question}"


WORDINGS: Registry[Wording] = Registry("wording", "rllava.wordings")

for _wording in (
    Wording("ap", "Given the image could be adversarially perturbed."),
    Wording("ac", "Given the image is adversarially perturbed."),
    Wording("rand_str", "ryFo8ZVcyNMtLgryNOg64UTjySyEb79e5aq6IJxGuz0GzWNtoz."),
    Wording("rand_sent", "Clouds drift quietly over the ancient, forgotten city."),
):
    WORDINGS.register(_wording.name, _wording)


@dataclass(frozen=True)
class Prompted(Condition):
    """Another wording, with the clean image or with one that an attack on the benchmark's own wording found.

    Attributes:
        wording: name in :data:`WORDINGS`.
        attack: under which the candidate's own stored images were found; None: the clean image is shown.
        precision: of the answers to clean images.
    """

    kind: ClassVar[str] = "prompted"
    wording: str
    attack: Attack | None = None
    precision: str = "float32"

    @classmethod
    def all_named(cls, what: str, setting: Setting) -> tuple[Condition, ...]:
        """``prompted:WORDING``: on clean images, and at each budget on stored images and attacked through.

        Raises:
            UserError: if there is no such wording, or there are no attacks.
        """
        if not what:
            raise UserError(f"condition prompted: name a wording, one of {', '.join(WORDINGS)}, e.g. prompted:ac")
        WORDINGS.get(what)
        attacks = attacks_of(setting, "prompted")
        stored = (cls(what, attack, setting.precision) for attack in attacks)
        through = (PromptedAttack(attack.protocol, what, attack.budget) for attack in attacks)
        return (cls(what, None, setting.precision), *stored, *through)

    @property
    def label(self) -> str:
        """With what is shown."""
        shown = "" if self.attack is None else f",stored,non-adaptive,{self.attack.label},{self.attack.epsilon:g}/255"
        return f"prompted[{self.wording}{shown}]-v{self.version}"

    @property
    def short(self) -> str:
        """Wording and budget."""
        return self.wording if self.attack is None else f"{self.wording}-stored-{self.attack.short}"

    @property
    def adaptive(self) -> bool:
        """Stored images were searched for against another wording."""
        return self.attack is None

    @property
    def stored_under(self) -> Attack | None:
        """The attack."""
        return self.attack

    @property
    def keeps_prompt(self) -> bool:
        """Its very point is another one."""
        return False

    def precisions(self, task: str) -> tuple[str, ...]:
        """Those of the attack; of clean images, one."""
        return (self.precision,) if self.attack is None else self.attack.precisions(task)

    def versions_for(self, task: str) -> Mapping[str, int]:
        """Of the wording."""
        return {"wording": WORDINGS.get(self.wording).version}

    def passes(self, benchmark: BenchmarkSpec, labels: float) -> tuple[Passes, ...]:
        """Two answers: to the clean image, and to what is shown."""
        return (Passes(self.precisions(benchmark.task.kind)[0], answers=1.0 if self.attack is None else 2.0),)

    def run(self, work: ShardWork) -> list[dict[str, Any]]:
        """Answers in the wording, to the clean image too."""
        asked = reworded(work, self.wording)
        if self.attack is None:
            rows = asked.clean_rows()
            for row, sample in zip(rows, asked.shard.samples, strict=True):
                if sample.row < SHOWN and sample.pixels_HWC is not None:
                    row["shown_png"] = encode_png(sample.pixels_HWC)
            return rows
        assert work.stored is not None
        found = work.stored(work.spec.sources[0], asked.shard.samples)
        return rows_of_stored(asked, found, "it was not attacked: the clean answer was beaten in the usual wording")


@dataclass(frozen=True)
class PromptedAttack(ByProtocol):
    """The worst answer in another wording that a protocol finds within a budget: the attack knows the defence.

    Attributes:
        wording: name in :data:`WORDINGS`.
    """

    kind: ClassVar[str] = "prompted_attack"
    wording: str
    budget: Budget

    def __post_init__(self) -> None:
        if self.protocol.chained or self.protocol.after:
            raise UserError(
                f"condition prompted: protocol {self.protocol.name} starts from images of other attacks, which are in "
                "the usual wording; give another --protocol, e.g. paper_ensemble"
            )

    @classmethod
    def named(cls, what: str, setting: Setting) -> "PromptedAttack":
        """It stands beside the images that do not know the wording."""
        raise UserError("condition prompted_attack: it is part of prompted:WORDING")

    @property
    def attack(self) -> Attack:
        """The same within the usual wording."""
        return Attack(self.protocol, self.budget)

    @property
    def label(self) -> str:
        """With protocol and budget."""
        return f"prompted[{self.wording},attacked,{self.attack.label},{self.attack.epsilon:g}/255]-v{self.version}"

    @property
    def short(self) -> str:
        """Wording and budget."""
        return f"{self.wording}-attacked-{self.attack.short}"

    @property
    def label_budget(self) -> float:
        """The budget."""
        return self.budget.size

    @property
    def keeps_prompt(self) -> bool:
        """Its very point is another one."""
        return False

    def versions_for(self, task: str) -> Mapping[str, int]:
        """Of the attack and the wording."""
        return {**super().versions_for(task), "wording": WORDINGS.get(self.wording).version}

    def passes(self, benchmark: BenchmarkSpec, labels: float) -> tuple[Passes, ...]:
        """The attack's, and a clean answer in the wording."""
        first, *others = self.attack.passes(benchmark, labels)
        return (replace(first, answers=first.answers + 1), *others)

    def run(self, work: ShardWork) -> list[dict[str, Any]]:
        """Answers the clean images in the wording, and attacks."""
        return self.attack.run(reworded(work, self.wording))


CONDITIONS.register(Prompted.kind, Prompted)
CONDITIONS.register(PromptedAttack.kind, PromptedAttack)


def reworded(work: ShardWork, wording: str) -> ShardWork:
    """A shard whose samples are asked in another wording, their clean images answered in it."""
    found = WORDINGS.get(wording)
    samples = [replace(sample, prompt=found.reword(sample.prompt)) for sample in work.shard.samples]
    asked = replace(work, shard=replace(work.shard, samples=samples))
    images = [sample.pixels_HWC for sample in samples if sample.pixels_HWC is not None]
    assert len(images) == len(samples), "the condition is about samples with images"
    texts, scores = asked.answer(images)
    return replace(asked, shard=replace(asked.shard, predictions=texts, scores=scores))
