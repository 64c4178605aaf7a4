"""The one exception that scripts turn into a single line and exit status 2."""


class UserError(ValueError):
    """A mistake the user can mend: its message says in one line what is wrong, where, and the remedy."""
