"""What a person sees of a sweep: the lines that belong there, and nothing else."""

import re

TIME = r"\d\d:\d\d:\d\d "
NAME = r"[\w.+@#:-]+"
SHOWN = r"(at [\d.]+/255|under [\w-]+|under images of \S+ at [\d.]+/255)"
LINES = (
    rf"{TIME}\w+: .*shards.*",
    rf"{TIME}[\w.-]+-v\d+: worst case per sample over rounds of .*",
    r"\w+: at most \d+ forward and \d+ backward passes .*",
    r"\S+ +\d+ steps of .*",
    rf"{TIME}\w+: \d+ candidates, \d+ with something to do; storage .*",
    rf"{TIME}messages of Ray and its workers: /.*\.log",
    rf"{TIME}{NAME} +(found in storage|waiting for|starting training workers|training stage \d: step) ?.*",
    rf"{TIME}{NAME} +evaluating: (\d+ parts to do|part \d+ of \d+ \(\w+ {SHOWN}: mean score [\d.]+\)).*",
    rf"{TIME}{NAME} +judging by {NAME}( and {NAME})*: (\d+ parts to do|part \d+ of \d+).*",
    rf"{TIME}{NAME} +started again \([^()]+\); kept: .*",
    rf"{TIME}{NAME} +training goes on from its last checkpoint \([^()]+\).*",
    rf"{TIME}{NAME} +done: (clean [\d.]+, at the largest budget|(clean [\d.]+, )?under all others) [\d.]+.*",
    r"cluster of \d+ nodes? with .*",
    r"note: .*",
    r"",
    r"(candidate +)?\| .*",
    rf"{NAME} +\|.*",
    r"-+[-+]*",
    r"ε in 1/255; .*",
    r"(one training|\d+( to \d+)? trainings) per candidate: intervals cover .*",
    rf"condition( +{NAME})+",
    r"(\w+-v\d+(\[\w+\])?|all conditions)( +-?\d+ ±\d+)+",
    r"percent of the candidate's own clean score that is lost, .*",
    rf"{NAME} \([^()]+\) flags: \w+ [\d.]+% of \d+(, \w+ [\d.]+% of \d+)*(; \d+ (empty|undecided|errors))*",
    rf"{NAME} and {NAME} on \w+, \w+: agree on [\d.]+% of \d+, kappa (-?[\d.]+|undefined)",
    r"one judge alone says little: .*",
    r"records: \S+   took \d+ min \d+ s",
    r"report:  \S+index\.html",
)
"""Everything that a sweep which ends well prints, line by line."""

LIVE = (
    r"\d+:\d\d( about \d+ (min|s) left)?",
    r"candidate +now",
    rf"{NAME} +\d+ % .*",
)
"""What a live table adds."""


def unexpected(output: str, more: tuple[str, ...] = ()) -> list[str]:
    """Lines that a person need not read.

    Args:
        output: what a sweep printed; colours and movements of a terminal are taken out.
        more: further patterns of lines that belong there.
    """
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", output).replace("\r", "\n")
    allowed = re.compile("|".join(f"(?:{line})" for line in (*LINES, *more)))
    return [line for line in plain.splitlines() if not allowed.fullmatch(line.strip())]
