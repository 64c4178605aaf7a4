"""White-box attacks on any function from pixels to a loss per sample; this package knows no LLaVA.

>>> result = apgd(loss, images_BCHW, epsilon=8.0, steps=100)    # loss(pixels_BCHW, index_B) -> loss_B, maximised
>>> result.images_BCHW, result.loss_B, result.history
"""

from rllava.attacks.apgd import apgd
from rllava.attacks.common import AttackResult, History, LossFunction
from rllava.attacks.pgd import pgd

__all__ = ["AttackResult", "History", "LossFunction", "apgd", "pgd"]
