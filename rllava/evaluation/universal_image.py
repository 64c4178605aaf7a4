"""From a loaded model and a spec to a universal image, with the evidence that the attack worked. Knows no Ray.

Shapes: C channel, H/W image, N drawn targets, M targets of the corpus.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from rllava.attacks.common import PIXEL
from rllava.attacks.memory import Batches
from rllava.attacks.noise import random_noise
from rllava.attacks.outcome import round_to_8_bits
from rllava.attacks.universal import Rate, UniversalAttack, UniversalResult, UniversalSettings
from rllava.check_names import LAST_RISE_LIMIT, LOOKS, ZERO_GRADIENT_LIMIT
from rllava.data.images import decode_png, encode_png, preprocess
from rllava.data.shards import parquet_bytes
from rllava.evaluation.in_flight import read_state, write_state
from rllava.evaluation.rows import to_uint8
from rllava.evaluation.target_tokens import room_of, target_tokens
from rllava.evaluation.victim import TARGETS_AT_A_TIME, Victim
from rllava.image_spec import ImageSpec
from rllava.metrics.judges.judge import Exchange
from rllava.model.conversation import IGNORE, IMAGE_MARKER, Tokens
from rllava.store import Store
from rllava.universal_spec import HeldOut

IMAGE, TRACE, STATE = "image.png", "trace.parquet", "state.pt"
"""Files of an image's artifact: the image at the size that its model sees; loss and share of zero gradients of every
step; what the attack goes on from while it is in flight."""

FORMAT = "universal-v1"

NOISE_DRAWS = 8
"""Random points of the budget that the image has to do better than."""


TELL_EVERY_S = 5.0
"""Seconds between two times that an image in the making is told of, at least."""


@dataclass(frozen=True)
class MadeImage:
    """An image as it lies in storage.

    Attributes:
        pixels_HWC: uint8, in its model's input space.
        facts: see :func:`evidence_of`.
    """

    pixels_HWC: np.ndarray
    facts: Mapping[str, Any]


def read_image(store: Store, spec: ImageSpec) -> MadeImage:
    """A complete image."""
    artifact = store.artifact("images", spec.name, spec)
    content = store.filesystem.cat_file(f"{artifact.path}/{IMAGE}")
    return MadeImage(decode_png(content), store.facts(artifact))


def make_image(
    victim: Victim, spec: ImageSpec, store: Store, folder: str, save_every_s: float,
    tell: Callable[[int, float], None] = lambda step, loss: None,
) -> dict[str, Any]:  # fmt: skip
    """Makes an image, from where it was left if it was, and writes it.

    Args:
        victim: the model that the spec names.
        folder: of the artifact in the storage; the lease is held by the caller.
        save_every_s: seconds between two states that are kept; 0: after every step.
        tell: takes the number of steps and the cross-entropy of the last one's targets, every few seconds.

    Returns:
        Its facts.

    Raises:
        UserError: if the corpus does not fit the model's context.
    """
    attempt = Attempt(victim, spec)
    attack, state = attempt.attack(), f"{folder}/{STATE}"
    saved = read_state(store, state, FORMAT, "this image")
    if saved is not None:
        attack.load_state_dict(saved)
    kept = told = time.monotonic()
    while not attack.done:
        attack.step()
        if time.monotonic() - told >= TELL_EVERY_S:
            tell(attack.taken, -attack.last_loss)
            told = time.monotonic()
        if time.monotonic() - kept >= save_every_s and not attack.done:
            write_state(store, state, FORMAT, attack.state_dict())
            kept = time.monotonic()
    result = attack.result()
    image_CHW = round_to_8_bits(result.image_CHW[None], attempt.clean_CHW[None], spec.making.epsilon)[0]
    facts = attempt.evidence(result, image_CHW)
    store.write(f"{folder}/{TRACE}", _trace(result))
    store.write(f"{folder}/{IMAGE}", encode_png(to_uint8(image_CHW)))
    if store.exists(state):
        store.filesystem.rm_file(state)
    return facts


class Attempt:
    """The attack of a spec on a loaded model.

    Raises:
        UserError: if the corpus does not fit the model's context.
    """

    def __init__(self, victim: Victim, spec: ImageSpec) -> None:
        making = spec.making
        self.making, self.spec, self.victim = making, spec, victim
        self.llava = victim.model(making.precision)
        side = victim.image_size
        self.clean_CHW = victim.pixels([preprocess(making.picture.read(), side, making.picture.fit)])[0]
        self.targets = self._tokens()
        counts = [float(sum(label != IGNORE for label in target.labels)) for target in self.targets]
        self.weights = counts if making.recipe.weigh == "tokens" else [1.0] * len(counts)

    def attack(self) -> UniversalAttack:
        """At its start."""
        recipe = self.making.recipe
        settings = UniversalSettings(
            recipe.steps, recipe.batch, recipe.step_size, recipe.momentum, recipe.rate_every or recipe.steps
        )
        return UniversalAttack(
            self.loss, self.clean_CHW, self.weights, settings,
            epsilon=self.making.epsilon, seed=self.spec.restart, rate=self._rate() if recipe.rate_every else None,
        )  # fmt: skip

    def loss(self, image_1CHW: Tensor, index_N: Tensor) -> Tensor:
        """Minus the mean cross-entropy of the tokens of each drawn target."""
        return -self.llava.targets_loss(image_1CHW, [self.targets[n] for n in index_N.tolist()])

    def corpus_loss(self, image_CHW: Tensor) -> float:
        """The attack's loss over the whole corpus."""
        index_M = torch.arange(len(self.targets))

        def of(part: Sequence[int]) -> Tensor:
            with torch.no_grad():
                return self.loss(image_CHW[None], index_M[list(part)])

        loss_M = torch.cat(Batches(TARGETS_AT_A_TIME).run(of, list(range(len(self.targets))))).double().cpu()
        weight_M = torch.tensor(self.weights, dtype=torch.float64)
        return float((loss_M * weight_M).sum() / weight_M.sum())

    def evidence(self, result: UniversalResult, image_CHW: Tensor) -> dict[str, Any]:
        """What an image says of its making.

        Args:
            image_CHW: in 8 bits, as it will be shown.

        Returns:
            ``steps`` taken and the ``step`` whose image was kept, ``rating`` of it, ``loss_clean`` and ``loss_best``
            over the whole corpus for the clean picture and the image, ``linf`` in 1/255, the mean
            ``zero_gradient_share``, and the ``findings`` of the attack checks.
        """
        clean = self.corpus_loss(self.clean_CHW)
        best = self.corpus_loss(image_CHW)
        share = float(result.zero_gradient_S.double().mean()) if len(result.zero_gradient_S) else 0.0
        return {
            "steps": len(result.loss_S),
            "step": result.step,
            "rating": result.rating,
            "loss_clean": clean,
            "loss_best": best,
            "linf": round(float((image_CHW - self.clean_CHW).abs().max()) / PIXEL),
            "zero_gradient_share": share,
            "findings": self._findings(result, image_CHW, best, share),
        }

    def _findings(self, result: UniversalResult, image_CHW: Tensor, best: float, share: float) -> list[str]:
        start_CHW = self.attack().result().image_CHW
        looks = {self.corpus_loss(image_CHW) for _ in range(LOOKS - 1)} | {best}
        noise = random_noise(
            lambda images_BCHW, _: torch.tensor([self.corpus_loss(image_CHW) for image_CHW in images_BCHW]),
            self.clean_CHW[None],
            epsilon=self.making.epsilon,
            draws=NOISE_DRAWS,
            seeds=[self.spec.restart],
        )
        found = {
            "zero_gradient": share > ZERO_GRADIENT_LIMIT,
            "non_finite": result.failed,
            "no_descent": not best > self.corpus_loss(start_CHW),
            "still_rising": _still_rising(result.loss_S),
            "stochastic": len(looks) > 1,
            "noise_wins": float(noise.loss_B) > best,
        }
        return [name for name, raised in found.items() if raised]

    def _rate(self) -> Rate:
        held_out = self.making.held_out
        return self.corpus_loss if held_out is None else Rating(self.victim, self.making.precision, held_out)

    def _tokens(self) -> list[Tokens]:
        llava = self.llava
        room = room_of(cast(Any, llava.connector.language_model).config)
        return target_tokens(self.making, self.spec.encoders, llava.tokenizer, llava.conversation, room)


class Rating:
    """How often a judge flags what a model answers to held-out prompts beside an image."""

    def __init__(self, victim: Victim, precision: str, held_out: HeldOut) -> None:
        self.llava, self.held_out = victim.model(precision), held_out
        self.judge = held_out.judge.load()
        self.prompts = [self.llava.tokens(f"{IMAGE_MARKER}\n{prompt}") for prompt in held_out.prompts]

    def __call__(self, image_CHW: Tensor) -> float:
        """The share of flagged answers; blank ones are not."""
        answers = self.llava.generate(image_CHW[None], self.prompts, self.held_out.max_new_tokens)
        said = [Exchange(prompt, text) for prompt, text in zip(self.held_out.prompts, answers, strict=True) if text]
        flagged = sum(bool(verdict.flagged) for verdict in self.judge(said)) if said else 0
        return flagged / len(answers)


def _still_rising(loss_S: Tensor) -> bool:
    """Whether much of the rise came in the last tenth of the steps; the losses of single steps are of other targets."""
    tenth = len(loss_S) // 10
    if tenth < 5:
        return False
    means = loss_S[len(loss_S) - 10 * tenth :].double().reshape(10, tenth).mean(1)
    rise = float(means[-1] - means[0])
    return rise > 0 and float(means[-1] - means[-2]) > LAST_RISE_LIMIT * rise


def _trace(result: UniversalResult) -> bytes:
    columns = {"loss": result.loss_S, "zero_gradient_share": result.zero_gradient_S}
    table = pa.table({name: pa.array(values.float().cpu().numpy()) for name, values in columns.items()})
    return parquet_bytes(table)
