"""The tokenizer on single constructs; expected values are the original's output."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rllava.metrics.ptb import ptb_tokenize


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Don't he's they'd we've", "do n't he 's they 'd we 've"),
        ("cannot gonna 'tis y'all o'clock ma'am", "can not gon na 't is y' all o'clock ma'am"),
        ("dogs' James's nothin' 'em 'round", "dogs james 's nothin 'em round"),
        ("don’t “quoted” ‘it’", "do n't quoted it"),
        ("black-and-white T-shirt mid-air", "black-and-white t-shirt mid-air"),
        ("hello--world — a – b -dog cat-", "hello world a b dog cat"),
        ("Mr. Smith vs. the U.S. at 5 p.m. etc.", "mr. smith vs. the u.s. at 5 p.m. etc."),
        ("The cat sat. The sun. A dog.", "the cat sat the sun a dog"),
        ("plan B. is", "plan b. is"),
        ("it is C. It is", "it is c it is"),
        ("1,000 3.5 1/2 10:30 10:30am 1980s 2nd 5.", "1,000 3.5 1/2 10:30 10:30 am 1980s 2nd 5"),
        ("$5.00 50% #1 £10 €20", "$ 5.00 50 % # 1 # 10 $ 20"),
        ("(a) [b] {c}", "-lrb- a -rrb- -lsb- b -rsb- -lcb- c -rcb-"),
        ("what?! no!!! yes?", "what ?! no !!! yes"),
        ("and/or w/o cat,dog cat;dog end.Next", "and/or w/o cat dog cat dog end.next"),
        ("AT&T R&B black&white a & b &amp;", "at&t r&b black & white a & b &"),
        ("café naïve 日本 😀 ½", "café naïve 日本 1/2"),
        ("<unk> <3 me@x.com http://a.com/b.", "<unk> < 3 me@x.com http://a.com/b"),
        ("a\nb\tc\u00a0d\u200be", "a b c d e"),
        ("", ""),
    ],
)
def test_tokens(text: str, tokens: str) -> None:
    assert ptb_tokenize(text) == tokens.split()


@given(st.text(max_size=80))
def test_any_text_gives_lower_case_tokens_without_white_space(text: str) -> None:
    for token in ptb_tokenize(text):
        assert token
        assert len(token.split()) == 1
        assert not any("A" <= character <= "Z" for character in token)


@given(st.lists(st.sampled_from(["a", "red", "circle", "on", "plain", "ground", "two", "dogs"]), max_size=12))
def test_plain_words_are_their_own_tokens(words: list[str]) -> None:
    assert ptb_tokenize(" ".join(words)) == words
    assert ptb_tokenize(" ".join(words).upper()) == words
    assert ptb_tokenize(", ".join(words) + " .") == words
