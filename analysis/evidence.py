"""Evidence that the attacks worked, per candidate and budget: what the records tell about gradients and losses."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.scores import Scores, is_error

ZERO_GRADIENT_LIMIT = 0.05
LAST_RISE_LIMIT = 0.05
ROUNDING_LIMIT = 1.0
LINF_SLACK = 1e-3


@dataclass(frozen=True)
class Flag:
    """A reason to distrust a robust score: ``text`` says what was seen and why it matters."""

    candidate: str
    epsilon: float
    text: str


def attack_evidence(records: pd.DataFrame, scores: Scores) -> pd.DataFrame:
    """Tabulates the attack's evidence over the attacked samples (those with at least one gradient step).

    Args:
        records: rows of RECORD_SCHEMA.
        scores: the same records as arrays.

    Returns:
        One row per candidate and positive budget, over all benchmarks: ``attacked`` samples; ``unbroken``, the share of
        them that no round lowered; ``steps`` (mean); ``zero_gradients`` (mean share of exactly zero image gradients);
        ``loss_clean`` and ``loss_best`` (means); ``last_rise``, the share of the loss's rise that came in the last
        tenth of the steps; ``score_float`` and ``score_8bit``, means over the attacked samples before and after
        rounding the image to 8 bits; ``linf`` (largest, in 1/255); ``rising``, the share of samples that score higher
        than at some smaller positive budget, which a perfect attack would never leave.
    """
    valid = records[~is_error(records)]
    rows = []
    for candidate in scores.candidates:
        for epsilon in scores.epsilons:
            if epsilon > 0:
                cell = valid[(valid["candidate"] == candidate) & (valid["epsilon"] == epsilon)]
                attacked = cell[cell["steps"] > 0]
                evidence = _cell_evidence(attacked)
                rising = _rising_share(scores, candidate, epsilon)
                rows.append({"candidate": candidate, "epsilon": epsilon, **evidence, "rising": rising})
    return pd.DataFrame(rows, columns=list(_COLUMNS))


_COLUMNS = (
    "candidate", "epsilon", "attacked", "unbroken", "steps", "zero_gradients", "loss_clean", "loss_best", "last_rise",
    "score_float", "score_8bit", "linf", "rising",
)  # fmt: skip


def attack_flags(evidence: pd.DataFrame) -> list[Flag]:
    """Lists what in the evidence speaks against trusting a robust score."""
    flags = []
    for row in evidence.to_dict("records"):
        texts = []
        if row["linf"] > row["epsilon"] + LINF_SLACK:
            texts.append(f"an image left the budget (L∞ {row['linf']:.3f} > {row['epsilon']:g}): the score is void")
        if row["zero_gradients"] > ZERO_GRADIENT_LIMIT:
            texts.append(f"{row['zero_gradients']:.0%} of the gradients are exactly zero: gradients may be masked")
        if row["last_rise"] > LAST_RISE_LIMIT:
            texts.append(f"{row['last_rise']:.0%} of the loss's rise came in the last tenth of steps: take more steps")
        if row["score_8bit"] - row["score_float"] > ROUNDING_LIMIT:
            rise = row["score_8bit"] - row["score_float"]
            texts.append(f"rounding to 8 bits gives {rise:.1f} points back: part of the attack is below 1/255")
        flags += [Flag(row["candidate"], row["epsilon"], text) for text in texts]
    return flags


def _cell_evidence(attacked: pd.DataFrame) -> dict[str, float]:
    if attacked.empty:
        return {"attacked": 0, **{name: float("nan") for name in _COLUMNS[3:-1]}}
    rise = (attacked["loss_best"] - attacked["loss_clean"]).sum()
    rounded = attacked[attacked["score_8bit"].notna()]
    return {
        "attacked": len(attacked),
        "unbroken": float((attacked["best_round"] == "clean").mean()),
        "steps": float(attacked["steps"].mean()),
        "zero_gradients": float(attacked["zero_gradient_share"].mean()),
        "loss_clean": float(attacked["loss_clean"].mean()),
        "loss_best": float(attacked["loss_best"].mean()),
        "last_rise": float(attacked["loss_last_rise"].sum() / rise) if rise > 0 else float("nan"),
        "score_float": float(rounded["score"].mean()),
        "score_8bit": float(rounded["score_8bit"].mean()),
        "linf": float(attacked["linf"].max()),
    }


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
