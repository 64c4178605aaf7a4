"""What a run needs and does not find: collected from everywhere, then told in one message."""

from collections.abc import Sequence
from dataclasses import dataclass

from rllava.errors import UserError


@dataclass(frozen=True)
class Missing:
    """A file or folder that is not there.

    Attributes:
        what: it is, in a few words.
    """

    what: str
    where: str
    source: str


def refuse_missing(missing: Sequence[Missing], remedy: str = "put them there and run again") -> None:
    """Tells everything that is missing at once, by where it comes from.

    Args:
        missing: of all kinds, in the order in which it is told; what is named twice is told once.

    Raises:
        UserError: if anything is missing.
    """
    by_source: dict[str, list[str]] = {}
    for item in dict.fromkeys(missing):
        by_source.setdefault(item.source, []).append(f"{item.where} ({item.what})")
    if by_source:
        listed = "; ".join(f"from {source}: {', '.join(items)}" for source, items in by_source.items())
        count = sum(map(len, by_source.values()))
        raise UserError(f"{count} {'inputs are' if count > 1 else 'input is'} missing: {listed}; {remedy}")
