"""Evidence that the attacks worked, per candidate and budget: what the records tell about gradients and losses."""

from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.cells import require_one_evaluation
from analysis.scores import Scores, is_error
from rllava.check_names import CHECKS, LAST_RISE_LIMIT, ZERO_GRADIENT_LIMIT

ATTACK = "attack"
"""Kind of the conditions that have such evidence."""

ROUNDING_LIMIT = 1.0
LINF_SLACK = 1e-3

RISING_LIMIT = 0.1
"""Share of samples that may score higher at a larger budget: both attacks end in local maxima."""

_CHECKS = {check.name: check for check in CHECKS}


@dataclass(frozen=True)
class Flag:
    """A reason to distrust a robust score.

    Attributes:
        epsilon: budget of the score, in 1/255.
        check: name of the attack check, or of what was seen.
        text: what was seen, with numbers.
        means: what it says about the score.
    """

    candidate: str
    epsilon: float
    check: str
    text: str
    means: str
    remedy: str


def attack_evidence(records: pd.DataFrame, scores: Scores) -> pd.DataFrame:
    """Tabulates the attack's evidence over the attacked samples (those with at least one round).

    Args:
        scores: the same records as arrays.

    Returns:
        One row per candidate and positive budget, over all benchmarks: ``attacked`` samples; ``not_beaten``, the share
        of them that no round lowered; ``steps`` (mean); ``zero_gradients`` (mean share of exactly zero gradients);
        ``loss_clean`` and ``loss_best`` (means); ``last_rise``, the share of the loss's rise that came in the last
        tenth of the steps, over samples that score more than 0; ``score_float`` and ``score_8bit``, means over the
        attacked samples before and after rounding the image to 8 bits; ``linf`` (largest, in 1/255); ``checked``
        samples of the attack checks, and a
        column ``check_NAME`` per check with the share of them that raised it; ``rising``, the share of samples that
        score higher than at some smaller positive budget, which a perfect attack would never leave.

    Raises:
        UserError: if the records mix evaluations (see ``cells``).
    """
    require_one_evaluation(records)
    valid = records[~is_error(records) & (records["kind"] == ATTACK)]
    rows = []
    for candidate in scores.candidates:
        for epsilon in scores.epsilons:
            if epsilon > 0:
                cell = valid[(valid["candidate"] == candidate) & (valid["epsilon"] == epsilon)]
                attacked = cell[cell["rounds"].map(len) > 0]
                evidence = _cell_evidence(attacked)
                rising = _rising_share(scores, candidate, epsilon)
                rows.append({"candidate": candidate, "epsilon": epsilon, **evidence, "rising": rising})
    return pd.DataFrame(rows, columns=list(_COLUMNS))


_MEANS = (
    "not_beaten", "steps", "zero_gradients", "loss_clean", "loss_best", "last_rise", "score_float", "score_8bit",
    "linf",
)  # fmt: skip
_COLUMNS = ("candidate", "epsilon", "attacked", *_MEANS, "checked", *(f"check_{name}" for name in _CHECKS), "rising")


def attack_flags(evidence: pd.DataFrame) -> list[Flag]:
    """Lists what in the evidence speaks against trusting a robust score."""
    flags = []
    for row in evidence.to_dict("records"):
        seen: dict[str, tuple[str, str, str]] = {}
        if row["linf"] > row["epsilon"] + LINF_SLACK:
            text = f"an image left the budget (L∞ {row['linf']:.3f} > {row['epsilon']:g})"
            seen["budget"] = (text, "The score is void.", "Report this: attacks must keep their budget.")
        if row["score_8bit"] - row["score_float"] > ROUNDING_LIMIT:
            text = f"rounding to 8 bits gives {row['score_8bit'] - row['score_float']:.1f} points back"
            seen["rounding"] = (text, "Part of the attack is below 1/255.", "Quote the 8-bit score for image files.")
        for name, text in _raised(row).items():
            seen[name] = (text, _CHECKS[name].means, _CHECKS[name].remedy)
        flags += [Flag(row["candidate"], row["epsilon"], name, *texts) for name, texts in seen.items()]
    return flags


def _raised(row: Mapping[Hashable, Any]) -> dict[str, str]:
    """What each raised check saw: in the attack checks of single samples, or in the means over all of them."""
    raised = {
        name: f"{row[f'check_{name}']:.0%} of {row['checked']} checked samples raise {name}"
        for name in _CHECKS
        if row[f"check_{name}"] > _CHECKS[name].limit
    }
    if row["zero_gradients"] > ZERO_GRADIENT_LIMIT:
        raised["zero_gradient"] = f"{row['zero_gradients']:.0%} of the gradients are exactly zero"
    if row["last_rise"] > LAST_RISE_LIMIT:
        raised["still_rising"] = f"{row['last_rise']:.0%} of the loss's rise came in the last tenth of steps"
    if row["rising"] > RISING_LIMIT:
        raised["larger_budget_weaker"] = f"{row['rising']:.0%} of the samples score higher than at a smaller budget"
    return raised


def _cell_evidence(attacked: pd.DataFrame) -> dict[str, float]:
    shares = check_shares(attacked)
    if attacked.empty:
        return {"attacked": 0, **dict.fromkeys(_MEANS, float("nan")), **shares}
    # An attack that was won needs no more steps, and ended before its step size could fall.
    open_ = attacked[attacked["score"] > 0]
    rise = (open_["loss_best"] - open_["loss_clean"]).sum()
    rounded = attacked[attacked["score_8bit"].notna()]
    return {
        "attacked": len(attacked),
        "not_beaten": float((attacked["best_round"] == "clean").mean()),
        "steps": float(attacked["steps"].mean()),
        "zero_gradients": float(attacked["zero_gradient_share"].mean()),
        "loss_clean": float(attacked["loss_clean"].mean()),
        "loss_best": float(attacked["loss_best"].mean()),
        "last_rise": float(open_["loss_last_rise"].sum() / rise) if rise > 0 else float("nan"),
        "score_float": float(rounded["score"].mean()),
        "score_8bit": float(rounded["score_8bit"].mean()),
        "linf": float(attacked["linf"].max()),
        **shares,
    }


def check_shares(attacked: pd.DataFrame) -> dict[str, float]:
    """Samples ``checked``, and per check the share of them that raised it, as ``check_NAME``."""
    checked = attacked[attacked["checked"] == True]  # noqa: E712 (null: not checked)
    raised = Counter(name for names in checked["findings"] for name in names)
    shares = {f"check_{name}": raised[name] / len(checked) if len(checked) else float("nan") for name in _CHECKS}
    return {"checked": len(checked), **shares}


def _rising_share(scores: Scores, candidate: str, epsilon: float) -> float:
    c, e = scores.cell(candidate, epsilon)
    smaller = [index for index, budget in enumerate(scores.epsilons) if 0 < budget < epsilon]
    if not smaller:
        return float("nan")
    rises = []
    for name in scores.benchmarks:
        here_S, before_SE = scores.values[name][:, c, e], scores.values[name][:, c, smaller]
        known_S = np.isfinite(here_S) & np.isfinite(before_SE).any(axis=1)
        lowest_S = np.min(np.where(np.isfinite(before_SE), before_SE, np.inf), axis=1)
        rises.append((here_S > lowest_S + 1e-6)[known_S])
    joined = np.concatenate(rises)
    return float(joined.mean()) if len(joined) else float("nan")
