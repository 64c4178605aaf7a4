"""How a universal image is made: specs that need no torch. Which model it is made for is said by
:class:`rllava.image_spec.ImageSpec`."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from rllava.data.easy_vqa_source import easy_images
from rllava.data.images import DamagedImage, Fit, decode_png
from rllava.errors import UserError
from rllava.fingerprint import Described, PinnedBy
from rllava.metrics.judges.judge import JudgeSpec
from rllava.registry import Registry

EASY_VQA = "easy_vqa:"
"""What a picture's source begins with that is an image of the embedded data, followed by its id."""


@dataclass(frozen=True)
class Picture:
    """The clean picture that an image is made from, and that stands beside it.

    Attributes:
        source: a file that every machine reads, or ``easy_vqa:ID``.
        sha256: of it; None: :meth:`pinned` fills it in before a sweep.
        fit: how it becomes square; VisualAdv's code crops.
    """

    source: Annotated[str, PinnedBy("sha256")]
    sha256: str | None = None
    fit: Fit = "crop"

    def read(self) -> bytes:
        """The encoded picture.

        Raises:
            UserError: in one line, if it cannot be read, is no image, or is another one than was pinned.
        """
        content = self._content()
        found = hashlib.sha256(content).hexdigest()
        if self.sha256 not in (None, found):
            raise UserError(
                f"picture {self.source}: its SHA-256 is {found[:16]}..., not {str(self.sha256)[:16]}... as at the "
                "start of this sweep; bring the file back"
            )
        try:
            decode_png(content)
        except DamagedImage as damage:
            raise UserError(f"picture {self.source}: {damage}; give another file") from damage
        return content

    def _content(self) -> bytes:
        if self.source.startswith(EASY_VQA):
            name = self.source.removeprefix(EASY_VQA)
            found = {image.sample_id: image.png for image in easy_images(name.split("-")[0])}
            if name not in found:
                raise UserError(
                    f"picture {self.source}: easy-VQA has no image '{name}'; give train-0000 or another one"
                )
            return found[name]
        try:
            return Path(self.source).read_bytes()
        except OSError as error:
            raise UserError(f"picture {self.source} cannot be read ({error.strerror}); give an image file") from error

    def pinned(self) -> "Picture":
        """The picture with the hash of its content, after a look at it.

        Raises:
            UserError: see :meth:`read`.
        """
        return replace(self, sha256=hashlib.sha256(self.read()).hexdigest())


@dataclass(frozen=True)
class Corpus:
    """Sentences that a model shall be made to say. They are the identity, not the file that they came from.

    Attributes:
        name: for people.
    """

    name: Described[str]
    targets: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.targets:
            raise ValueError("targets: a corpus holds at least one sentence")


@dataclass(frozen=True)
class Recipe:
    """How an image is optimised.

    Attributes:
        steps: one forward and one backward pass each.
        batch: targets drawn in a step.
        step_size: in 1/255.
        weigh: what weighs the same in the mean of a step: every token of the drawn targets, or every target.
        momentum: see :class:`rllava.attacks.universal.UniversalSettings`.
        rate_every: steps between two images that are rated, by held-out prompts where there are any, else by the loss
            over the whole corpus; the best one is kept. 0: the last one is.
        conversation: template in which the empty request and its answers are laid out; empty: the model's own.
        version: raised when the same fields give another image.
    """

    name: str
    steps: int = 5000
    batch: int = 8
    step_size: float = 1.0
    weigh: Literal["tokens", "targets"] = "tokens"
    momentum: float = 0.0
    rate_every: int = 0
    conversation: str = ""
    version: int = 1

    @property
    def label(self) -> str:
        """Name and version, with the number of steps where it is not the published recipe's."""
        known = RECIPES.get(self.name).steps if self.name in RECIPES else self.steps
        return f"{self.name}{f'[{self.steps}]' if self.steps != known else ''}-v{self.version}"

    def describe(self) -> str:
        """What it does, in a few words."""
        kept = f"the best of every {self.rate_every}th" if self.rate_every else "the last one"
        return (
            f"{self.label}: {self.steps} steps of {self.step_size:g}/255 on {self.batch} targets, momentum "
            f"{self.momentum:g}, every {self.weigh.removesuffix('s')} weighs the same; {kept} is kept"
        )


RECIPES: Registry[Recipe] = Registry("recipe of universal images", "rllava.universal_recipes")

# The published loop counts from 0 to 5000 and keeps the image after a step whose number is a multiple of 100: the
# last one is that after 5001 steps.
RECIPES.register("visualadv", Recipe("visualadv", steps=5001))
RECIPES.register("visualadv_llama2", Recipe("visualadv_llama2", steps=5001, conversation="llava_llama_2"))
RECIPES.register("visualadv_strong", Recipe("visualadv_strong", weigh="targets", momentum=0.9, rate_every=100))


@dataclass(frozen=True)
class HeldOut:
    """By which answers an image is rated: the share that a judge flags of the greedy answers to some prompts.

    Attributes:
        prompts: requests, the image marker left out; neither of the corpus nor of a benchmark.
    """

    prompts: tuple[str, ...]
    judge: JudgeSpec
    max_new_tokens: int = 32


@dataclass(frozen=True)
class Making:
    """All that decides a universal image but the model that it is made for, and the start that it happens to have.

    Attributes:
        epsilon: budget in 1/255; 255: none.
        precision: of the model while the image is made.
        held_out: None: images are rated by their loss, if at all.
    """

    recipe: Recipe
    corpus: Corpus
    epsilon: float
    picture: Picture
    precision: str = "float32"
    held_out: HeldOut | None = None

    def __post_init__(self) -> None:
        if not 0 < self.epsilon <= 255:
            raise ValueError(f"epsilon: expected a number above 0 and up to 255 (units of 1/255), got {self.epsilon}")
        if self.recipe.batch > len(self.corpus.targets):
            raise ValueError(
                f"corpus '{self.corpus.name}': {len(self.corpus.targets)} targets, and a step of {self.recipe.name} "
                f"draws {self.recipe.batch} different ones"
            )

    def versions(self) -> Mapping[str, int]:
        """Of the judge, if one rates; what else decides has its version in it."""
        return {} if self.held_out is None else {"rating": RATING_VERSION}


RATING_VERSION = 1
"""Raised when the same answers rate an image otherwise."""
