"""Attacks on any function from pixels to a loss per sample; this package knows no LLaVA.

>>> result = apgd(loss, images_BCHW, epsilon=8.0, steps=100)    # loss(pixels_BCHW, index_B) -> loss_B, maximised
>>> result.images_BCHW, result.loss_B, result.history
>>> check_attack(loss, images_BCHW, result, epsilon=8.0, seeds=range(len(images_BCHW)))    # did it work?

A classifier is attacked through :func:`classifier_loss`; :mod:`rllava.attacks.autoattack` is the field's yardstick.
"""

from rllava.attacks.apgd import apgd
from rllava.attacks.checks import Finding, check_attack, compare_results
from rllava.attacks.common import AttackResult, History, LossFunction, Norm
from rllava.attacks.losses import classifier_loss
from rllava.attacks.noise import QueryResult, random_noise
from rllava.attacks.pgd import pgd
from rllava.attacks.square import square
from rllava.attacks.universal import UniversalAttack, UniversalResult, UniversalSettings, universal
from rllava.check_names import CHECKS

__all__ = [
    "CHECKS",
    "AttackResult",
    "Finding",
    "History",
    "LossFunction",
    "Norm",
    "QueryResult",
    "UniversalAttack",
    "UniversalResult",
    "UniversalSettings",
    "apgd",
    "check_attack",
    "classifier_loss",
    "compare_results",
    "pgd",
    "random_noise",
    "square",
    "universal",
]
