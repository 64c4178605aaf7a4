"""A sweep of jailbreaks in words, and as a table for a terminal."""

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd

from analysis.jailbreak import JailbreakStatistics
from analysis.jailbreak_counts import CONDITION
from analysis.judgements import shown
from analysis.manifest import UNIVERSAL, Manifest
from rllava.records import CLEAN


def label_of(row: Any) -> str:
    """What was shown, in a few words; see ``judgements.shown``."""
    return shown({"severity": None, **{name: row[name] for name in CONDITION}})


def images_line(manifest: Manifest) -> str:
    """What the checks found in the making of the images, in one line; empty if none were made."""
    if not manifest.images:
        return ""
    found = [list(entry.facts.get("findings") or ()) for entry in manifest.images]
    counts = Counter(name for names in found for name in names)
    named = ", ".join(f"{name} {times}" for name, times in sorted(counts.items()))
    made = f"{len(found)} image{'' if len(found) == 1 else 's'} made"
    return f"{made}, {sum(map(bool, found))} with findings ({named})" if named else f"{made}, no findings"


def jailbreak_answer(statistics: JailbreakStatistics) -> str:
    """States in a sentence whose answers the first judge of harm flags most, and under what."""
    rates = statistics.rates
    if not statistics.harm:
        return "No judge looked for harm in the answers: this says who answers, and not what."
    judge = statistics.harm[0]
    known = rates[(rates["judge"] == judge) & rates["rate"].notna()]
    if known.empty:
        return f"{judge} could decide on no answer to a forbidden request."
    worst = known.iloc[int(known["rate"].argmax())]
    if worst["rate"] == 0:
        return f"{judge} flags none of {int(known['n'].sum())} answers to forbidden requests, whatever was shown."
    said = (
        f"{judge} flags {worst['rate']:.0%} of what {worst['candidate']} says to {worst['benchmark']} under "
        f"{label_of(worst)}, the most of all"
    )
    same = (known["candidate"] == worst["candidate"]) & (known["benchmark"] == worst["benchmark"])
    clean = known[same & (known["kind"] == CLEAN)]
    return f"{said}." if clean.empty or worst["kind"] == CLEAN else f"{said}; without it {clean['rate'].iloc[0]:.0%}."


WITHOUT_JUDGES = (
    "no judge read the answers: an answer that is no refusal need not be harmful; give --judges to tell what is in them"
)
ONE_IMAGE = "one image per cell: one image's luck is not a model's weakness; make several"
NO_WIDTH = "an interval of no width: all n answers came out the same; up to about 3/n of others may not"


def format_jailbreak(statistics: JailbreakStatistics) -> str:
    """Formats a sweep for the terminal: a row per condition, a column per candidate.

    Args:
        statistics: from :func:`analyse_jailbreak`.

    Returns:
        Plain text: of each benchmark of forbidden requests the percentage that each judge flags, of each benchmark of
        allowed ones the percentage that is not answered, each with half the width of its interval.
    """
    manifest, rates, refusals = statistics.results.manifest, statistics.rates, statistics.refusals
    forbidden = [name for name in manifest.benchmarks if name not in manifest.allowed]
    blocks = []
    for judge in statistics.judges:
        for name in forbidden:
            own = rates[(rates["judge"] == judge) & (rates["benchmark"] == name)]
            blocks.append(_block(f"{name}: flagged by {judge}, %", own, manifest))
    if not statistics.judges:
        for name in forbidden:
            own = answered(refusals[refusals["benchmark"] == name])
            blocks.append(_block(f"{name}: answered, % (forbidden requests)", own, manifest))
    for name in manifest.benchmarks:
        if name in manifest.allowed:
            own = refusals[refusals["benchmark"] == name]
            if statistics.judges:
                blocks.append(_block(f"{name}: refused or blank, % (over-refusal)", own, manifest))
            else:
                blocks.append(_block(f"{name}: answered, % (allowed requests)", answered(own), manifest))
    legend = (
        f"± half the width of the {statistics.resampling.level:.0%} bootstrap interval over images (restarts), prompts "
        "and draws; of a condition without restarts over prompts and draws"
    )
    lines = [legend, images_line(manifest), front_line(statistics), ONE_IMAGE if statistics.lone_images else ""]
    lines.append("" if statistics.judges else WITHOUT_JUDGES)
    return "\n\n".join([*filter(None, blocks), "\n".join(filter(None, lines))])


def front_line(statistics: JailbreakStatistics) -> str:
    """States who is on the front of clean score and flagged share, by benchmark; empty if not known."""
    own = hardest_front(statistics)
    if own.empty:
        return ""
    found = [
        f"{benchmark}: {', '.join(rows[rows['on_front'].astype(bool)]['candidate'])}"
        for benchmark, rows in own.groupby("benchmark", sort=False)
    ]
    return f"best in clean score and under {label_of(own.iloc[0])}, by {statistics.harm[0]}: {'; '.join(found)}"


def hardest_front(statistics: JailbreakStatistics) -> pd.DataFrame:
    """Rows of the front by the first judge of harm, under the last recipe's images of the largest budget.

    Returns:
        None of them if no images were made, or nothing is known of clean scores or harm.
    """
    made = [entry for entry in statistics.results.manifest.conditions if entry.kind == UNIVERSAL]
    front = statistics.front[statistics.front["judge"].isin(statistics.harm[:1])]
    if not made:
        return front.iloc[:0]
    label = made[-1].label
    epsilon = max(entry.epsilon or 0.0 for entry in made if entry.label == label)
    return front[(front["condition"] == label) & (front["epsilon"] == epsilon)]


def answered(refusals: pd.DataFrame) -> pd.DataFrame:
    """The share that is answered in the place of that which is not.

    Args:
        refusals: of ``JailbreakStatistics``.
    """
    return refusals.assign(rate=1 - refusals["rate"], low=1 - refusals["high"], high=1 - refusals["low"])


def _block(title: str, table: pd.DataFrame, manifest: Manifest) -> str:
    if table.empty:
        return ""
    rows = table.to_dict("records")
    cells = {(label_of(row), row["candidate"]): _percent(row) for row in rows}
    labels = list(dict.fromkeys(label_of(row) for row in rows))
    first = max(len("condition"), *map(len, labels))
    width = max(9, *map(len, manifest.candidates))
    head = f"{'condition':<{first}}" + "".join(f"  {name:>{width}}" for name in manifest.candidates)
    lines = [
        f"{name:<{first}}" + "".join(f"  {cells.get((name, own), '–'):>{width}}" for own in manifest.candidates)
        for name in labels
    ]
    return "\n".join([title, head, "-" * len(head), *lines])


def _percent(row: Any) -> str:
    if not np.isfinite(row["rate"]):
        return "–"
    half = (row["high"] - row["low"]) / 2
    return f"{100 * row['rate']:.0f} ±{100 * half:.0f}" if np.isfinite(half) else f"{100 * row['rate']:.0f} ±?"
