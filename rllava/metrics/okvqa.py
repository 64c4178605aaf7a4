"""VQA accuracy of OK-VQA, the answers of which are stemmed: predictions are stemmed as well, in one of two ways.

The annotations hold what people wrote (``raw_answer``) and its stems (``answer``). ``okvqa_stemmed`` follows the
published evaluation (``open_flamingo/eval/ok_vqa_utils.py``: NLTK's tagger and WordNet's lemmas, ``inflection``), but
for its list of 150 words by hand. ``okvqa_learnt`` needs neither: it learns stems from the annotations themselves.
"""

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rllava.errors import UserError
from rllava.metrics.metric import METRICS, Metric, MetricState
from rllava.metrics.vqa import vqa_accuracy

Stem = Callable[[str], str]
"""From an answer to the same in stems."""

_END = re.compile("Question|Answer|Short")
_WORD = re.compile(r"[\w'-]+")
_TAGGED_PLURAL = ("NNS", "NNPS")


def clean_okvqa_answer(generated: str) -> str:
    """Cleans an answer: it ends before "Question", "Answer" or "Short", but unlike VQA's at no comma."""
    return _END.split(generated.strip(), maxsplit=1)[0].strip()


def stem_by_nltk(answer: str) -> str:
    """Stems as published: verbs of words in "ing", singulars of nouns tagged as plural; all others stay.

    Raises:
        UserError: if NLTK, its data or ``inflection`` is missing.
    """
    try:
        nltk, inflection = _packages()
        lemmatise = nltk.stem.WordNetLemmatizer().lemmatize
        stems = []
        for word, tag in nltk.pos_tag(nltk.tokenize.word_tokenize(answer)):
            if word.endswith("ing"):
                stems.append(lemmatise(word, "v"))
            else:
                stems.append(inflection.singularize(word) if tag in _TAGGED_PLURAL else word)
        return " ".join(stems)
    except LookupError as error:  # a dozen lines
        raise UserError(
            "metric okvqa_stemmed: NLTK's data is missing; set NLTK_DATA to a folder that holds punkt_tab, "
            "averaged_perceptron_tagger_eng and wordnet, or use metric okvqa_learnt"
        ) from error


@functools.cache
def _packages() -> tuple[Any, Any]:
    try:
        import inflection
        import nltk
    except ImportError as error:
        raise UserError(
            f"metric okvqa_stemmed: {error.name} is not installed; install nltk and inflection, or use metric "
            "okvqa_learnt"
        ) from error
    return nltk, inflection


@dataclass(frozen=True)
class Stems:
    """Stems of words.

    Attributes:
        table: of words whose stem the rule misses.
    """

    table: Mapping[str, str]

    def __call__(self, answer: str) -> str:
        """An answer in lower case and in stems: word by word, by the table, or the rule where it has none."""
        return _WORD.sub(lambda found: self.table.get(found[0], singular(found[0])), answer.lower())


def learn_stems(pairs: Iterable[tuple[str, str]]) -> Stems:
    """Learns the stems of words: the most frequent one of each.

    Args:
        pairs: answers as they were written, and in stems; those of unequally many words are passed over.

    Raises:
        UserError: if there are none.
    """
    found: dict[str, Counter[str]] = {}
    for written, stemmed in pairs:
        words, stems = _WORD.findall(written.lower()), _WORD.findall(stemmed.lower())
        if len(words) == len(stems):
            for word, stem in zip(words, stems, strict=True):
                found.setdefault(word, Counter())[stem] += 1
    if not found:
        raise UserError(
            "metric okvqa_learnt: the annotations have no raw_answer beside the answer, so that there is nothing to "
            "learn from; give the benchmark another metric, or OK-VQA's own annotations"
        )
    # Of equally frequent stems the first by letter, whatever the order of the annotations.
    likeliest = {word: min(stems, key=lambda stem, of=stems: (-of[stem], stem)) for word, stems in found.items()}  # type: ignore[misc]
    return Stems({word: stem for word, stem in sorted(likeliest.items()) if stem != singular(word)})


def singular(word: str) -> str:
    """The rule where nothing was learnt: plurals lose their ending; words in "ing" stay."""
    if len(word) > 4 and word.endswith("ies"):
        return f"{word[:-3]}y"
    if word.endswith(("sses", "shes", "ches", "xes")):
        return word[:-2]
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word


@dataclass(frozen=True)
class Agreement:
    """How far two ways of stemming agree.

    Attributes:
        n: different answers.
        share: of those that both stem alike; None of no answers.
        disputes: (answer, one stem, other stem) of the others, in the order of the answers.
    """

    n: int
    share: float | None
    disputes: tuple[tuple[str, str, str], ...]


def stem_agreement(answers: Iterable[str], one: Stem, other: Stem) -> Agreement:
    """Compares two ways of stemming, e.g. :func:`stem_by_nltk` and what was learnt, on different answers."""
    stems = [(answer, one(answer), other(answer)) for answer in dict.fromkeys(answers)]
    disputes = tuple(entry for entry in stems if entry[1] != entry[2])
    return Agreement(len(stems), 1 - len(disputes) / len(stems) if stems else None, disputes)


def _nltk_is_there(references_of_each_sample: Sequence[Sequence[str]]) -> None:
    del references_of_each_sample
    stem_by_nltk("dogs riding")


def _score_stemmed(prediction: str, references: Sequence[str], state: MetricState) -> float:
    assert state is None, "stems of NLTK have no state"
    return vqa_accuracy(stem_by_nltk(prediction), references)


def _score_learnt(prediction: str, references: Sequence[str], state: MetricState) -> float:
    assert isinstance(state, Stems)
    return vqa_accuracy(state(prediction), references)


def _unlearnt(references_of_each_sample: Sequence[Sequence[str]]) -> Stems:
    del references_of_each_sample
    return learn_stems([])


def _stems_from_json(value: Any) -> Stems:
    if not isinstance(value, dict) or not all(isinstance(stem, str) for stem in value.values()):
        raise ValueError("no table of stems in it")
    return Stems(value)


METRICS.register(
    "okvqa_stemmed",
    Metric("okvqa_stemmed", "%", clean=clean_okvqa_answer, score=_score_stemmed, prepare=_nltk_is_there),
)
METRICS.register(
    "okvqa_learnt",
    Metric(
        "okvqa_learnt",
        "%",
        clean=clean_okvqa_answer,
        score=_score_learnt,
        prepare=_unlearnt,
        learn=learn_stems,
        state_to_json=lambda stems: dict(stems.table),
        state_from_json=_stems_from_json,
    ),
)
