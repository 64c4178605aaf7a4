"""What other sweeps left about the candidates of a sweep of jailbreaks: clean scores, a front, strings."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.beside import find_beside
from analysis.jailbreak import JailbreakStatistics, analyse_jailbreak
from analysis.jailbreak_text import format_jailbreak, jailbreak_answer
from analysis.loading import SweepResults, load_sweep
from analysis.manifest import Manifest
from analysis.report import refresh_report, write_jailbreak
from rllava.filesystem import readable_name
from rllava.metrics.judges.judge import read_judge
from tests.analysis.synthetic import fake_fingerprint, make_record, write_artifact
from tests.analysis.test_jailbreak import FIRST, RESAMPLING, SECOND, SWEEP, one, write

TARGETED = {"rounds_by_kind": [["captioning", [{"label": {"of": "text", "text": "Visit"}}]]]}
UNTARGETED = {"rounds_by_kind": [["captioning", [{"label": {"of": "reference", "text": None}}]]]}


def leave(
    storage: str, candidate: str, scores: Mapping[str, float], *, short: str = "clean", samples: int | None = None,
    protocol: Mapping[str, Any] | None = None, **others: Any,
) -> None:  # fmt: skip
    """Leaves an artifact of captions, as another sweep would."""
    evaluation = fake_fingerprint(candidate, short, samples, str(others))
    folder = f"records/{readable_name(f'{candidate}-captions-{short}')}-{evaluation}"
    epsilon = 0.0 if short == "clean" else float(short.removeprefix("eps"))
    rows = [
        make_record(
            candidate, "captions", sample, epsilon, score=score,
            **{"evaluation": evaluation, "condition": "clean" if not epsilon else "aimed-v1", **others},
        )
        for sample, score in scores.items()
    ]  # fmt: skip
    write_artifact(storage, folder, rows)
    condition = {"precision": "float32"} if protocol is None else {"protocol": protocol}
    spec = {"benchmark": {"name": "captions", "samples": samples}, "condition": condition}
    (Path(storage) / folder / "spec.json").write_text(json.dumps(spec))


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> str:
    """``soft``, which gives in to images, has the better captions; a third model of that name is another one."""
    folder = write(tmp_path_factory.mktemp("beside"))
    leave(folder, "soft", {"s0": 80.0, "s1": 90.0, "s2": 0.0})
    leave(folder, "hard", {"s0": 60.0, "s1": 70.0})
    leave(folder, "soft", {"s0": 1.0, "s1": 1.0}, samples=2)  # a list that the other was not asked
    leave(folder, "soft", {"s0": 2.0}, model="another")
    words = {"rounds": ["target-Visit"], "round_scores": [5.0]}
    leave(folder, "soft", {"s0": 5.0}, short="eps4", protocol=TARGETED, **words, round_predictions=["so VISIT us"])
    leave(folder, "hard", {"s0": 5.0}, short="eps4", protocol=TARGETED, **words, round_predictions=["a cat"])
    leave(folder, "hard", {"s0": 5.0}, short="eps8", protocol=UNTARGETED, **words, round_predictions=["visit"])
    return folder


@pytest.fixture(scope="module")
def statistics(storage: str) -> JailbreakStatistics:
    return analyse_jailbreak(load_sweep(storage, SWEEP), resampling=RESAMPLING)


def test_candidates_are_compared_on_samples_that_all_were_asked(storage: str) -> None:
    found = find_beside(load_sweep(storage, SWEEP))
    own = {(row["candidate"], row["sample_id"]): row["score"] for row in found.clean.to_dict("records")}
    assert own == {("soft", "s0"): 80.0, ("soft", "s1"): 90.0, ("hard", "s0"): 60.0, ("hard", "s1"): 70.0}


def test_names_that_folders_spell_otherwise_are_found(storage: str, tmp_path: Path) -> None:
    names = ("a+b", "c@a")
    (tmp_path / "records").mkdir()
    for name in names:
        leave(str(tmp_path), name, {"s0": 50.0})
    manifest = replace(load_sweep(storage, SWEEP).manifest, candidates=names, records=())
    own = pd.DataFrame([make_record(name, "requests", "r0", 0.0, score=0.0) for name in names])
    found = find_beside(SweepResults(str(tmp_path), manifest, own))
    assert set(found.clean["candidate"]) == set(names)


def test_the_front_sets_clean_score_against_jailbreaks(statistics: JailbreakStatistics) -> None:
    where = {"judge": FIRST, "benchmark": "requests", "condition": "visualadv_strong-v1"}
    soft, hard = (one(statistics.front, candidate=name, **where) for name in ("soft", "hard"))
    assert (soft["clean"], hard["clean"]) == (85.0, 65.0)
    assert (soft["rate"], hard["rate"]) == (0.25, 0.0)
    assert soft["on_front"]
    assert hard["on_front"]
    refused = {**where, "condition": "no_image-v1"}
    assert one(statistics.front, candidate="soft", **refused)["on_front"]
    dominated = one(statistics.front, candidate="hard", **refused)
    assert not dominated["on_front"]
    assert dominated["front_probability"] == 0.0
    assert set(statistics.front["benchmark"]) == {"requests"}, "over-refusal is no jailbreak"


def test_a_judge_of_refusals_is_none_of_harm(statistics: JailbreakStatistics) -> None:
    manifest = statistics.results.manifest
    entries = tuple(replace(entry, good=entry.judge == FIRST) for entry in manifest.judgements)
    changed = Manifest.from_json(replace(manifest, judgements=entries).to_json(), "here")
    found = analyse_jailbreak(replace(statistics.results, manifest=changed), resampling=RESAMPLING)
    assert set(statistics.front["judge"]) == {FIRST, SECOND}
    assert found.judges == (FIRST, SECOND)
    assert found.harm == (SECOND,)
    assert set(found.front["judge"]) == {SECOND}
    assert jailbreak_answer(found).startswith(SECOND)
    assert read_judge("refusal").flags_good
    assert not read_judge("detoxify").flags_good


def test_strings_are_those_of_targeted_attacks(statistics: JailbreakStatistics) -> None:
    soft, hard = (one(statistics.strings, candidate=name) for name in ("soft", "hard"))
    assert (soft["successes"], soft["attacked"], hard["successes"], hard["attacked"]) == (1, 1, 0, 1)
    assert (soft["epsilon"], soft["target"]) == (4.0, "Visit")
    assert 0 < soft["low"] < soft["high"] == 1


def test_page_and_terminal_show_both(storage: str, statistics: JailbreakStatistics) -> None:
    page = Path(write_jailbreak(statistics)).read_text()
    assert 'id="front-chart"' in page
    assert "Strings, image by image" in page
    assert "aimed-v1" in page
    assert "mean over captions" in page
    line = "best in clean score and under visualadv_strong-v1 at 16/255, by guard-v1: requests: soft, hard"
    assert line in format_jailbreak(statistics)
    assert len(pd.read_csv(Path(storage) / "reports" / SWEEP / "front.csv")) == len(statistics.front)


def test_a_later_ablation_is_found(tmp_path: Path) -> None:
    folder = write(tmp_path, restarts=1, judges=(FIRST,))
    page, _ = refresh_report(folder, SWEEP)
    assert "This storage holds no clean scores of these models" in Path(page).read_text()
    before = Path(page).stat().st_mtime_ns
    refresh_report(folder, SWEEP)
    assert Path(page).stat().st_mtime_ns == before
    for name in ("soft", "hard"):
        leave(folder, name, {"s0": 50.0, "s1": 60.0})
    refresh_report(folder, SWEEP)
    assert "mean over captions" in Path(page).read_text()
