"""VQA accuracy: the official evaluation's text normalisation and its agreement with ten annotators.

After the VQA evaluation code (https://github.com/GT-Vision-Lab/VQA) in the form the paper uses it, RobustVLM
``open_flamingo/eval/vqa_metric.py``; its peculiarities are kept, because published numbers contain them.
"""

import re
from collections.abc import Sequence

from rllava.metrics.cleaning import clean_vqa_answer
from rllava.metrics.metric import METRICS, Metric, MetricState
from rllava.metrics.vqa_contractions import CONTRACTIONS

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32  # the official code passes re.UNICODE, which is 32, where re.sub expects the number of replacements
_ONE_TO_TEN = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0", "zero": "0"} | {word: str(number) for number, word in enumerate(_ONE_TO_TEN, start=1)}
_ARTICLES = frozenset({"a", "an", "the"})


def normalise_answer(text: str) -> str:
    """Normalises an answer before it is compared.

    The official code means to keep a period between digits, but its look-behind is misspelt ``(?!<=\\d)``: it strips
    each period that no digit follows, so "3." becomes "3". And one number with a comma in it, or one symbol beside a
    space, decides how *all* occurrences of a symbol are treated: removed, instead of replaced by a space.

    Args:
        text: a prediction or an annotator's answer.

    Returns:
        Lower case, without the 21 punctuation symbols and articles, number words up to ten as digits, contractions
        with their apostrophes.
    """
    stripped = text.replace("\n", " ").replace("\t", " ").strip()
    words = [_NUMBERS.get(word, word) for word in _process_punctuation(stripped).lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Scores one answer against the annotators'.

    Each annotator is left out once: min(1, matches among the others / 3), averaged over the annotators. With ten
    annotators 0, 1, 2, 3, 4 or more matches score 0, 30, 60, 90, 100.

    Args:
        answers: one per annotator, ten in VQAv2; at least one (which alone can score no more than 0).

    Returns:
        Percent, in [0, 100], rounded to two decimals as in the official code; 0 for an empty prediction.

    Raises:
        ValueError: if there are no answers.
    """
    if not answers:
        raise ValueError("no references; the VQA accuracy needs the annotators' answers")
    if not prediction.strip():
        return 0.0
    normalised = normalise_answer(prediction)
    matches = [normalise_answer(answer) == normalised for answer in answers]
    scores = [min(1.0, (sum(matches) - match) / 3) for match in matches]
    return round(100 * (sum(scores) / len(scores)), 2)


def _process_punctuation(text: str) -> str:
    comma_in_number = _COMMA_IN_NUMBER.search(text) is not None
    result = text
    for symbol in _PUNCTUATION:
        beside_space = symbol + " " in text or " " + symbol in text
        result = result.replace(symbol, "" if beside_space or comma_in_number else " ")
    return _PERIOD.sub("", result, count=_MOST_PERIODS)


def _score(prediction: str, references: Sequence[str], state: MetricState) -> float:
    assert state is None, "the VQA accuracy has no state"
    return vqa_accuracy(prediction, references)


METRICS.register("vqa_accuracy", Metric("vqa_accuracy", "%", clean=clean_vqa_answer, score=_score))
