"""Judges by word lists, and how judges are named."""

from pathlib import Path

import pytest

from rllava.errors import UserError
from rllava.fingerprint import fingerprint
from rllava.metrics.judges.judge import JUDGES, Exchange, Verdict, read_judge
from rllava.metrics.judges.lexicon import Lexicon, read_entries, words_of


def lexicon(tmp_path: Path, text: str, encoding: str = "utf-8") -> Lexicon:
    path = tmp_path / "words.txt"
    path.write_bytes(text.encode(encoding))
    found = read_judge(f"lexicon:{path}").pinned()
    assert isinstance(found, Lexicon)
    return found


def said(judge: Lexicon, answer: str) -> Verdict:
    (verdict,) = judge.load()([Exchange("<image>\nWhat is it?", answer)])
    return verdict


@pytest.mark.parametrize(
    ("entry", "answer", "times"),
    [
        ("ass", "first class", 0),
        ("hands up", "Hands - up! hands\nUP", 2),
        ("hands up", "hands, then up", 0),
        ("straße", "die STRASSE", 1),
        ("café", "cafe\u0301", 1),  # the accent as a mark of its own
        ("café", "cafe", 0),
        ("ﬁre", "FIRE", 1),  # a ligature
        ("don't", "don’t do it", 1),
        ("bomb", "bo\u200bmb", 1),  # a space of no width
        ("नमस्ते", "नमस्ते दुनिया", 1),  # vowel signs are part of the word
        ("爆弾", "これは爆弾です", 1),  # no spaces between words
        ("爆弾", "爆破と弾", 0),
        ("red red", "red red red", 2),  # places, which may overlap
    ],
)
def test_entries_are_found_word_by_word(tmp_path: Path, entry: str, answer: str, times: int) -> None:
    verdict = said(lexicon(tmp_path, f"{entry}\n"), answer)
    assert verdict.flagged == (times > 0)
    assert verdict.score == times
    assert verdict.labels == ((entry,) if times else ())
    assert verdict.scores == ({entry: float(times)} if times else {})


def test_labels_stand_in_the_order_in_which_they_are_found(tmp_path: Path) -> None:
    verdict = said(lexicon(tmp_path, "red\nsquare\nblue circle\n"), "a blue circle, a red square, a red one")
    assert verdict.labels == ("blue circle", "red", "square")
    assert verdict.scores == {"blue circle": 1.0, "red": 2.0, "square": 1.0}
    assert verdict.score == 4.0


def test_an_answer_is_judged_by_itself(tmp_path: Path) -> None:
    judge = lexicon(tmp_path, "red\n").load()
    answers = [Exchange("?", text) for text in ("a red one", "blue", "red red")]
    assert list(judge(answers)) == [judge([one])[0] for one in answers]


def test_a_word_list_is_its_words_not_its_file(tmp_path: Path) -> None:
    plain = lexicon(tmp_path, "red\nblue\n")
    for text in ("# colours\n red \r\nblue", "\ufeffred\nRed\n\nblue\n"):
        other = lexicon(tmp_path, text)
        assert other.entries == ("red", "blue")
        assert fingerprint(other) == fingerprint(plain)
        assert other.label == plain.label
    (tmp_path / "words.txt").unlink()
    assert plain.pinned() == plain, "what is pinned needs its file no more"
    assert plain.load()([Exchange("?", "blue")])[0].flagged
    assert fingerprint(lexicon(tmp_path, "blue\nred\n")) != fingerprint(plain), "labels could come in another order"
    with pytest.raises(ValueError, match="pin the spec"):
        fingerprint(Lexicon("words.txt"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no word; write one word or phrase per line"),
        (b"# nothing\n\n", "holds no word"),
        (b"red\n...\n", r"line 2: '\.\.\.' holds no letter or digit"),
        (b"red\nblue\n\xff\n", "line 3: no UTF-8 text; save the file as UTF-8"),
    ],
)
def test_a_bad_word_list_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=f"word list w.txt,? ?{message}"):
        read_entries(content, "w.txt")


def test_bad_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown judge 'lexicn'; did you mean lexicon"):
        read_judge("lexicn:words.txt")
    with pytest.raises(UserError, match="judge lexicon: give its word list, lexicon:FILE"):
        read_judge("lexicon")
    with pytest.raises(UserError, match="cannot be read: Is a directory; give a text file"):
        read_judge(f"lexicon:{tmp_path}").pinned()
    (missing,) = read_judge("lexicon:/nowhere/words.txt").missing()
    assert (missing.what, missing.where) == ("word list", "/nowhere/words.txt")
    assert "lexicon" in list(JUDGES)


def test_words_of_mixed_scripts() -> None:
    assert list(words_of("Ein 爆弾test, 3 Äpfel_ñ")) == ["ein", "爆", "弾", "test", "3", "äpfel", "ñ"]


@pytest.mark.parametrize(
    ("answer", "refuses"),
    [
        ("I’m sorry, but I can’t help with that.", True),
        ("As an AI language model, I must decline.", True),
        ("Sure! I cannot recommend it enough.", True),  # what a list of phrases gets wrong
        ("That would be wrong.", False),  # and here
        ("The square is red.", False),
    ],
)
def test_refusals_are_found_by_phrases(answer: str, refuses: bool) -> None:
    judge = read_judge("refusal").pinned()
    (verdict,) = judge.load()([Exchange("?", answer)])
    assert verdict.flagged == refuses
    assert bool(verdict.labels) == refuses


def test_another_list_of_refusals_is_another_judge(tmp_path: Path) -> None:
    path = tmp_path / "nein.txt"
    path.write_text("nein danke\n")
    other, usual = read_judge(f"refusal:{path}").pinned(), read_judge("refusal").pinned()
    assert other.load()([Exchange("?", "Nein, danke!")])[0].flagged
    assert fingerprint(other) != fingerprint(usual)
    assert {judge.label.split("-")[0] for judge in (other, usual)} == {"refusal"}
    assert other.label != usual.label
    assert other.description == "the 1 phrases of nein.txt"
    assert fingerprint(lexicon(tmp_path, "nein danke\n")) != fingerprint(other), "who finds a word says another thing"
