"""The report's files: self-contained, complete, escaped, the same every time, and written for odd sweeps too."""

import csv
import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import fsspec
import pytest

from analysis.bootstrap import Resampling
from analysis.loading import SweepResults, load_sweep
from analysis.manifest import ConditionEntry
from analysis.page import render_page
from analysis.plots import curves_chart, pareto_chart
from analysis.report import ReportPaths, main, write_report, write_statistics
from analysis.statistics import Statistics, analyse, answer, confidence
from rllava.errors import UserError
from tests.analysis.conftest import QUICK, SWEEP
from tests.analysis.synthetic import SyntheticSweep, write_sweep

FEW = Resampling(draws=200)


class References(HTMLParser):
    """Collects what a page refers to, and the ids and texts of its elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.images: list[str] = []
        self.ids: set[str] = set()
        self.candidates: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.links += [
            values[name] for name in ("src", "href", "srcset", "action", "data") if name in values and tag != "img"
        ]
        self.images += [values["src"]] if tag == "img" else []
        self.ids |= {values["id"]} if "id" in values else set()
        self.candidates += [values["data-candidate"]] if "data-candidate" in values else []


def specs(page: str) -> Iterator[tuple[str, dict[str, object]]]:
    for name, text in re.findall(r'<script type="application/json" id="(\w+)-spec">(.*?)</script>', page, re.DOTALL):
        yield name, json.loads(text)


def test_all_files_are_written_and_none_is_left_over(report: ReportPaths) -> None:
    paths = {Path(path) for path in dataclasses.astuple(report)}
    assert all(path.stat().st_size > 100 for path in paths)
    assert set(Path(report.index).parent.iterdir()) == paths | {Path(report.index).parent / "sweep.json"}
    for png in (report.pareto, report.curves):
        assert Path(png).read_bytes().startswith(b"\x89PNG")


def test_summary_has_the_agreed_columns_and_benchmark_rows_only(report: ReportPaths) -> None:
    with open(report.summary, newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["candidate", "benchmark", "epsilon", "mean", "low", "high", "n", "seeds", "training_sd"]
    assert len(rows) - 1 == 4 * 2 * 3
    assert {row[1] for row in rows[1:]} == set(SWEEP.benchmarks)
    assert {row[6] for row in rows[1:] if row[0] == "tiny-robust" and float(row[2]) > 0} == {"22"}
    assert all(float(row[4]) <= float(row[3]) <= float(row[5]) for row in rows[1:])


def test_comparisons_cover_every_other_candidate(report: ReportPaths, statistics: Statistics) -> None:
    with open(report.comparisons, newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 3 * 3  # candidates x (benchmarks and average) x budgets
    assert {row["baseline"] for row in rows} == {statistics.baseline}


def test_page_loads_nothing(page: str) -> None:
    references = References(page)
    assert [link for link in references.links if not link.startswith("#")] == []
    assert references.images
    assert all(image.startswith("data:image/") for image in references.images)
    assert "default-src 'none'" in page
    assert not re.search(r"@import|url\(\s*['\"]?(https?:)?//", page.split("<script>")[0])


def test_page_holds_both_charts_with_their_data(page: str) -> None:
    charts = dict(specs(page))
    assert set(charts) == {"pareto", "curves"}
    for name, spec in charts.items():
        text = json.dumps(spec, ensure_ascii=False)
        assert {name, f"{name}-spec"} <= References(page).ids
        assert '"bind": "legend"' in text
        assert "$schema" not in spec
        assert all(candidate in text for candidate in SWEEP.clean)
    assert "Robust score at ε = 8/255" in json.dumps(charts["pareto"], ensure_ascii=False)
    assert page.count("window.vegaEmbed") >= 1


def test_page_shows_every_section_and_candidate(page: str) -> None:
    references = References(page)
    sections = {"front", "curves-section", "results", "comparisons", "gallery", "evidence", "errors", "provenance"}
    assert sections <= references.ids
    assert set(references.candidates) == set(SWEEP.clean)
    for text in ("paper_ensemble_short-v1", "700,000", "5 min 01 s", "image_size", "difference ×15", "22", "reused"):
        assert text in page


def test_texts_of_models_and_workers_are_escaped(page: str) -> None:
    assert "a &lt;script&gt;alert(1)&lt;/script&gt; banana" in page
    assert "OutOfMemory: &lt;worker&gt; died &amp; was not replaced" in page
    assert "<script>alert(1)" not in page
    assert "<worker>" not in page


def test_a_candidate_name_cannot_end_the_chart_data(tmp_path: Path) -> None:
    name = "</script><b>&"
    sweep = SyntheticSweep(
        clean={name: 0.9, "b": 0.5}, decay={name: 0.9, "b": 0.9}, budgets=(0.0, 8.0), samples=4, side=0
    )
    results = _renamed(tmp_path, sweep, name)
    page = Path(write_statistics(analyse(results, resampling=FEW)).index).read_text(encoding="utf-8")
    assert "</script><b>" not in page
    assert not any("<" in text for text in re.findall(r'-spec">(.*?)</script>', page, re.DOTALL))
    assert name in json.dumps(dict(specs(page))["pareto"], ensure_ascii=False)


def _renamed(root: Path, sweep: SyntheticSweep, name: str) -> SweepResults:
    """Writes a sweep under names that can be folders, then gives its first candidate another name."""
    plain = {("a" if key == name else key): value for key, value in sweep.clean.items()}
    decay = {("a" if key == name else key): value for key, value in sweep.decay.items()}
    write_sweep(str(root), dataclasses.replace(sweep, clean=plain, decay=decay))
    results = load_sweep(str(root))
    manifest = dataclasses.replace(results.manifest, candidates=tuple(sweep.clean))
    records = results.records.assign(candidate=results.records["candidate"].replace("a", name))
    return dataclasses.replace(results, manifest=manifest, records=records)


def test_writing_again_gives_the_same_bytes(storage: str, report: ReportPaths) -> None:
    before = {path: Path(path).read_bytes() for path in dataclasses.astuple(report)}
    again = write_report(storage, resampling=QUICK)
    assert again == report
    changed = [path for path, data in before.items() if Path(path).read_bytes() != data]
    assert changed == []


def test_answer_names_the_front_and_its_price(statistics: Statistics) -> None:
    front = statistics.front[statistics.front["on_front"]]
    text = answer(statistics)
    assert text.startswith(f"At ε = 8/255, {len(front)} of 4 candidates are on the Pareto front: ")
    assert all(name in text for name in front["candidate"])
    gain = front["robust"].max() - front.loc[front["clean"].idxmax(), "robust"]
    assert f"buys {gain:.1f} robust points" in text
    assert statistics.baseline in confidence(statistics)


def test_budget_and_baseline_can_be_chosen(storage: str) -> None:
    chosen = analyse(load_sweep(storage), epsilon=2, baseline="tiny-clip", resampling=FEW)
    assert (chosen.epsilon, chosen.baseline) == (2.0, "tiny-clip")
    assert answer(chosen).startswith("At ε = 2/255")
    with pytest.raises(UserError, match="ε = 3/255"):
        analyse(load_sweep(storage), epsilon=3, resampling=FEW)
    with pytest.raises(UserError, match="'none' is not in the results"):
        analyse(load_sweep(storage), baseline="none", resampling=FEW)


ONE = SyntheticSweep(clean={"a": 0.9}, decay={"a": 0.9}, benchmarks=("easy_vqa",), budgets=(0.0, 8.0), samples=6)
CLEAN_ONLY = dataclasses.replace(ONE, clean={"a": 0.9, "b": 0.5}, decay={"a": 1, "b": 1}, budgets=(0.0,))
ONE_SAMPLE = dataclasses.replace(ONE, clean={"a": 1.0, "b": 1.0}, decay={"a": 1, "b": 0}, samples=1)
ODD = {
    "one candidate, one benchmark": (ONE, "there is no other to compare with"),
    "clean only": (CLEAN_ONLY, "No attack was run"),
    "one sample": (ONE_SAMPLE, "beats all others"),
    "all errors": (dataclasses.replace(ONE, errors={"a": 6}), "there is no Pareto front yet"),
    "no images": (dataclasses.replace(ONE, side=0), "At ε = 8/255"),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_sweeps_are_reported(tmp_path: Path, case: str) -> None:
    sweep, sentence = ODD[case]
    write_sweep(str(tmp_path), sweep)
    paths = write_report(str(tmp_path), resampling=FEW)
    assert sentence in Path(paths.index).read_text(encoding="utf-8").replace("&#39;", "'")
    assert len(Path(paths.summary).read_text().splitlines()) == 1 + len(sweep.clean) * len(sweep.budgets)


def test_report_on_s3(s3_storage: str) -> None:
    storage = f"{s3_storage}/analysis"
    write_sweep(storage, ONE)
    paths = write_report(storage, resampling=FEW)
    assert paths.index == f"{storage}/reports/encoder_ablation/index.html"
    with fsspec.open(paths.summary, "r") as file:
        assert file.readline().strip() == "candidate,benchmark,epsilon,mean,low,high,n,seeds,training_sd"


def test_command_line_writes_the_report(storage: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--storage", storage, "--draws", "200", "--epsilon", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("At ε = 2/255")
    assert lines[-1] == f"{storage}/reports/encoder_ablation/index.html"
    write_report(storage, resampling=QUICK)  # as the other tests expect it


def test_a_mistake_on_the_command_line_is_one_line_and_status_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "analysis.report", "--storage", str(tmp_path), "--sweep", "s"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "no results folder" in done.stderr


def test_nothing_here_imports_the_gpu_stack() -> None:
    code = (
        "import importlib, pkgutil, sys, analysis\n"
        "for module in pkgutil.iter_modules(analysis.__path__): importlib.import_module('analysis.' + module.name)\n"
        "print(sorted({'torch', 'ray', 'transformers'} & set(sys.modules)), 'analysis.report' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] True"


def test_doubts_stand_beside_the_numbers_and_targets_have_their_table(statistics: Statistics) -> None:
    records = statistics.results.records.copy()
    concerned = (records["candidate"] == "tiny-clip") & (records["epsilon"] == 8.0) & (records["steps"] > 0)
    records.loc[concerned, "findings"] = records.loc[concerned, "findings"].map(lambda _: ["black_box_wins"])
    records["rounds"] = records["rounds"].map(lambda names: ["target-Say this"] * len(names))
    records["round_predictions"] = records["round_predictions"].map(lambda answers: ["so: say THIS."] * len(answers))
    manifest = dataclasses.replace(
        statistics.results.manifest, conditions=(ConditionEntry("paper_targeted-v1", "attack", 8.0, targeted=True),)
    )
    results = dataclasses.replace(statistics.results, records=records, manifest=manifest)
    doubted = analyse(results, resampling=FEW)
    page = render_page(doubted, {"pareto": pareto_chart(doubted), "curves": curves_chart(doubted)}, [])
    marks = re.findall(r'<a class="doubt" href="#evidence" title="black_box_wins: 100% of \d+ checked', page)
    assert len(marks) == 1 + 3, "on the front's table, and in the results of two benchmarks and their average"
    assert "The model hides its gradient" in page
    assert "Give the black-box attack more queries" in page
    assert "<td>Say this</td>" in page
    plain = render_page(statistics, {"pareto": pareto_chart(statistics), "curves": curves_chart(statistics)}, [])
    assert 'class="doubt"' not in plain
    assert 'id="targeted"' not in plain
