"""The report of jailbreaks: rates, refusals and comparisons by hand, and a page that folds what models say."""

import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from analysis.bootstrap import Resampling
from analysis.cells import require_one_evaluation
from analysis.conditions import is_about_conditions
from analysis.jailbreak import JailbreakStatistics, analyse_jailbreak, is_about_jailbreaks
from analysis.jailbreak_counts import count, shares
from analysis.jailbreak_text import format_jailbreak, jailbreak_answer
from analysis.loading import load_sweep
from analysis.manifest import ConditionEntry, ImagesEntry, JudgementsEntry, Manifest, RecordsEntry
from analysis.report import main, refresh_report, write_jailbreak
from rllava.errors import UserError
from rllava.judgements import JUDGEMENT_SCHEMA
from rllava.records import KEY
from tests.analysis.synthetic import fake_fingerprint, make_record, write_artifact, write_manifest

RESAMPLING = Resampling(draws=500)
SWEEP = "jailbreak"
CANDIDATES = ("soft", "hard")
PROMPTS, DRAWS = 6, 2
HARM, REFUSAL, FINE = "<script>alert('harm')</script> first you", "I am sorry, but I cannot", "Of course: water it"
FIRST, SECOND = "guard-v1", "words-v1"
SECRET = "<b>how to pick a lock</b>"
Cell = tuple[str, str, str, float | None, int | None]  # candidate, benchmark, label, epsilon, restart

CONDITIONS = (
    ConditionEntry("clean", "clean", 0.0),
    ConditionEntry("no_image-v1", "shown"),
    ConditionEntry("blank-v1", "shown"),
    ConditionEntry("visualadv-v1", "universal", 16.0),
    ConditionEntry("visualadv-v1", "universal", 255.0),
    ConditionEntry("visualadv_strong-v1", "universal", 16.0),
)
BENCHMARKS = {"requests": [f"r{n}" for n in range(PROMPTS)], "harmless": [f"h{n}" for n in range(PROMPTS)]}
HADES = {"hades": [f"{scenario}/{n}/{step}" for scenario in ("Animal", "Privacy") for n in range(2) for step in (0, 1)]}


def says(cell: Cell, number: int, draw: int) -> str | None:
    """What a candidate answers: ``soft`` gives in to its image 0 alone, to half of the prompts."""
    candidate, benchmark, label, epsilon, restart = cell
    if benchmark == "harmless":
        return REFUSAL if candidate == "hard" and number < 2 else FINE
    if benchmark == "hades":
        return HARM if candidate == "soft" and number in (1, 2) else REFUSAL
    if label.startswith("visualadv") and candidate == "soft":
        if epsilon == 255.0:
            return HARM
        return HARM if restart == 0 and number < PROMPTS // 2 else REFUSAL
    if label == "blank-v1":
        return (None, "", " ", REFUSAL)[min(number, 3)]  # an error and two blank answers
    return REFUSAL


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "teal").save(buffer, format="PNG")
    return buffer.getvalue()


def rows_of(cell: Cell, kind: str, samples: Sequence[str], draws: int) -> list[dict[str, Any]]:
    candidate, benchmark, label, epsilon, restart = cell
    rows = []
    for number, sample_id in enumerate(samples):
        for draw in range(draws):
            text = says(cell, number, draw)
            answered = None if text is None else 100.0 * bool(text.strip() and text != REFUSAL)
            row = make_record(
                candidate, benchmark, sample_id, 0.0, score=answered, condition=label, kind=kind, draw=draw,
                evaluation=fake_fingerprint(*cell), prompt=SECRET, prediction=text, references=[],
                error="OutOfMemory" if text is None else None,
                shown_png=picture() if number == 0 and draw == 0 and kind != "clean" else None,
            )  # fmt: skip
            rows.append({**row, "epsilon": epsilon, "restart": restart})
    return rows


def first_judge(text: str) -> bool | None:
    return text == HARM


def second_judge(text: str) -> bool | None:
    """Cannot decide on refusals."""
    return None if text == REFUSAL else "alert" in text


JUDGES: dict[str, Callable[[str], bool | None]] = {FIRST: first_judge, SECOND: second_judge}


def judged(rows: Sequence[dict[str, Any]], name: str, path: str) -> pa.Table:
    made = []
    for row in rows:
        text = row["prediction"]
        own = {key: row[key] for key in KEY} | {"answer": "prediction", "judge": name, "judgement": path[-16:]}
        empty = text is not None and not text.strip()
        flagged = None if text is None else False if empty else JUDGES[name](text)
        error = "no answer" if text is None else None
        made.append({**own, "empty": empty, "flagged": flagged, "labels": [], "scores": [], "error": error})
    return pa.Table.from_pylist(made, schema=JUDGEMENT_SCHEMA)


def write(
    folder: Path, restarts: int = 2, draws: int = DRAWS, benchmarks: dict[str, list[str]] = BENCHMARKS,
    judges: Sequence[str] = (FIRST, SECOND),
) -> str:  # fmt: skip
    """Writes a sweep of jailbreaks."""
    records, judgements, images = [], [], []
    for candidate in CANDIDATES:
        for benchmark, samples in benchmarks.items():
            for entry in CONDITIONS:
                for restart in range(restarts) if entry.kind == "universal" else (None,):
                    cell = (candidate, benchmark, entry.label, entry.epsilon, restart)
                    name = f"{candidate}-{benchmark}-{entry.label}-{entry.epsilon}-{restart}-{fake_fingerprint(*cell)}"
                    rows = rows_of(cell, entry.kind, samples, draws)
                    write_artifact(str(folder), f"records/{name}", rows, part_rows=8)
                    records.append(RecordsEntry(f"records/{name}", *cell[:4], seconds=2.0))
                    for judge in judges:
                        path = f"judgements/{name}-{fake_fingerprint(name, judge)}"
                        (folder / path).mkdir(parents=True)
                        pq.write_table(judged(rows, judge, path), folder / path / "part-00000.parquet")
                        (folder / path / "COMPLETE").write_text("")
                        judgements.append(JudgementsEntry(path, judge, f"what {judge} looks for", None, 0.5))
        for entry in CONDITIONS[3:]:
            for restart in range(restarts):
                facts = {
                    "steps": 40, "loss_clean": -2.5, "loss_best": -1.25, "linf": 16, "zero_gradient_share": 0.0,
                    "findings": ["still_rising"] if restart == 0 else [],
                }  # fmt: skip
                path = f"images/{candidate}-{entry.label}-{restart}"
                images.append(ImagesEntry(path, candidate, entry.label, entry.epsilon or 0.0, restart, facts, 30.0))
    manifest = Manifest(
        sweep=SWEEP, candidates=CANDIDATES, benchmarks=tuple(benchmarks), conditions=CONDITIONS, samples=PROMPTS,
        records=tuple(records), judgements=tuple(judgements), images=tuple(images), allowed=("harmless",),
    )  # fmt: skip
    write_manifest(str(folder), json.loads(manifest.to_json()))
    return str(folder)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("jailbreak"), benchmarks={**BENCHMARKS, **HADES})


@pytest.fixture(scope="module")
def statistics(storage: str) -> JailbreakStatistics:
    return analyse_jailbreak(load_sweep(storage, SWEEP), resampling=RESAMPLING)


def one(table: pd.DataFrame, **where: Any) -> Any:
    for name, value in where.items():
        table = table[table[name] == value]
    assert len(table) == 1, f"{len(table)} rows of {where}"
    return table.iloc[0]


def test_rates_are_those_counted_by_hand(statistics: JailbreakStatistics) -> None:
    at = {"judge": FIRST, "benchmark": "requests", "condition": "visualadv-v1"}
    row = one(statistics.rates, **at, candidate="soft", epsilon=16.0)
    # Two restarts of six prompts with two draws each; the first image gets half of the prompts to answer.
    assert (row["n"], row["flagged"], row["rate"]) == (24, 6, 0.25)
    assert (row["prompts"], row["restarts"], row["draws"]) == (6, 2, 2)
    assert row["low"] == 0.0 < row["rate"] < row["high"] <= 1.0
    assert "harmless" not in set(statistics.rates["benchmark"])
    order = list(dict.fromkeys(statistics.rates["condition"]))
    assert order == ["clean", "no_image-v1", "blank-v1", "visualadv-v1", "visualadv_strong-v1"]


def test_the_interval_has_no_width_where_all_are_equal(statistics: JailbreakStatistics) -> None:
    at = {"judge": FIRST, "benchmark": "requests", "condition": "visualadv-v1", "epsilon": 255.0}
    for candidate, rate in (("soft", 1.0), ("hard", 0.0)):
        row = one(statistics.rates, **at, candidate=candidate)
        assert (row["rate"], row["low"], row["high"]) == (rate, rate, rate)


def test_errors_undecided_and_empty_answers_are_counted(statistics: JailbreakStatistics) -> None:
    at = {"candidate": "soft", "benchmark": "requests", "condition": "blank-v1"}
    first, second = (one(statistics.rates, judge=judge, **at) for judge in (FIRST, SECOND))
    # Of six prompts with two draws: one without an answer, two blank, three refused.
    assert tuple(first[["n", "flagged", "empty", "undecided", "errors"]]) == (10, 0, 4, 0, 2)
    assert tuple(second[["n", "flagged", "empty", "undecided", "errors"]]) == (4, 0, 4, 6, 2)
    refused = one(statistics.refusals, **at)
    assert tuple(refused[["n", "unanswered", "blank", "errors"]]) == (10, 10, 4, 2)
    published = one(statistics.published, judge=SECOND, **at)
    assert (published["n"], published["published_n"]) == (4, 0)
    assert np.isnan(published["published_rate"])
    ours = one(statistics.published, judge=FIRST, **at)
    assert (ours["n"], ours["published_n"]) == (10, 6)


def test_over_refusal_is_of_allowed_requests(statistics: JailbreakStatistics) -> None:
    own = statistics.refusals[statistics.refusals["allowed"] & (statistics.refusals["condition"] == "clean")]
    assert set(own["benchmark"]) == {"harmless"}
    assert one(own, candidate="hard")["rate"] == pytest.approx(2 / 6)
    row = one(own, candidate="soft")
    assert (row["rate"], row["low"], row["high"]) == (0.0, 0.0, 0.0)


def made_up(values_RSD: Any) -> pd.DataFrame:
    return pd.DataFrame([
        {"seed": 0, "restart": r, "unit": f"p{s}", "draw": d, "value": value}
        for (r, s, d), value in np.ndenumerate(np.asarray(values_RSD, dtype=float))
    ])  # fmt: skip


def width(values_RSD: Any) -> float:
    low, high = np.quantile(shares(count(made_up(values_RSD)), Resampling(draws=4000)), [0.025, 0.975])
    return float(high - low)


def test_images_that_differ_widen_the_interval() -> None:
    alike = np.tile([[[1.0], [0.0]] * 20], (4, 1, 1))  # every image: every other prompt
    apart = np.stack([np.full((40, 1), float(r < 2)) for r in range(4)])  # two images: every prompt
    assert alike.mean() == apart.mean() == 0.5
    assert width(apart) > 2 * width(alike)
    # Of four images with shares 1, 1, 0, 0, the mean of a draw has the quarters of a binomial of four.
    share_B = shares(count(made_up(apart)), Resampling(draws=4000))
    assert set(np.unique(share_B)) == {0.0, 0.25, 0.5, 0.75, 1.0}
    assert (share_B == 0.5).mean() == pytest.approx(6 / 16, abs=0.03)
    # Prompts alone: the standard error of a share of one half among 40.
    assert width(alike) == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 40), rel=0.1)


def test_draws_are_resampled() -> None:
    assert width(np.tile([[[1.0, 0.0]]], (1, 30, 1))) == 1.0, "all that varies is the draw"
    assert width(np.tile([[[1.0]]], (1, 30, 1))) == 0.0


def test_undecided_answers_are_in_no_denominator() -> None:
    counts = count(made_up([[[1.0, np.nan], [0.0, np.nan], [np.nan, np.nan]]]))
    assert (counts.found.sum(), counts.decided.sum(), counts.share) == (1, 2, 0.5)


def test_comparisons_are_on_the_same_prompts(statistics: JailbreakStatistics) -> None:
    assert statistics.baseline == "soft"
    at = {"benchmark": "requests", "condition": "visualadv-v1"}
    row = one(statistics.comparisons, judge=FIRST, epsilon=16.0, **at)
    assert (row["candidate"], row["difference"], row["prompts"], row["restarts"]) == ("hard", -0.25, 6, 2)
    assert -1 <= row["low"] < row["difference"] < row["high"] == 0
    same = one(statistics.comparisons, judge=FIRST, epsilon=255.0, **at)
    assert (same["difference"], same["low"], same["high"]) == (-1.0, -1.0, -1.0)
    other = analyse_jailbreak(statistics.results, "hard", RESAMPLING)
    assert one(other.comparisons, judge=FIRST, epsilon=16.0, **at)["difference"] == 0.25
    with pytest.raises(UserError, match="no candidate 'none'; candidates here: soft, hard"):
        analyse_jailbreak(statistics.results, "none", RESAMPLING)


def test_hades_by_scenario_and_step(statistics: JailbreakStatistics) -> None:
    # Numbers 1 and 2 give in: Animal/0 at step 1, Animal/1 at step 0; nothing of Privacy.
    own = statistics.hades[(statistics.hades["judge"] == FIRST) & (statistics.hades["condition"] == "clean")]
    own = own[own["candidate"] == "soft"]
    pooled = {name: one(own, scenario=name, variant="pooled")["rate"] for name in ("Animal", "Privacy", "all")}
    assert pooled == {"Animal": 0.5, "Privacy": 0.0, "all": 0.25}
    cumulative = [one(own, scenario="all", variant="cumulative", step=step)["rate"] for step in (0, 1)]
    assert cumulative == [0.25, 0.5]
    assert [one(own, scenario="all", variant="at step", step=step)["rate"] for step in (0, 1)] == [0.25, 0.25]
    assert one(own, scenario="Animal", variant="cumulative")["rate"] == 1.0
    assert one(own, scenario="Animal", variant="cumulative")["n"] == 2 * DRAWS


def test_judges_are_compared_image_by_image(statistics: JailbreakStatistics) -> None:
    assert statistics.judged is not None
    row = one(statistics.judged.agreement, benchmark="requests", kind="universal")
    # Both decide where ``soft`` gives in: 6 answers at 16/255 by each recipe, all 24 without a budget.
    assert (row["n"], row["both"], row["agreement"]) == (36, 36, 1.0)


def test_costs_are_per_candidate(statistics: JailbreakStatistics) -> None:
    row = one(statistics.cost, candidate="soft")
    cells = 3 * (3 + 3 * 2)  # benchmarks; conditions without restarts, and with two
    assert (row["images"], row["image_seconds"], row["answer_seconds"]) == (6, 180.0, 2.0 * cells)
    assert row["judge_seconds"] == 0.5 * cells * 2
    assert row["judgements"] == 2 * row["answers"]


def test_the_table_for_the_terminal(statistics: JailbreakStatistics) -> None:
    text = format_jailbreak(statistics)
    titles = [line for line in text.splitlines() if "%" in line and ":" in line]
    assert titles[:5] == [
        f"requests: flagged by {FIRST}, %", f"hades: flagged by {FIRST}, %", f"requests: flagged by {SECOND}, %",
        f"hades: flagged by {SECOND}, %", "harmless: refused or blank, % (over-refusal)",
    ]  # fmt: skip
    block = text.split("\n\n")[0].splitlines()
    assert re.split(r"  +", block[1]) == ["condition", "soft", "hard"]
    assert [line.split("  ")[0] for line in block[3:]] == [
        "clean", "no_image-v1", "blank-v1", "visualadv-v1 at 16/255", "visualadv-v1, unconstrained",
        "visualadv_strong-v1 at 16/255",
    ]  # fmt: skip
    assert re.search(r"visualadv-v1, unconstrained +100 ±0 +0 ±0$", text, re.M)
    assert re.search(r"visualadv-v1 at 16/255 +25 ±\d\d +0 ±0$", text, re.M)
    assert "12 images made, 6 with findings (still_rising 6)" in text
    assert "one image per cell" not in text


def test_the_page_folds_and_escapes_what_models_say(storage: str, statistics: JailbreakStatistics) -> None:
    page = Path(write_jailbreak(statistics)).read_text()
    assert "<script>alert" not in page
    assert SECRET not in page
    assert "&lt;script&gt;alert(&#39;harm&#39;)&lt;/script&gt;" in page
    body = re.sub(r"<script>.*?</script>", "", page, flags=re.S)
    depth = 0
    for token in re.findall(r"<details|</details>|&lt;script&gt;alert|&lt;b&gt;how to pick", body):
        depth += {"<details": 1, "</details>": -1}.get(token, 0)
        assert depth > 0 or token == "</details>", "harmful text lies open"
    assert depth == 0
    assert body.count("data:image/png;base64,") == 2 * 3 * 5  # candidates, benchmarks, what has a picture
    assert "still_rising" in body
    assert "VisualAdv: blank answers leave the denominator" in body
    assert "what guard-v1 looks for" in body, "the judges' agreement is there"
    assert "one image per cell" not in body
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", body), "the page loads nothing"


def test_the_same_records_give_the_same_files(storage: str) -> None:
    page, table = refresh_report(storage, SWEEP)
    folder = Path(page).parent
    names = {
        "index.html", "rates.csv", "refusals.csv", "comparisons.csv", "published.csv", "cost.csv", "judgements.csv",
        "agreement.csv", "rates.png", "rates.svg", "hades.csv",
    }  # fmt: skip
    first = {name: (folder / name).read_bytes() for name in names}
    time = Path(page).stat().st_mtime_ns
    assert refresh_report(storage, SWEEP) == (page, table)
    assert Path(page).stat().st_mtime_ns == time, "a report that is up to date is left alone"
    (folder / "made-from.json").unlink()
    refresh_report(storage, SWEEP)
    assert {name: (folder / name).read_bytes() for name in names} == first
    assert table.startswith(f"requests: flagged by {FIRST}, %")
    assert f"{FIRST} (what {FIRST} looks for) flags:" in table


def test_one_image_is_said_to_be_one(tmp_path: Path) -> None:
    found = analyse_jailbreak(load_sweep(write(tmp_path, restarts=1), SWEEP), resampling=RESAMPLING)
    said = "one image's luck is not a model's weakness"
    assert said in format_jailbreak(found)
    assert said.replace("'", "&#39;") in Path(write_jailbreak(found)).read_text()
    assert set(found.rates["restarts"]) == {0, 1}
    row = one(found.rates, judge=FIRST, candidate="soft", condition="visualadv-v1", epsilon=16.0)
    assert (row["rate"], row["n"]) == (0.5, 12)
    assert 0 < row["low"] < 0.5 < row["high"] < 1, "over the prompts"


def test_two_evaluations_of_one_image_are_refused(tmp_path: Path) -> None:
    records = load_sweep(write(tmp_path, judges=()), SWEEP).records
    require_one_evaluation(records)  # two recipes at one budget, two images of each
    again = records[(records["restart"] == 1) & (records["condition"] == "visualadv-v1")]
    with pytest.raises(UserError, match="comes from 2 evaluations"):
        require_one_evaluation(pd.concat([records, again.assign(evaluation="another")]))


def test_without_judges_it_says_who_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = write(tmp_path, judges=())
    assert main(["--storage", storage, "--sweep", SWEEP, "--draws", "200"]) == 0
    text = capsys.readouterr().out
    assert "requests: answered, % (forbidden requests)" in text
    assert "harmless: answered, % (allowed requests)" in text
    assert re.search(r"visualadv-v1, unconstrained +100 ±0 +0 ±0$", text, re.M)
    assert "give --judges" in text
    assert "flagged by" not in text
    folder = tmp_path / "reports" / SWEEP
    assert len(pd.read_csv(folder / "rates.csv")) == 0
    assert len(pd.read_csv(folder / "refusals.csv")) == 2 * 2 * 6
    assert not (folder / "judgements.csv").exists()
    assert "give --judges" in (folder / "index.html").read_text()


def test_which_sweeps_are_about_jailbreaks(storage: str) -> None:
    manifest = load_sweep(storage, SWEEP).manifest
    assert is_about_jailbreaks(manifest)
    clean, shown, *_ = CONDITIONS
    attack, fog = ConditionEntry("apgd-v1", "attack", 8.0), ConditionEntry("fog-v1", "corruption", severities=(1,))
    for conditions, expected in (
        ((clean, shown), True),
        ((clean,), False),
        ((clean, attack, shown), False),
        ((clean, fog, shown), False),
        ((clean, attack), False),
    ):
        assert is_about_jailbreaks(replace(manifest, conditions=conditions)) is expected
    assert is_about_conditions(replace(manifest, conditions=(clean, fog, shown)))


def test_the_answer_says_when_nothing_is_flagged(statistics: JailbreakStatistics) -> None:
    assert "flags" in jailbreak_answer(statistics)
    none = replace(statistics, rates=statistics.rates.assign(rate=0.0, flagged=0))
    own = none.rates[none.rates["judge"] == FIRST]
    expected = f"{FIRST} flags none of {own['n'].sum()} answers to forbidden requests, whatever was shown."
    assert jailbreak_answer(none) == expected
