"""What the training of an encoder minimises; the registry of it.

Sources: CLIP (InfoNCE); FARE and TeCoA as in RobustVLM's ``train/adversarial_training_clip.py``; AdvXL (text tower as
label head). Whatever the number of workers, a step's loss and gradients are those of the whole batch.

Shapes: B images of this worker, C channel, H/W image, K classes, E joint embedding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rllava.attacks.common import LossFunction
from rllava.attacks.losses import cross_entropy, feature_distance
from rllava.encoders.dual import DualEncoder
from rllava.registry import Registry
from rllava.training.together import gather


@dataclass(frozen=True)
class Batch:
    """This worker's share of a step's images.

    Attributes:
        pixels_BCHW: in [0, 1].
    """

    pixels_BCHW: Tensor
    class_B: Tensor
    wordings: Sequence[str]
    captions: Sequence[str]


InnerAttack = Callable[[LossFunction, Tensor], Tensor]
"""``attack(loss, pixels_BCHW) -> images_BCHW``: raises a loss within the budget of the training; no gradient of it
reaches the weights."""


@dataclass(frozen=True)
class EncoderObjective:
    """One objective.

    Attributes:
        loss: of the model, of the base that it was copied from (None from scratch), of a share, and by an attack; a
            scalar, the mean over workers of which is the step's.
        fine_tunes: whether it starts from a base, whose text tower and temperature stay as they are.
        version: raised when any loss is another one.
    """

    loss: Callable[[DualEncoder, DualEncoder | None, Batch, InnerAttack], Tensor]
    fine_tunes: bool
    about: str
    version: int = 1


ENCODER_OBJECTIVES: Registry[EncoderObjective] = Registry("encoder objective", "rllava.encoder_objectives")


def contrastive_loss(logits_BB: Tensor, class_B: Tensor) -> Tensor:
    """Symmetric InfoNCE in which all texts that describe the same thing are positives.

    Args:
        logits_BB: image-text similarities of a batch.
    """
    same_BB = (class_B[:, None] == class_B[None, :]).float()
    target_BB = same_BB / same_BB.sum(1, keepdim=True)
    return (F.cross_entropy(logits_BB, target_BB) + F.cross_entropy(logits_BB.T, target_BB)) / 2


def clip_loss(model: DualEncoder, base: DualEncoder | None, batch: Batch, attack: InnerAttack) -> Tensor:
    """Contrastive, with the texts of all workers as negatives."""
    image_BE, text_BE = gather(model.embed(batch.pixels_BCHW)), gather(model.text(batch.wordings))
    return contrastive_loss(model.similarity(image_BE, text_BE), gather(batch.class_B))


def fare_loss(model: DualEncoder, base: DualEncoder | None, batch: Batch, attack: InnerAttack) -> Tensor:
    """Keeps the embeddings of attacked images where the base has those of clean ones; no labels."""
    assert base is not None
    with torch.no_grad():
        clean_B1E = base.embed(batch.pixels_BCHW)[:, None]

    def distance(pixels: Tensor, index_B: Tensor) -> Tensor:
        return feature_distance(model.embed(pixels)[:, None], clean_B1E[index_B])

    images_BCHW = attack(distance, batch.pixels_BCHW)
    return distance(images_BCHW, torch.arange(len(images_BCHW))).mean()


def tecoa_loss(model: DualEncoder, base: DualEncoder | None, batch: Batch, attack: InnerAttack) -> Tensor:
    """Cross-entropy of attacked images over the base's captions."""
    assert base is not None
    return _supervised(model, base, batch, attack, model_text=False)


def advxl_loss(model: DualEncoder, base: DualEncoder | None, batch: Batch, attack: InnerAttack) -> Tensor:
    """Cross-entropy of attacked images over the captions; their tower is trained along, and attacked as it is."""
    return _supervised(model, model, batch, attack, model_text=True)


def _supervised(model: DualEncoder, labels: DualEncoder, batch: Batch, attack: InnerAttack, model_text: bool) -> Tensor:
    with torch.no_grad():
        fixed_KE = labels.text(batch.captions)

    def label_loss(pixels: Tensor, index_B: Tensor) -> Tensor:
        return cross_entropy(model.logits(pixels, fixed_KE), batch.class_B[index_B])

    images_BCHW = attack(label_loss, batch.pixels_BCHW)
    text_KE = model.text(batch.captions) if model_text else fixed_KE
    return F.cross_entropy(model.logits(images_BCHW, text_KE), batch.class_B)


ENCODER_OBJECTIVES.register("clip", EncoderObjective(clip_loss, False, "contrastive image-text training"))
ENCODER_OBJECTIVES.register("fare", EncoderObjective(fare_loss, True, "FARE fine-tuning (unsupervised)"))
ENCODER_OBJECTIVES.register("tecoa", EncoderObjective(tecoa_loss, True, "TeCoA fine-tuning (supervised)"))
ENCODER_OBJECTIVES.register(
    "advxl", EncoderObjective(advxl_loss, False, "adversarial pre-training from scratch, the text tower as label head")
)
