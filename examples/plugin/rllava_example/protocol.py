"""A protocol: five steps of APGD against the right answer, then five more from the best image."""

from collections.abc import Callable

from rllava.attacks.protocols import Protocol
from rllava.attacks.rounds import BEST, CLEAN, SAME, Round, reference

ROUNDS = (Round("label0", 5, "float32", CLEAN, reference(0)), Round("again", 5, "float32", BEST, SAME))
TWICE = Protocol("twice", 1, (("example_yes_no", ROUNDS), ("short_answer", ROUNDS)))


def add(register: Callable[[str, Protocol], Protocol]) -> None:
    register(TWICE.name, TWICE)
