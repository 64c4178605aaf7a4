"""OK-VQA's stems: by NLTK's rules, and learnt from annotations."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from rllava.errors import UserError
from rllava.metrics import okvqa
from rllava.metrics.metric import METRICS, metric_from_json, metric_to_json
from rllava.metrics.okvqa import (
    Stems,
    clean_okvqa_answer,
    learn_stems,
    singular,
    stem_agreement,
    stem_by_nltk,
)

PAIRS = [
    ("Riding horses", "ride horse"),
    ("riding", "ride"),
    ("riding", "rid"),
    ("glasses", "glass"),
    ("gas", "gas"),
    ("overseas travel", "oversea"),
]


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stand-ins for NLTK and inflection, which know a few words: the rules between them are ours."""

    def lemmatize(word: str, part: str) -> str:
        assert part == "v"
        return {"riding": "ride", "string": "string"}[word]

    tags = {"horses": "NNS", "beatles": "NNPS", "rides": "VBZ"}
    nltk = SimpleNamespace(
        stem=SimpleNamespace(WordNetLemmatizer=lambda: SimpleNamespace(lemmatize=lemmatize)),
        tokenize=SimpleNamespace(word_tokenize=str.split),
        pos_tag=lambda words: [(word, tags.get(word, "NN")) for word in words],
    )
    inflection = SimpleNamespace(singularize=lambda word: word[:-1])
    monkeypatch.setattr(okvqa, "_packages", lambda: (nltk, inflection))
    return nltk


def test_answers_end_where_the_published_ones_do() -> None:
    assert clean_okvqa_answer(" red, blue Short: x") == "red, blue"
    assert clean_okvqa_answer("a\nQuestion: b Answer: c") == "a"


def test_nltks_rules_are_the_published_ones(packages: Any) -> None:
    assert stem_by_nltk("riding horses") == "ride horse"
    assert stem_by_nltk("beatles rides string gas") == "beatle rides string gas"
    metric = METRICS.get("okvqa_stemmed")
    state = metric.prepare([["ride"] * 10])
    assert metric.score("riding", ["ride"] * 10, state) == 100.0
    assert metric.score("rides", ["ride"] * 10, state) == 0.0


def test_missing_packages_and_data_are_one_line(monkeypatch: pytest.MonkeyPatch, packages: Any) -> None:
    def lost(_: str) -> list[str]:
        raise LookupError("\n****\n  Resource punkt_tab not found.\n")

    packages.tokenize.word_tokenize = lost
    with pytest.raises(UserError, match=r"^metric okvqa_stemmed: NLTK's data is missing; set NLTK_DATA") as caught:
        METRICS.get("okvqa_stemmed").prepare([])
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "inflection", ModuleType("inflection"))
    monkeypatch.setitem(sys.modules, "nltk", None)
    okvqa._packages.cache_clear()
    with pytest.raises(UserError, match=r"^metric okvqa_stemmed: nltk is not installed; .*okvqa_learnt$"):
        stem_by_nltk("dogs")
    okvqa._packages.cache_clear()


@pytest.mark.parametrize(
    ("word", "stem"),
    [
        ("dogs", "dog"), ("cherries", "cherry"), ("glasses", "glass"), ("boxes", "box"), ("churches", "church"),
        ("glass", "glass"), ("bus", "bus"), ("tennis", "tennis"), ("gas", "gas"), ("ties", "tie"), ("riding", "riding"),
    ],
)  # fmt: skip
def test_the_rule_takes_plurals_alone(word: str, stem: str) -> None:
    assert singular(word) == stem


def test_stems_are_learnt_by_frequency_where_the_rule_misses_them() -> None:
    stems = learn_stems(PAIRS)
    assert stems.table == {"riding": "ride"}, "the rule has the others; the last pair is of unequally many words"
    assert stems("Riding dogs") == "ride dog"
    assert learn_stems(reversed(PAIRS)) == stems
    learnt = learn_stems([("dress", "dres"), ("hands", "hands")])
    assert learnt("dress hands") == "dres hands", "what people wrote comes before the rule"


def test_without_annotations_as_written_nothing_is_learnt() -> None:
    for attempt in (lambda: learn_stems([]), lambda: METRICS.get("okvqa_learnt").prepare([["ride"]])):
        with pytest.raises(UserError, match=r"^metric okvqa_learnt: the annotations have no raw_answer"):
            attempt()


def test_what_was_learnt_comes_back_from_its_file() -> None:
    metric = METRICS.get("okvqa_learnt")
    assert metric.learn is not None
    state = metric.learn(PAIRS)
    restored, same = metric_from_json(metric_to_json(metric, state))
    assert (restored, same) == (metric, state)
    assert metric.score(metric.clean("Riding. "), ["ride"] * 10, same) == 100.0
    assert metric.score(metric.clean("rides"), ["riding"] * 10, same) == 0.0
    with pytest.raises(ValueError, match="no table"):
        metric.state_from_json(["riding"])


def test_agreement_is_over_different_answers(packages: Any) -> None:
    found = stem_agreement(["riding", "horses", "riding", "rides", "string"], stem_by_nltk, Stems({"riding": "ride"}))
    assert (found.n, found.share) == (4, 0.75)
    assert found.disputes == (("rides", "rides", "ride"),)
    assert stem_agreement([], stem_by_nltk, str).share is None
