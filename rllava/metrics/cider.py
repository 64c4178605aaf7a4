"""CIDEr per sample with frozen document frequencies, after ``Cider`` of pycocoevalcap 1.2, times 100.

CIDEr weighs n-grams (n = 1 to 4) by how rare they are among the references of all images. Those document frequencies
come from the references of a benchmark's fixed sample list, computed once; afterwards every caption is scored on its
own, by whichever worker holds it, and the corpus score is the mean of the samples' scores. The paper takes per-image
scores from the same scorer (RobustVLM ``open_flamingo/eval/coco_metric.py``).
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rllava.errors import UserError
from rllava.metrics.cleaning import clean_caption
from rllava.metrics.metric import METRICS, Metric
from rllava.metrics.ptb import ptb_tokenize

LONGEST_NGRAM = 4
SIGMA = 6.0
"""Width of the length penalty, in (the reference code's) words."""

_Weights = list[dict[str, float]]  # per n-gram length: n-gram -> TF-IDF weight


@dataclass(frozen=True)
class DocumentFrequencies:
    """In how many images' references each n-gram occurs.

    Attributes:
        counts: n-gram (tokens joined by spaces) to the number of images with it in any reference; not to be changed.
    """

    documents: int
    counts: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """The frequencies as plain JSON values; n-grams are sorted, so equal frequencies give equal text."""
        return {"documents": self.documents, "counts": dict(sorted(self.counts.items()))}

    @staticmethod
    def from_json(fields: Any) -> "DocumentFrequencies":
        """Reads what :meth:`to_json` gave.

        Raises:
            ValueError: if they are no such values.
        """
        try:
            counts = {str(ngram): int(count) for ngram, count in fields["counts"].items()}
            return DocumentFrequencies(int(fields["documents"]), counts)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no document frequencies: {error!r}") from error


def document_frequencies(references_of_each_image: Sequence[Sequence[str]]) -> DocumentFrequencies:
    """Counts n-grams over the references of the fixed sample list.

    Images without references are left out. With one image every n-gram occurs in all images, all weights are
    log(1) = 0 and every caption scores 0; so at least two are asked for.

    Args:
        references_of_each_image: per image its reference captions.

    Raises:
        UserError: if fewer than two images have references.
    """
    counts: Counter[str] = Counter()
    documents = 0
    for references in references_of_each_image:
        if references:
            documents += 1
            counts.update({ngram for reference in references for ngram in _ngram_counts(reference)})
    if documents < 2:
        raise UserError(
            f"CIDEr over {documents} image(s) with references is 0 for every caption; take at least 2 samples"
        )
    return DocumentFrequencies(documents, dict(sorted(counts.items())))


def cider(prediction: str, references: Sequence[str], frequencies: DocumentFrequencies) -> float:
    """Scores one caption.

    Args:
        references: the image's reference captions, at least one.
        frequencies: of the benchmark the image belongs to.

    Returns:
        CIDEr x 100, in [0, 1000]; 0 for an empty caption. A caption equal to the only reference, with four words or
        more, scores 1000 (unless all its n-grams are in every image's references).

    Raises:
        ValueError: if there are no references.
    """
    if not references:
        raise ValueError("no references; CIDEr needs at least one per image")
    hypothesis, length = _weigh(prediction, frequencies)
    total = 0.0
    for reference in references:
        weights, reference_length = _weigh(reference, frequencies)
        penalty = math.exp(-((length - reference_length) ** 2) / (2 * SIGMA**2))
        total += sum(_clipped_cosine(*pair) for pair in zip(hypothesis, weights, strict=True)) * penalty
    return 100.0 * 10.0 * total / (LONGEST_NGRAM * len(references))


def _ngram_counts(text: str) -> Counter[str]:
    tokens = ptb_tokenize(text)
    return Counter(
        " ".join(tokens[start : start + n]) for n in range(1, LONGEST_NGRAM + 1) for start in range(len(tokens) - n + 1)
    )


def _weigh(text: str, frequencies: DocumentFrequencies) -> tuple[_Weights, int]:
    """Returns the TF-IDF weights of the text's n-grams and its length, which the reference code counts in bigrams."""
    weights: _Weights = [{} for _ in range(LONGEST_NGRAM)]
    length = 0
    for ngram, count in _ngram_counts(text).items():
        order = ngram.count(" ")
        idf = math.log(frequencies.documents) - math.log(max(1, frequencies.counts.get(ngram, 0)))
        weights[order][ngram] = count * idf
        length += count if order == 1 else 0
    return weights, length


def _clipped_cosine(hypothesis: dict[str, float], reference: dict[str, float]) -> float:
    """Cosine of two weight vectors, with the hypothesis clipped to the reference (so repeating words gains nothing)."""
    dot = sum(
        min(weight, reference.get(ngram, 0.0)) * reference.get(ngram, 0.0) for ngram, weight in hypothesis.items()
    )
    norm = math.sqrt(sum(weight**2 for weight in hypothesis.values()))
    reference_norm = math.sqrt(sum(weight**2 for weight in reference.values()))
    return dot / (norm * reference_norm) if norm and reference_norm else 0.0


METRICS.register(
    "cider",
    Metric(
        "cider",
        "CIDEr x 100",
        clean=clean_caption,
        score=cider,
        prepare=document_frequencies,
        state_to_json=DocumentFrequencies.to_json,
        state_from_json=DocumentFrequencies.from_json,
    ),
)
