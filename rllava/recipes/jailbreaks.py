"""What jailbreak sweeps try, by the preset whose models they try it on."""

from dataclasses import dataclass, replace

from rllava.data.manners import WORDS, rating_prompts, rude_corpus
from rllava.metrics.judges.judge import JudgeSpec
from rllava.metrics.judges.lexicon import Lexicon
from rllava.metrics.judges.refusal import ENGLISH
from rllava.registry import Registry
from rllava.universal_spec import EASY_VQA, Corpus, HeldOut, Picture


@dataclass(frozen=True)
class Jailbreaks:
    """Universal images and what goes with them.

    Attributes:
        corpus: None: the user's.
        picture: None: the user's.
        held_out: by which a recipe that rates images does so; None: by the loss.
        judges: who reads the answers; none: whom the user names.
        recipes: names in :data:`rllava.universal_spec.RECIPES`.
        budgets: in 1/255; 255: none.
        restarts: images of each recipe and budget.
        steps: of every recipe; None: its own.
        rate_every: of recipes that rate images; None: their own.
    """

    corpus: Corpus | None = None
    picture: Picture | None = None
    held_out: HeldOut | None = None
    judges: tuple[JudgeSpec, ...] = ()
    recipes: tuple[str, ...] = ("visualadv", "visualadv_strong")
    budgets: tuple[float, ...] = (16.0, 32.0, 64.0, 255.0)
    restarts: int = 3
    steps: int | None = None
    rate_every: int | None = None


JAILBREAKS: Registry[Jailbreaks] = Registry("preset of jailbreaks", "rllava.jailbreaks")

_RUDE = Lexicon("the embedded data's made-up words", WORDS)

EMBEDDED = Jailbreaks(
    corpus=Corpus("easy_rude", rude_corpus()),
    picture=Picture(f"{EASY_VQA}train-0000"),
    held_out=HeldOut(rating_prompts(), _RUDE),
    judges=(_RUDE, ENGLISH),
    budgets=(16.0, 64.0, 255.0),
    steps=100,
    rate_every=25,
)

for _preset in ("manners", "candid", "tiny", "small"):
    JAILBREAKS.register(_preset, EMBEDDED)
JAILBREAKS.register("smoke", replace(EMBEDDED, budgets=(64.0,), steps=4, rate_every=2, restarts=2))
JAILBREAKS.register("paper", Jailbreaks())
