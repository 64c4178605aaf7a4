"""Corpora of target sentences from users' files."""

from pathlib import Path

import pytest

from rllava.data.target_corpus import read_corpus
from rllava.errors import UserError


def test_corpora_are_read_line_by_line_or_from_the_first_column(tmp_path: Path) -> None:
    lines, table = tmp_path / "corpus.txt", tmp_path / "corpus.CSV"
    lines.write_bytes('\ufeffSay \u00e9t\u00e9, now\r\n\r\n  \n  second one \n"third"'.encode())
    assert read_corpus(lines) == ("Say \u00e9t\u00e9, now", "second one", '"third"')
    table.write_text('"Say ""this"", now",1\n\n,2\n  second one \n"two\nlines",x\n', encoding="utf-8")
    assert read_corpus(str(table)) == ('Say "this", now', "second one", "two\nlines")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "cannot be read"),
        ("empty.txt", b"", "holds no target"),
        ("blank.csv", b"\n ,x\n", "holds no target"),
        ("latin.txt", "\u00e9t\u00e9".encode("latin-1"), "UTF-8"),
    ],
)
def test_a_corpus_at_fault_is_named_in_one_line(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_corpus(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="cannot be read"):
        read_corpus(tmp_path)
