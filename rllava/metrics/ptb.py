"""Tokens of a caption as the Penn Treebank tokenizer of pycocoevalcap 1.2 gives them, without Java.

CIDEr is defined on these tokens. The rules were derived by comparing outputs with the original (Stanford's
``PTBTokenizer -preserveLines -lowerCase``, then the removal of punctuation tokens); they reproduce it on ordinary
English captions (400 of 401 COCO captions), and knowingly not on everything: rare abbreviations, telephone numbers,
program text and most emoticons may differ. The original also looks across the line end: whether a caption's last "D."
keeps its period depends on the caption that happens to follow; here captions stand alone. As in the original, brackets
survive as "-lrb-" and the like (the removal list has them in upper case), and so do runs such as "?!".
"""

import html
import re

_LETTER = r"[^\W\d_\u00b2\u00b3\u00b9\u2070-\u2099]|[\u0300-\u036f\u0900-\u0dff\u0e00-\u0e7f]"
_ALNUM = rf"(?:{_LETTER}|[0-9])"
_LETTER = rf"(?:{_LETTER})"
_ABBREVIATIONS = (
    "adj adm adv al ala apr ariz assn assoc asst atty aug ave bldg blvd brig bros calif capt cf cmdr co col colo comdr "
    "conn corp cpl ct dec dept det dr drs elec est etc ext feb fla fri ft ga gen gov govs hon inc ind insp intl jan jr "
    "jul jun kan ky lt ltd maj mar md messrs mfg mich minn mlle mme mo mon mont mr mrs ms mt natl neb nev nov oct okla "
    "penn pfc ph.d plc pres prof profs pty pvt rd rep reps rev rt sen sens sep sept sgt spc sq sr st ste supt sys tel "
    "tenn thu thurs treas tue tues univ va vs vt wed wis wm wyo"
)
_STATES = "Ark Del Ill La Mass Miss Ore Pa Tex Wash"  # abbreviations only where they have their capital
_SENTENCE_STARTS = (
    "A About After An As At But He Her Here However If In It Last Many More Mr. Now Once One Other Our She Since So "
    "Some Such That The Their Then There These They This We What When While Yet You"
)


def _any_of(words: str) -> str:
    return "(?:" + "|".join(re.escape(word) for word in words.split()) + ")"


_CONTRACTIONS = [
    rf"{_LETTER}+?(?=n't)",  # don't: first "do" ...
    r"n't[a-z]*",  # ... then "n't"
    r"(?:can(?=not)|gon(?=na)|wan(?=na)|got(?=ta)|gim(?=me)|lem(?=me))(?=[a-z]{2,3}(?![a-z0-9]))",
    r"'t(?=is(?![a-z0-9])|was(?![a-z0-9]))|y'(?=[a-z])",
]
"""First halves that are cut off, whatever longer token there is; matched in lower case."""

_TOKENS = [
    rf"'(?:s|m|d|re|ve|ll)(?!{_ALNUM})",
    r"'n'|'(?:em|cause|til|n)(?![a-z0-9])|'[0-9]0s|(?:c'mon|ma'am|ne'er|ol')(?![a-z0-9])",
    rf"[dol]'{_ALNUM}+(?:-{_ALNUM}+)*",  # o'clock
    rf"{_LETTER}{_ALNUM}*(?:[.!?]{_LETTER}{_ALNUM}*)*",  # cat, example.com
    rf"{_ALNUM}+(?:-(?:[dol]')?{_ALNUM}+)*",  # two-year-old, 4x4
    r"[a-z0-9]+(?:_[a-z0-9]+)+",
    r"[a-z0-9][a-z0-9.,]*(?:-(?:(?:[a-z]\.)+(?![a-z0-9])|[a-z0-9]+))+",  # u.s.-based, 1,000-mile
    r"[a-z0-9]+(?:-[a-z]+){0,2}(?:/[a-z0-9]+(?:-[a-z]+){0,2}){1,2}",  # and/or
    r"[a-z](?:\.[a-z])+\.",  # u.s.
    rf"{_any_of(_ABBREVIATIONS)}\.",
    r"(?:nos?|figs?|ca|art)\.(?=\s?[0-9])|pp\.",
    r"[-+]?(?:[0-9]+(?:[.:,][0-9]+)*|(?:[.:,][0-9]+)+)",
    r"[a-z]*\$|c\+\+|[cf]#|#[a-z]+|@[a-z_]+",
    r"(?:https?://|www\.)[^\s<>\"]*[^\s<>\".,!?;:')]|[a-z0-9._%+-]+@[a-z0-9-]+(?:\.[a-z0-9-]+)*",
    r"(?:[a-z0-9-]+\.)+(?:com|net|org|edu)(?:/[^\s<>\"]*[^\s<>\".,!?;:')])?",
    r"</?[a-z!?][^<>:]*>",
    r"[:;=]-?[()](?![a-z0-9])|[:;][dp](?![a-z0-9])|\^_\^",
    r"[?!]{2,}|\*+|#+(?![a-z])|_+|\.+|-+|''|``",
    r"\S",
]
"""Tokens, matched in lower case; the longest one counts."""

_CASED_TOKENS = [
    r"[A-Z]+(?:&[A-Z]+)+",  # AT&T; r & b falls apart
    rf"{_any_of(_STATES)}\.",
    rf"[A-Za-z]\.(?!\s+{_any_of(_SENTENCE_STARTS)}\s)",  # J. Smith, plan b.
]
"""Tokens that depend on capitals."""

_CONTRACTION_PATTERNS = [re.compile(rule) for rule in _CONTRACTIONS]
_TOKEN_PATTERNS = [re.compile(rule) for rule in _TOKENS]
_CASED_PATTERNS = [re.compile(rule) for rule in _CASED_TOKENS]
_REMOVED = frozenset({"'", "''", "`", "``", '"', "?", "!", ",", ":", ";"})
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_CHARACTERS = {
    **dict.fromkeys("\u2018\u2019\u201b", "'"),
    **dict.fromkeys("\u201c\u201d\u201e", '"'),
    **dict.fromkeys("\u2013\u2014\u2015", "--"),
    **dict.fromkeys("\u200b\u00a0\u2028\u2029\ufeff", " "),
    "\u2026": "...",
    "\u00ad": "",
    "\u00a3": " # ",
    "\u20ac": " $ ",
    "\u00a2": " cents ",
    "\u00bc": " 1/4 ",
    "\u00bd": " 1/2 ",
    "\u00be": " 3/4 ",
    "\u2153": " 1/3 ",
    "\u2154": " 2/3 ",
}
_TRANSLATION = str.maketrans(_CHARACTERS)
_ENTITIES = re.compile(r"&(?:amp|lt|gt|quot|nbsp|apos);")
_BEYOND_BMP = re.compile(r"[\U00010000-\U0010ffff]")  # emoji: the original drops what it does not know


def ptb_tokenize(text: str) -> list[str]:
    """Splits a caption into lower-case Penn Treebank tokens without punctuation.

    Returns:
        The tokens; none of an empty text or of punctuation alone. No token holds white space.
    """
    text = _ENTITIES.sub(lambda match: html.unescape(match.group()), text)
    text = _BEYOND_BMP.sub(" ", text.translate(_TRANSLATION))
    lower = _lower(text)
    tokens = []
    position = 0
    while position < len(text):
        if text[position].isspace():
            position += 1
            continue
        end = _token_end(text, lower, position)
        tokens.append(lower[position:end])
        position = end
    return [token for raw in tokens for token in _finish(raw)]


def _lower(text: str) -> str:
    """Lower-cases character by character, so that positions stay the same."""
    return "".join(character.lower() if len(character.lower()) == 1 else character for character in text)


def _token_end(text: str, lower: str, position: int) -> int:
    """Returns where the token that starts at ``position`` ends."""
    for pattern in _CONTRACTION_PATTERNS:
        if match := pattern.match(lower, position):
            return match.end()
    matches = [pattern.match(lower, position) for pattern in _TOKEN_PATTERNS]
    matches += [pattern.match(text, position) for pattern in _CASED_PATTERNS]
    return max(match.end() for match in matches if match)


def _finish(token: str) -> list[str]:
    """Drops punctuation and writes out brackets; a token may fall apart at spaces (inside of tags)."""
    if token in _REMOVED or not token.strip(".") or not token.strip("-"):
        return []
    for bracket, name in _BRACKETS.items():
        token = token.replace(bracket, name)
    return token.split()
