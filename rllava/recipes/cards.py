"""What robustness cards show, by the preset whose models they are of."""

from dataclasses import dataclass

from rllava.registry import Registry


@dataclass(frozen=True)
class Card:
    """What stands beside the preset's clean answers.

    Attributes:
        benchmarks: those that stand beside the preset's own, by name.
        budgets: of the preset's own attacks, in 1/255, which are found where its ablation has run; none: all of them.
        corruptions: by name.
        conditions: others, as a command line names them.
        transferred: whether the stored images of the first candidate are shown to all.
    """

    benchmarks: tuple[str, ...] = ()
    budgets: tuple[float, ...] = ()
    corruptions: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()
    transferred: bool = True


CARDS: Registry[Card] = Registry("preset of cards", "rllava.cards")

FAMILIES = ("gaussian_noise", "defocus_blur", "fog", "jpeg_compression")
"""One corruption of each family, so that the embedded card takes minutes: noise, blur, weather, digital."""

EMBEDDED_BENCHMARKS = ("easy_yes_no",)
"""Of the embedded data, beside the preset's own."""

EMBEDDED_CONDITIONS = ("typographic", "prompted:ac")
"""Of the embedded models, beside clean images, attacks and corruptions."""

PAPER_BENCHMARKS = ("pope_random", "pope_popular", "pope_adversarial", "scienceqa_image")
PAPER_CONDITIONS = ("typographic", "prompted:ap", "prompted:ac", "prompted:rand_str", "prompted:rand_sent")
"""The same at full size."""

ALL = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
"""The fifteen of ImageNet-C."""

CARDS.register("tiny", Card(EMBEDDED_BENCHMARKS, (4.0, 8.0), FAMILIES, EMBEDDED_CONDITIONS))
CARDS.register("smoke", Card(EMBEDDED_BENCHMARKS, (), ("fog", "jpeg_compression"), EMBEDDED_CONDITIONS))
CARDS.register("paper", Card(PAPER_BENCHMARKS, (), ALL, PAPER_CONDITIONS))
