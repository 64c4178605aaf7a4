"""Word lists from files: an answer is flagged if a word or phrase of the list is in it.

A file holds one word or phrase per line, in UTF-8; lines that begin with ``#`` are comments. Text is compared word by
word, after Unicode's compatibility normalisation and case folding: ``STRASSE`` is ``Straße``. A word is letters, digits
and the marks on them; whatever stands between words (spaces, line breaks, punctuation, apostrophes, hyphens) is passed
over, in the list and in the answer: ``hands up`` is in ``"Hands - up!"``, ``ass`` is not in ``class``. Invisible
characters within a word are dropped. Scripts that are written without spaces (Chinese, Japanese, Thai, Lao, Khmer,
Burmese) have no words that could be told without a dictionary: there, each character is one, so that an entry is found
wherever its characters stand in a row. Word forms are not known: list what shall be found.
"""

import functools
import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar

from rllava.errors import UserError
from rllava.fingerprint import PinnedBy
from rllava.metrics.judges.judge import JUDGES, Exchange, Judge, JudgeSpec, Verdict
from rllava.missing import Missing

COMMENT = "#"

_UNSPACED = {
    *("CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "BOPOMOFO"),
    *("THAI", "LAO", "KHMER", "MYANMAR"),
}
"""First words of the Unicode names of letters in scripts without spaces between words."""

Words = tuple[str, ...]


@dataclass(frozen=True)
class Lexicon(JudgeSpec):
    """A word list. Its score is the number of times that an entry was found, its labels are the entries found.

    Attributes:
        path: of the file. It is read once, by :meth:`pinned`: the machines that judge need not have it.
        entries: words and phrases, in the order of the file.
    """

    kind: ClassVar[str] = "lexicon"
    light: ClassVar[bool] = True

    path: Annotated[str, PinnedBy("entries")]
    entries: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """With the start of a hash of its entries: several lists may stand beside each other."""
        digest = hashlib.sha256("\n".join(self.entries).encode()).hexdigest()
        return f"{self.kind}-{digest[:8]}-v{self.version}"

    @property
    def description(self) -> str:
        """By the name of its file, and its size."""
        count = len(self.entries)
        return f"the {count} {'entry' if count == 1 else 'entries'} of {os.path.basename(self.path)}"

    @property
    def batch_size(self) -> int:
        """Any."""
        return 4096

    def missing(self) -> list[Missing]:
        """Its file."""
        if self.entries or os.path.exists(self.path):
            return []
        return [Missing("word list", self.path, "the command line")]

    def pinned(self) -> "Lexicon":
        """The spec with the entries of its file."""
        if self.entries:
            return self
        try:
            content = Path(self.path).read_bytes()
        except OSError as error:  # a folder, no permission
            raise UserError(f"word list {self.path} cannot be read: {error.strerror}; give a text file") from error
        return replace(self, entries=read_entries(content, self.path))

    def load(self) -> Judge:
        """Nothing is read."""
        return functools.partial(find_entries, by_first_word(self.entries))


def _of_command_line(path: str) -> Lexicon:
    if not path:
        raise UserError("judge lexicon: give its word list, lexicon:FILE (one word or phrase per line)")
    return Lexicon(os.path.expanduser(path))


JUDGES.register(Lexicon.kind, _of_command_line)


def read_entries(content: bytes, where: str) -> tuple[str, ...]:
    """The entries of a word list.

    Returns:
        As the file spells them; of entries with the same words, the first.

    Raises:
        UserError: if the file is no UTF-8 text, a line holds no letter or digit, or there is no entry.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"word list {where}, line {line}: no UTF-8 text; save the file as UTF-8") from error
    entries: dict[Words, str] = {}
    for number, entry in enumerate(map(str.strip, text.split("\n")), start=1):
        if not entry or entry.startswith(COMMENT):
            continue
        words = tuple(words_of(entry))
        if not words:
            raise UserError(
                f"word list {where}, line {number}: {entry!r} holds no letter or digit; mend or remove the line"
            )
        entries.setdefault(words, entry)
    if not entries:
        raise UserError(f"word list {where} holds no word; write one word or phrase per line")
    return tuple(entries.values())


def by_first_word(entries: Iterable[str]) -> dict[str, list[tuple[Words, str]]]:
    """Entries where they are looked for.

    Args:
        entries: from :func:`read_entries`.

    Returns:
        From a word to the entries that begin with it: the words of each, and its spelling.
    """
    found: dict[str, list[tuple[Words, str]]] = {}
    for entry in entries:
        words = tuple(words_of(entry))
        found.setdefault(words[0], []).append((words, entry))
    return found


def find_entries(entries: Mapping[str, Sequence[tuple[Words, str]]], exchanges: Sequence[Exchange]) -> list[Verdict]:
    """Looks for the entries of a word list in answers.

    Args:
        entries: from :func:`by_first_word`.
        exchanges: of which the answers are read.

    Returns:
        One verdict per exchange: labels in the order in which they are first found, scores by entry.
    """
    verdicts = []
    for exchange in exchanges:
        words = tuple(words_of(exchange.answer))
        found = Counter(
            entry
            for position, word in enumerate(words)
            for wanted, entry in entries.get(word, ())
            if words[position : position + len(wanted)] == wanted
        )
        scores = {entry: float(times) for entry, times in found.items()}
        verdicts.append(Verdict(bool(found), float(found.total()), tuple(found), scores))
    return verdicts


def words_of(text: str) -> Iterator[str]:
    """The words of a text, such that equal ones are the same.

    Yields:
        Words, in order; of a script without spaces, characters with their marks.
    """
    word = ""
    for character in _folded(text):
        sort = _sort(character)
        if (sort == "mark" and word) or (sort == "letter" and not _stands_alone(word)):
            word += character
        elif sort != "invisible":
            if word:
                yield word
            word = character if sort in ("letter", "alone") else ""
    if word:
        yield word


def _folded(text: str) -> str:
    """Unicode's compatibility caseless form (The Unicode Standard, 3.13, D146)."""
    decomposed = unicodedata.normalize("NFD", text).casefold()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKD", decomposed).casefold())


def _stands_alone(word: str) -> bool:
    return bool(word) and _sort(word[0]) == "alone"


@functools.lru_cache(maxsize=1 << 16)
def _sort(character: str) -> str:
    """letter (or digit), alone (a letter of a script without spaces), mark, invisible or between."""
    category = unicodedata.category(character)
    if category[0] in "LN":
        name = unicodedata.name(character, "")
        return "alone" if category != "Nd" and name.split(" ")[0] in _UNSPACED else "letter"
    # Vowel signs of Indic scripts are spacing marks (Mc): what \w of the standard library takes for a word's end.
    return "mark" if category[0] == "M" else "invisible" if category == "Cf" else "between"
