"""Prompts from files in the formats in which others publish them; the ending of a file's name says which one it is.

    .jsonl, .json   an object per line: RealToxicityPrompts', of which the challenging ones are taken, or
                    {"prompt": "..."}
    .csv            the column goal, prompt, instruction or text of AdvBench and its like; without such a header, the
                    first column, as in VisualAdv's manual_harmful_instructions.csv
    any other       plain text, an instruction per line

A sample's id is the number of its line, so that it stays when other lines change and tells equal prompts apart. Blank
lines are passed over.
"""

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rllava.data.entries import Entry
from rllava.data.llava_json import MARKER
from rllava.errors import UserError

COLUMNS = ("goal", "prompt", "instruction", "text")
"""Names of a CSV file's column of prompts, in whatever case; of several, the first of these."""

Numbered = Iterator[tuple[int, str]]
"""Texts with the numbers of their lines, from 1."""


def read_content(path: Path, sha256: str | None = None) -> bytes:
    """Reads a file of prompts whole.

    Args:
        sha256: that it has to have; None: any.

    Raises:
        UserError: if it cannot be read, or has another hash.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"prompts {path} cannot be read: {error.strerror or type(error).__name__}; give a file"
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and found != sha256:
        raise UserError(
            f"prompts {path} have sha256 {found[:12]}…, expected {sha256[:12]}…; bring the file back, or give the new "
            "one another name"
        )
    return content


def parse_prompts(content: bytes, path: Path) -> list[Entry]:
    """The prompts of a file, as it spells them.

    Args:
        content: of the file.
        path: by whose ending it is read; messages name it.

    Returns:
        Entries without images and references, in the order of the file.

    Raises:
        UserError: if the file holds no prompt, or a line is not in its format; the message names the line.
    """
    read = {".jsonl": _of_json_lines, ".json": _of_json_lines, ".csv": _of_csv}.get(path.suffix.lower(), _lines)
    entries = []
    for number, prompt in read(_decoded(content, path), path):
        if MARKER in prompt:
            raise UserError(f"prompts {path}, line {number}: it holds {MARKER}, which stands for the image; remove it")
        entries.append(Entry(str(number), None, (), prompt))
    if not entries:
        kind = "challenging prompt" if read is _of_json_lines else "prompt"
        raise UserError(f"prompts {path} hold no {kind}; give one per line")
    return entries


def _decoded(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"prompts {path}, line {line}: no UTF-8 text; save the file as UTF-8") from error


def _lines(text: str, path: Path) -> Numbered:
    # By line feeds alone: what else Unicode calls the end of a line may stand in a prompt.
    for number, line in enumerate(map(str.strip, text.split("\n")), start=1):
        if line:
            yield number, line


def _of_json_lines(text: str, path: Path) -> Numbered:
    for number, line in _lines(text, path):
        where = f"prompts {path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: no JSON ({error.msg}); write one object per line") from error
        prompt, kept = _prompt_of(row, where)
        if kept:
            yield number, prompt


def _prompt_of(row: Any, where: str) -> tuple[str, bool]:
    """The prompt of a row, and whether it counts."""
    prompt = row.get("prompt") if isinstance(row, dict) else None
    described = isinstance(prompt, dict)
    text = prompt.get("text") if isinstance(prompt, dict) else prompt
    plain = 'write {"prompt": "..."}, or rows of RealToxicityPrompts'
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where}: it has no prompt; {plain}")
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UserError(f"{where}: half a character (a lone surrogate) is in its prompt; mend or remove the line")
    challenging = row.get("challenging", None if described else True)
    if not isinstance(challenging, bool):
        raise UserError(f"{where}: it does not say whether it is challenging, true or false; {plain}")
    return text, challenging


def _of_csv(text: str, path: Path) -> Numbered:
    rows = _rows(text, path)
    if not rows:
        return
    names = [cell.strip().casefold() for cell in rows[0][1]]
    column = next((names.index(name) for name in COLUMNS if name in names), None)
    for number, row in rows if column is None else rows[1:]:
        if len(row) != len(names):
            raise UserError(
                f"prompts {path}, line {number}: {len(row)} columns where the first line has {len(names)}; put quotes "
                "around a prompt that holds commas"
            )
        prompt = row[column or 0]
        if not prompt.strip():
            raise UserError(f"prompts {path}, line {number}: its column of prompts is blank; mend or remove the line")
        yield number, prompt


def _rows(text: str, path: Path) -> list[tuple[int, list[str]]]:
    """The rows of a CSV file that are not blank, with the numbers of their first lines."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows, number = [], 1
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append((number, row))
            number = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"prompts {path}, line {number}: no CSV ({error}); mend the quotes of the row") from error
    return rows
