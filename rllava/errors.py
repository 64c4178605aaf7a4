"""The exceptions that scripts turn into a single line: exit status 2 for a mistake, 1 for what went wrong."""


class UserError(ValueError):
    """A mistake the user can mend: its message says in one line what is wrong, where, and the remedy."""


class SweepError(RuntimeError):
    """Part of a sweep failed for good; its message says what, what was kept, and what to do."""
