"""One trial of a sweep as Ray Tune sees it: a light process that passes on what its work tells.

The work (:mod:`sweeps.work`) runs beside the trial (:mod:`cluster.beside`). This file imports nothing heavy, and is
handed the work as a reference that it does not open: a process that only waits need not load torch.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import ray
from ray import tune
from ray.tune.execution import class_cache

from cluster.beside import run_beside


@dataclass(frozen=True)
class Work:
    """What trials run, in Ray's object store.

    Attributes:
        function: called with a way to tell, the candidate's name, and the arguments.
    """

    function: Any
    arguments: Any

    @classmethod
    def of(cls, function: Callable[..., None], *arguments: Any) -> "Work":
        """Stores a function and its last arguments."""
        return cls(ray.put(function), ray.put(arguments))


def run_trial(config: dict[str, Any], work: Work) -> None:
    """The function Ray Tune calls.

    Args:
        config: ``{"candidate": name}``.
    """
    for event in run_beside(work.function, work.arguments, config["candidate"]):
        tune.report({"event": event})


def run_search_trial(config: dict[str, Any], work: Work) -> None:
    """As :func:`run_trial`, of a search: what is to be done is in the configuration, not in a plan made before.

    Args:
        config: ``{"candidate": label, "configuration": its settings, "rung": index}``.
    """
    for event in run_beside(work.function, work.arguments, config):
        tune.report({"event": event})


@contextlib.contextmanager
def inherited_environment() -> Iterator[None]:
    """A stretch of code in which Ray Tune gives trials no environment variables of their own.

    For a local Ray, whose processes all have this process's variables already (the one that Tune adds is for PyTorch
    Lightning). What has variables of its own gets a fresh process, and so does all that it starts: idle processes,
    which have imported everything by now, would not be used again. On a cluster, where variables are those of its
    nodes, Tune passes credentials on by them.

    Yields:
        Nothing.
    """
    with (
        mock.patch.object(class_cache, "DEFAULT_ENV_VARS", {}),
        mock.patch.object(class_cache, "ENV_VARS_TO_PROPAGATE", set()),
    ):
        yield
