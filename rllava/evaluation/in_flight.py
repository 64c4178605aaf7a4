"""Attacks in flight: how they are kept while they run, in storage beside the parts they will become."""

import io
import logging
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch

from rllava.evaluation.samples import Sample
from rllava.evaluation.shard_checks import Raised
from rllava.specs import EvalSpec
from rllava.store import Store

ResultT = TypeVar("ResultT")

FORMAT = "engine-v2"


class StateStore(Protocol):
    """Where the attack of a shard, and then what its checks found, is kept while it is in flight."""

    def load(self, spec: EvalSpec) -> Mapping[str, Any] | None:
        """What was saved last, or None."""

    def save(self, spec: EvalSpec, state: Mapping[str, Any]) -> None:
        """Replaces it."""


@dataclass(frozen=True)
class Saving:
    """How attacks in flight are kept.

    Attributes:
        every_s: seconds between two states; 0: after every look and every part of the checks.
    """

    store: StateStore
    every_s: float = 60.0


class InFlight(Protocol[ResultT]):
    """What is kept: an engine, or a search that runs several."""

    def run(self, save: Callable[[dict[str, Any]], None] | None = None, every_s: float = 60.0) -> list[ResultT]:
        """Attacks until nothing is left to do, and gives its state to ``save`` now and then."""

    def state_dict(self) -> dict[str, Any]:
        """All that is in flight."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there."""


class ResumableAttack(Generic[ResultT]):
    """An attack and the checks that follow it, kept on one clock.

    Args:
        engine: at its start; goes on from what was kept, if anything was.
        saving: None: nothing is kept.
    """

    def __init__(self, engine: InFlight[ResultT], spec: EvalSpec, saving: Saving | None) -> None:
        self.engine, self.spec, self.saving = engine, spec, saving
        self.known: Raised = {}
        self._saved = time.monotonic()
        saved = None if saving is None else saving.store.load(spec)
        if saved is not None:
            engine.load_state_dict(saved)
            self.known = saved.get("findings", {})

    def run(self) -> list[ResultT]:
        """Attacks, from where it was left."""
        if self.saving is None:
            return self.engine.run()
        return self.engine.run(self._save, self.saving.every_s)

    def found(self, findings: Raised) -> None:
        """Keeps what the checks have found so far, if it is time to.

        Args:
            findings: of the samples that were checked.
        """
        if self.saving is not None and time.monotonic() - self._saved >= self.saving.every_s:
            self._save({**self.engine.state_dict(), "findings": dict(findings)})

    def _save(self, state: Mapping[str, Any]) -> None:
        assert self.saving is not None
        self.saving.store.save(self.spec, state)
        self._saved = time.monotonic()


def state_path(folder: str, shard: int) -> str:
    """Where the state of a shard's attack lies while it is in flight."""
    return f"{folder}/state-{shard:05d}.pt"


def read_state(
    store: Store, path: str, form: str, what: str, of: Mapping[str, Any] | None = None
) -> Mapping[str, Any] | None:
    """What was kept last of something in flight. A state that cannot be used is passed over, with a warning.

    Args:
        form: name of the format, with its version.
        what: begins anew then, for the warning.
        of: what the state has to be of.

    Returns:
        The state, or None.
    """
    try:
        content = store.filesystem.cat_file(path)
    except FileNotFoundError:
        return None
    try:
        saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if saved["format"] == form and all(saved[name] == value for name, value in (of or {}).items()):
            state: Mapping[str, Any] = saved["state"]
            return state
        reason = "of another version or other samples"
    except (RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        reason = f"damaged: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    logging.getLogger(__name__).warning("%s is %s; %s begins anew", path, reason, what)
    return None


def write_state(
    store: Store, path: str, form: str, state: Mapping[str, Any], of: Mapping[str, Any] | None = None
) -> None:
    """Replaces what :func:`read_state` reads."""
    buffer = io.BytesIO()
    torch.save({"format": form, **(of or {}), "state": dict(state)}, buffer)
    store.write(path, buffer.getvalue())


class ShardStates:
    """States of one shard's attacks, one file per budget; removed when the part is there.

    Args:
        paths: of the records artifact of each spec.
        samples: of the shard; a state of other samples is never loaded.
    """

    def __init__(self, store: Store, paths: Mapping[EvalSpec, str], shard: int, samples: Sequence[Sample]) -> None:
        self.store, self.paths, self.shard = store, paths, shard
        self.samples = [sample.sample_id for sample in samples]

    def path(self, spec: EvalSpec) -> str:
        """Where an attack is kept.

        Args:
            spec: of the evaluation; its fingerprint is in the folder's name.
        """
        return state_path(self.paths[spec], self.shard)

    def load(self, spec: EvalSpec) -> Mapping[str, Any] | None:
        """What was saved last. A state that cannot be used is passed over: the attack begins anew.

        Returns:
            The engine's state, or None.
        """
        return read_state(self.store, self.path(spec), FORMAT, "this shard's attack", {"samples": self.samples})

    def save(self, spec: EvalSpec, state: Mapping[str, Any]) -> None:
        """Replaces the state."""
        write_state(self.store, self.path(spec), FORMAT, state, {"samples": self.samples})

    def remove(self, spec: EvalSpec) -> None:
        """Forgets an attack whose part is written."""
        if self.store.exists(self.path(spec)):
            self.store.filesystem.rm_file(self.path(spec))
