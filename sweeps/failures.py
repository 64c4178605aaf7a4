"""What Ray's errors come down to: a user's mistake, or a few words about what was lost."""

import re
from collections.abc import Iterator

from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, RayTaskError, WorkerCrashedError

from rllava.errors import UserError

LONGEST = 160
"""Characters of a reason in few words."""


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was raised from, within what Ray makes of an error in a worker; the outermost first.

    Yields:
        Each once.
    """
    waiting, seen = [error], set()
    while waiting:
        found = waiting.pop(0)
        if id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        within = [found.__cause__, getattr(found, "cause", None), found.__context__]
        within += list(getattr(found, "worker_failures", {}).values())  # of Ray Train's TrainingFailedError
        waiting += [inner for inner in within if isinstance(inner, BaseException)]


def users_mistake(error: BaseException) -> str | None:
    """What a user can mend, within what Ray makes of an error in a worker.

    Returns:
        The message of the first :class:`UserError` in it, or in the text of a traceback; None if there is none.
    """
    for found in causes(error):
        # Ray's own stand-in is of the same class, but its text is a traceback: what it stands for comes first.
        if isinstance(found, UserError) and not isinstance(getattr(found, "cause", None), UserError):
            return str(found)
    # Of an error in one of its tasks, Ray Data keeps the traceback's text alone.
    texts = "\n".join(map(str, causes(error)))
    told = re.search(rf"^{UserError.__module__}\.{UserError.__name__}: (.+)$", texts, re.MULTILINE)
    return None if told is None else told.group(1)


def in_few_words(error: BaseException | None) -> str:
    """Why something failed, for one line on a terminal.

    Args:
        error: as caught; None: nothing is known.

    Returns:
        What was lost if a process or machine was, else the innermost error's class and first line.
    """
    if error is None:
        return "for a reason that the log may tell"
    found = list(causes(error))
    if any(isinstance(cause, OutOfMemoryError) for cause in found):
        return "its machine ran out of memory"
    if any(isinstance(cause, NodeDiedError) or "node has died" in str(cause) for cause in found):
        return "its machine was lost"
    if any(isinstance(cause, RayActorError | WorkerCrashedError) for cause in found):
        return "its process was lost"
    # Ray's stand-ins, and errors that wrap a worker's, carry tracebacks for text; what they stand for comes last.
    innermost = next((cause for cause in reversed(found) if not isinstance(cause, RayTaskError)), error)
    lines = str(innermost).strip().splitlines()
    return f"{type(innermost).__name__}{': ' + lines[0] if lines else ''}"[:LONGEST]
