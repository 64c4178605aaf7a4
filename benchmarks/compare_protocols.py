"""Two protocols on the same samples: which is the stronger attack, sample by sample, and what each costs.

    python sweeps/encoder_ablation.py --storage results --protocol paper_ensemble --attack-precision float32
    python sweeps/encoder_ablation.py --storage results --protocol fast --attack-precision float32
    python -m benchmarks.compare_protocols --storage results

Reads the records of both. A protocol is stronger on a sample if its score is lower.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.cells import require_one_evaluation, require_one_model
from analysis.loading import load_records
from analysis.scores import is_error
from benchmarks.common import write_sheet
from rllava.errors import UserError
from sweeps.console import run_script

KEY = ["candidate", "benchmark", "epsilon", "sample_id"]
TOLERANCE = 1e-6
"""Scores closer than this are equal."""

REMEDY = "leave the others out with --leave-out FINGERPRINT"


@dataclass(frozen=True)
class Options:
    """What to compare.

    Attributes:
        storage: results folder with the records of both protocols.
        protocol: name and version of the one that is judged.
        reference: name and version of the other.
        output: Markdown file to write.
        leave_out: fingerprints of models or evaluations whose records are not read, where the storage holds several
            under one name.
    """

    storage: str = "results"
    protocol: str = "fast_float32-v1"
    reference: str = "paper_ensemble_float32-v1"
    output: Path = Path("benchmarks/sheets/compare_protocols.md")
    leave_out: tuple[str, ...] = ()


def paired(records: pd.DataFrame, protocol: str, reference: str) -> pd.DataFrame:
    """Joins the records of two protocols.

    Args:
        protocol: name and version of one.

    Returns:
        A row per sample, candidate, benchmark and positive budget that both attacked; the reference's columns end in
        ``_reference``.

    Raises:
        UserError: if one of them has no records or several evaluations of one cell, if a candidate's name stands for
            several models, or if they share no sample.
    """
    valid = records[~is_error(records) & (records["epsilon"] > 0)]
    sides = []
    for name in (protocol, reference):
        sides.append(valid[valid["condition"] == name])
        if sides[-1].empty:
            known = ", ".join(sorted(valid["condition"].unique())) or "none"
            raise UserError(f"no records of protocol {name} here (there are: {known}); run the sweep with --protocol")
        require_one_evaluation(sides[-1], REMEDY)
    require_one_model(pd.concat(sides), REMEDY)  # else two trainings would be compared, not two protocols
    joined = sides[0].merge(sides[1], on=KEY, suffixes=("", "_reference"))
    if joined.empty:
        raise UserError(f"{protocol} and {reference} have no sample in common; run both on the same grid")
    return joined


def compare(joined: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Counts who is stronger.

    Args:
        joined: from :func:`paired`.

    Returns:
        Per group: ``samples``, means ``score`` and ``score_reference``, samples on which the judged protocol's score is
        ``lower``, ``equal`` or ``higher``, and gradient ``steps`` and ``steps_reference``, summed.
    """
    difference = joined["score"] - joined["score_reference"]
    marked = joined.assign(
        samples=1, lower=difference < -TOLERANCE, higher=difference > TOLERANCE, equal=difference.abs() <= TOLERANCE
    )
    means = marked.groupby(by)[["score", "score_reference"]].mean()
    sums = marked.groupby(by)[["samples", "lower", "equal", "higher", "steps", "steps_reference"]].sum()
    return sums.join(means).reset_index()


def main(options: Options) -> None:
    """Compares and writes the sheet.

    Args:
        options: see :class:`Options`.
    """
    records = load_records(options.storage)
    left_out = records["model"].isin(options.leave_out) | records["evaluation"].isin(options.leave_out)
    joined = paired(records[~left_out], options.protocol, options.reference).assign(everything="all")
    rows = []
    for by in (["benchmark", "epsilon"], ["benchmark"], ["everything"]):
        for row in compare(joined, by).to_dict("records"):
            name = " ".join(f"{row[column]:g}/255" if column == "epsilon" else str(row[column]) for column in by)
            rows.append(
                (
                    name,
                    f"{row['samples']}",
                    f"{row['score']:.2f}",
                    f"{row['score_reference']:.2f}",
                    f"{row['lower']}",
                    f"{row['equal']}",
                    f"{row['higher']}",
                    f"{row['steps']:,}",
                    f"{row['steps_reference']:,}",
                    f"{row['steps_reference'] / max(row['steps'], 1):.2f}",
                )
            )
            print(*rows[-1], sep=" | ")
    candidates = ", ".join(sorted(joined["candidate"].unique()))
    write_sheet(
        options.output,
        f"{options.protocol} beside {options.reference}",
        f"`python -m benchmarks.compare_protocols`: the same samples of {candidates}.\nLower scores mean a stronger "
        "attack. Steps: gradient evaluations, summed.",
        (
            "benchmark, budget", "samples", f"score, {options.protocol}", f"score, {options.reference}", "lower",
            "equal", "higher", "steps", "steps, reference", "ratio",
        ),
        rows,
    )  # fmt: skip


if __name__ == "__main__":
    run_script(main, Options, __doc__)
