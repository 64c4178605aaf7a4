"""POPE, ScienceQA and their embedded likes: from files to what is asked, and what is right."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rllava.data.benchmarks import BENCHMARKS, SOURCES, build_benchmark, list_samples
from rllava.data.easy_questions import WORDINGS
from rllava.data.easy_vqa_source import COLOURS, SHAPES, easy_images
from rllava.data.pairs import labelled_images
from rllava.data.pope import SAMPLES
from rllava.data.shards import read_shard
from rllava.errors import UserError
from rllava.evaluation.samples import decode_shard
from rllava.tasks.task import Decoding, without_image
from tests.data.published_files import ROWS, jpeg, write, write_questions_with_few_answers

SHOWN = {image.sample_id: {colour, shape} for image, colour, shape in labelled_images("test")}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "data sets"
    write_questions_with_few_answers(root)
    monkeypatch.setenv("RLLAVA_DATA", str(root))
    return root


@pytest.mark.parametrize(("strategy", "count"), {"random": 2910, "popular": 3000, "adversarial": 3000}.items())
def test_pope_is_asked_as_published(strategy: str, count: int, root: Path, local: Any, folder: str) -> None:
    spec = BENCHMARKS.get(f"pope_{strategy}")
    assert (spec.samples, spec.split, spec.task.metric) == (count, strategy, "yes_no")
    assert SAMPLES[strategy] == count
    (path,) = build_benchmark(dataclasses.replace(spec, samples=ROWS), local, folder)
    rows = {row["sample_id"]: row for row in read_shard(local, path).to_pylist()}
    assert set(rows) == {str(number + 1) for number in range(ROWS)}
    asked = f"<image>\nIs there a {strategy} 3 in the image?\nAnswer the question using a single word or phrase."
    assert rows["4"]["prompt"] == asked
    assert rows["4"]["image"] == jpeg(3)
    assert [rows[str(number + 1)]["references"] for number in range(2)] == [["Yes"], ["No"]]
    assert spec.task.labels(["Yes"]) == ["Yes"]
    assert spec.task.decoys([["Yes"], ["No"]]) == ("Yes", "No")


def test_scienceqa_is_asked_as_published_with_and_without_image(root: Path, local: Any, folder: str) -> None:
    spec = BENCHMARKS.get("scienceqa")
    assert spec.samples == 4241
    (path,) = build_benchmark(dataclasses.replace(spec, samples=ROWS), local, folder)
    table = read_shard(local, path)
    rows = {row["sample_id"]: row for row in table.to_pylist()}
    asked = "Context: {}.\nWhich one?\nA. this\nB. that\nC. none\n"
    direct = "Answer with the option's letter from the given choices directly."
    assert rows["5"]["prompt"] == "<image>\n" + asked.format(1) + direct
    assert without_image(rows["4"]["prompt"]) == asked.format(0) + direct
    assert [rows[str(number + 4)]["references"] for number in range(4)] == [["A"], ["B"], ["C"], ["A"]]
    assert {name for name, row in rows.items() if row["image"] is None} == {"4", "6", "8"}
    errors = {sample.error for sample in decode_shard(table, 16, needs=spec.task.needs)}
    assert errors == {None}, "rows without an image are asked as well"


def test_scienceqa_with_image_has_no_other_rows(root: Path) -> None:
    spec = BENCHMARKS.get("scienceqa_image")
    assert spec.samples == 2017
    found = list_samples(dataclasses.replace(spec, samples=ROWS // 2))
    assert {entry.sample_id for entry in found} == {"5", "7", "9"}


def problem(**changed: Any) -> dict[str, Any]:
    return {str(number + 4): {"choices": ["a", "b"], "answer": 0} | changed for number in range(ROWS)}


@pytest.mark.parametrize(
    ("name", "path", "content", "message"),
    [
        ("pope_random", "pope/coco/coco_pope_random.json", b"<html>", "line 1 is no JSON"),
        ("pope_popular", "pope/coco/coco_pope_popular.json", b'\n{"question_id": 1}', "line 2 is not .*no 'image'"),
        (
            "pope_random",
            "pope/coco/coco_pope_random.json",
            b'{"question_id": 1, "image": "a", "text": "?", "label": "maybe"}',
            "line 1 is not in the format of POPE .*'maybe'",
        ),
        ("scienceqa", "scienceqa/problems.json", {"4": {}}, "no choices and answer to question 4"),
        ("scienceqa", "scienceqa/problems.json", [], "problems.json is not in the format"),
        ("scienceqa", "scienceqa/problems.json", problem(choices=["a"]), "question 4 has 1 choices"),
        ("scienceqa", "scienceqa/problems.json", problem(choices=["a"] * 6), "question 4 has 6 choices"),
        ("scienceqa", "scienceqa/problems.json", problem(answer=2), "number 2 is right; expected 2 to 5"),
        ("scienceqa", "scienceqa/llava_test_CQM-A.json", {}, "CQM-A.json is not in the format"),
        ("scienceqa", "scienceqa/llava_test_CQM-A.json", [{"id": "4"}], "entry 0 is not in LLaVA's .*conversations"),
    ],
)
def test_a_wrong_file_is_named_in_one_line(name: str, path: str, content: Any, message: str, root: Path) -> None:
    write(root, path, content)
    with pytest.raises(UserError, match=message) as caught:
        list_samples(BENCHMARKS.get(name))
    assert str(root) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["pope", "scienceqa"])
def test_unknown_splits_are_one_line(source: str) -> None:
    with pytest.raises(UserError, match=f"^{source} has no split 'dev' here; use "):
        SOURCES.get(source)("dev")


def test_a_folder_without_their_images_is_refused(root: Path) -> None:
    (root / "scienceqa/images/test").rename(root / "scienceqa/images/other")
    with pytest.raises(UserError, match=r"images/test lacks the images .*first 3 is there \(e\.g\. 5/image\.png\)"):
        list_samples(BENCHMARKS.get("scienceqa"))


@pytest.mark.parametrize("name", ["easy_yes_no", "easy_yes_no_popular"])
def test_half_of_the_embedded_yes_no_questions_are_about_what_is_there(name: str) -> None:
    found = SOURCES.get(name)("test")
    assert Counter(entry.references for entry in found) == {("yes",): 444, ("no",): 444}
    own_words = {question.text for image in easy_images("train") for question in image.questions}
    about = Counter[str]()
    for entry in found:
        assert entry.question in own_words, "a wording that the model has not been taught"
        (value,) = {word for word in entry.question.rstrip("?").split() if word in (*COLOURS, *SHAPES)}
        assert (value in SHOWN[entry.sample_id]) == (entry.references == ("yes",))
        about["colour" if value in COLOURS else "shape"] += 1
    assert min(about.values()) > 400, "half of 888 drawn: 4 standard deviations are 60"
    assert {entry.question.replace("red shape", "{named}") for entry in found} >= set(WORDINGS)


def test_absent_objects_are_any_or_the_most_frequent_ones() -> None:
    absent: dict[str, set[str]] = {}
    for name in ("easy_yes_no", "easy_yes_no_popular"):
        asked = (
            entry.question.rstrip("?").split() for entry in SOURCES.get(name)("test") if entry.references == ("no",)
        )
        absent[name] = {word for words in asked for word in words if word in (*COLOURS, *SHAPES)}
    assert absent["easy_yes_no"] == {*COLOURS, *SHAPES}
    assert absent["easy_yes_no_popular"] == {"teal", "green", "circle", "rectangle"}
    present = [
        [entry.question for entry in SOURCES.get(name)("test") if entry.references == ("yes",)]
        for name in ("easy_yes_no", "easy_yes_no_popular")
    ]
    assert present[0] == present[1]


def test_the_embedded_choices_hold_the_right_one_once_under_every_letter() -> None:
    letters = Counter[str]()
    for entry in SOURCES.get("easy_choice")("test"):
        question, *choices = entry.question.split("\n")
        named = dict(line.split(". ") for line in choices)
        assert list(named) == list("ABCD"[: len(named)])
        assert len(set(named.values())) == len(named) == (4 if "color" in question else 3)
        (right,) = SHOWN[entry.sample_id] & set(named.values())
        assert entry.references == (next(letter for letter, value in named.items() if value == right),)
        letters[entry.references[0]] += 1
    # A, B and C: 1/3 of 444 and 1/4 of 444, about 259 each; D: 111. Four standard deviations are 54 and 39.
    assert all(205 < letters[letter] < 313 for letter in "ABC")
    assert 72 < letters["D"] < 150


@pytest.mark.parametrize("name", ["easy_yes_no", "easy_choice"])
def test_embedded_questions_depend_on_the_image_alone(name: str) -> None:
    spec = BENCHMARKS.get(name)
    assert (spec.samples, spec.task.decoding) == (888, Decoding(5))
    once, again = list_samples(spec), SOURCES.get(name)("test")
    assert {json.dumps([e.sample_id, e.question, e.references]) for e in once} == {
        json.dumps([e.sample_id, e.question, e.references]) for e in again
    }
