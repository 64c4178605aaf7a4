"""One image, made against a corpus of sentences, in every sample's place."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from rllava.conditions.condition import CONDITIONS, Condition, Setting
from rllava.errors import UserError
from rllava.image_spec import ImageSpec
from rllava.specs import EvalSpec
from rllava.universal_spec import Making


@dataclass(frozen=True)
class Universal(Condition):
    """The universal image that was made for the candidate itself.

    Attributes:
        restart: which of several images that differ in their start and draws.
        precision: of the answers.
    """

    kind: ClassVar[str] = "universal"
    needs_image: ClassVar[bool] = False

    making: Making
    restart: int = 0
    precision: str = "float32"

    @classmethod
    def named(cls, what: str, setting: Setting) -> "Universal":
        """Universal images have a sweep of their own."""
        raise UserError("condition universal: universal images are asked for by sweeps/jailbreak.py")

    @property
    def label(self) -> str:
        """The recipe's."""
        return self.making.recipe.label

    @property
    def short(self) -> str:
        """Recipe, budget and number."""
        return f"{self.making.recipe.name}-eps{self.epsilon:g}-{self.restart}"

    @property
    def phrase(self) -> str:
        """Budget and number."""
        return f"by {self.making.recipe.name} {self.restart} at {self.epsilon:g}/255"

    @property
    def epsilon(self) -> float:
        """The budget; 255: none."""
        return self.making.epsilon

    @property
    def parts(self) -> tuple[Mapping[str, Any], ...]:
        """One: the answer to the image."""
        return ({"epsilon": self.epsilon, "restart": self.restart},)

    def precisions(self, task: str) -> tuple[str, ...]:
        """One for all tasks."""
        return (self.precision,)

    def images(self, evaluation: EvalSpec) -> tuple[ImageSpec, ...]:
        """The image made for its model."""
        return (ImageSpec(evaluation.model, evaluation.encoders, self.making, self.restart),)

    def run(self, work: Any) -> list[dict[str, Any]]:
        """Answers to the image, beside the clean answers, with what its making says of itself."""
        (spec,) = self.images(work.spec)
        made = work.image(spec)
        evidence = {name: made.facts[name] for name in EVIDENCE}
        rows: list[dict[str, Any]] = work.show(made.pixels_HWC, checked=True, **evidence)
        return rows


EVIDENCE = ("linf", "steps", "loss_clean", "loss_best", "zero_gradient_share", "findings")
"""Facts of an image that its records repeat."""

CONDITIONS.register(Universal.kind, Universal)
