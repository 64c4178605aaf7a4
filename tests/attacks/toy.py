"""A small classifier as the engine wants its victims: texts are classes, the score is how likely the right one is."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rllava.attacks.common import PIXEL
from rllava.attacks.engine import Aim, Attacked
from tests.attacks.classifier import Classifier, images

MODEL = Classifier().float()
COUNT = 6
IMAGES_BCHW = (images(COUNT)[0].float() * 255).round() * PIXEL
CLASS_B = MODEL(IMAGES_BCHW).argmax(1)


def cross_entropy(pixels_NCHW: Tensor, aims: Sequence[Aim], precision: str) -> Tensor:
    wanted_N = torch.tensor([int(aim.text) for aim in aims])
    return torch.nn.functional.cross_entropy(MODEL(pixels_NCHW), wanted_N, reduction="none")


def judge(images_NCHW: Tensor, who: Sequence[int], precision: str) -> tuple[list[str], list[float]]:
    """Answers with the class; scores how likely the right one is."""
    with torch.no_grad():
        logits_NK = MODEL(images_NCHW)
    right_N = logits_NK.softmax(1)[range(len(who)), CLASS_B[list(who)]]
    return [str(k) for k in logits_NK.argmax(1).tolist()], (100 * right_N).tolist()


def victims(count: int = COUNT, labels: Sequence[Sequence[str]] | None = None, **others: Any) -> Attacked:
    answers, scores = judge(IMAGES_BCHW[:count], range(count), "float32")
    own = [[str(int(k)), "1"] for k in CLASS_B[:count]]
    return Attacked(IMAGES_BCHW[:count], labels or own, answers, scores, seeds=list(range(count)), **others)
