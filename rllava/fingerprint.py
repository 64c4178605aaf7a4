"""Fingerprints: the hash of everything that decides a result; it names the artifact.

A spec is a frozen dataclass. Its fingerprint is made of its type's name, its fields and the versions of the code that
it depends on; a nested spec enters by its own fingerprint. Values are normalised by their field's type: an int in a
float field hashes as the float, a bool is no number, NaN and unknown kinds of values are refused.

**Fields.** Every field is part of the identity, unless its annotation says why it is not::

    training: Described[str] = ""                                for people
    weights: Annotated[str | None, PinnedBy("sha256")] = None    where something lies; another field holds its hash
    zero_stage: OnlyRounds[int] = 2                              how it is computed, see below

A field at its default does not enter the hash: a new option whose default is what was done before it keeps all
artifacts. The default of a field that is there therefore never changes its meaning without a version;
``tests/golden/identity.json`` holds every one, for all recipes.

**Rounding.** What only rounds differently is not part of the identity: batch size, ZeRO stage, recomputed layers,
``torch.compile``, the number and kind of workers. A result is the same wherever and in whatever portions it was
computed, and a sweep that ran out of memory keeps what it has when it goes on in smaller ones. What was used is written
down instead: such fields stand in the artifact's ``spec.json``, and what they came to on the machine (the batch size
that fitted, the number of workers) in the facts of its marker. Precision is no such thing, nor is a micro-batch: the
training loss is a mean over the tokens of each.

**Versions.** Code that decides a result has a version, which is raised by the change that makes something else come
out of it. It stands beside that code: as a field ``version`` of what is a spec itself (protocols, data sources,
encoders, those of plug-ins too) or an entry of a registry (kinds of tasks, metrics, conversation templates), else as a
constant ``..._VERSION``. A spec names those of the second and third kind that it depends on in ``versions()``. Version
1 does not enter the hash, as no default does. What has no version of its own (the model's arithmetic, seeds) has
:data:`FORMAT`.
"""

import collections.abc
import dataclasses
import functools
import hashlib
import json
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

FORMAT = 5
"""Part of every fingerprint; raised when the meaning of existing specs changes. A storage holds results of one."""

T = TypeVar("T")


@dataclass(frozen=True)
class NoIdentity:
    """Marks a field that is not part of a spec's identity."""

    why: str


@dataclass(frozen=True)
class PinnedBy(NoIdentity):
    """Marks a field that says where something lies.

    Attributes:
        hashed_in: field that holds its hash, without which the spec has no fingerprint.
    """

    why: str = dataclasses.field(default="says where something lies", init=False)
    hashed_in: str


Described = Annotated[T, NoIdentity("describes the spec to people")]
OnlyRounds = Annotated[T, NoIdentity("only rounds differently")]


@dataclass(frozen=True)
class Field:
    """What a type of specs declares about a field.

    Attributes:
        outside: why it is not part of the identity; None: it is.
        default: as JSON, normalised; None: it has none.
    """

    name: str
    kind: Any
    outside: NoIdentity | None
    default: str | None


@functools.cache
def fields_of(kind: type) -> tuple[Field, ...]:
    """What a type of specs declares.

    Raises:
        TypeError: if it is no dataclass, or a default is of no known kind.
    """
    if not dataclasses.is_dataclass(kind):
        raise TypeError(f"{kind.__name__} is no spec: specs are dataclasses")
    hints = get_type_hints(kind, include_extras=True)
    found = []
    for field in dataclasses.fields(kind):
        hint: Any = hints[field.name]
        marks: tuple[Any, ...] = getattr(hint, "__metadata__", ())
        hint = hint.__origin__ if marks else hint
        outside = next((mark for mark in marks if isinstance(mark, NoIdentity)), None)
        default = field.default_factory() if callable(field.default_factory) else field.default
        encoded = None
        if outside is None and default is not dataclasses.MISSING:
            with _told_as(kind, field.name):
                encoded = _encoded(_plain(default, hint, _reference))
        found.append(Field(field.name, hint, outside, encoded))
    return tuple(found)


def to_json(spec: Any, nested: Callable[[Any], Any] | None = None) -> dict[str, Any]:
    """A spec as plain JSON values, every field and default, whether part of the identity or not.

    Args:
        nested: what stands for a spec in it; None: its own JSON.

    Raises:
        TypeError: if a value is of an unknown kind, or not of its field's.
        ValueError: if a number is NaN.
    """
    known: dict[int, dict[str, Any]] = {}  # evaluations hold the same specs dozens of times

    def whole(inner: Any) -> dict[str, Any]:
        if id(inner) not in known:
            known[id(inner)] = to_json(inner, whole)
        return known[id(inner)]

    found, kind = {}, _type(spec)
    for field in fields_of(kind):
        with _told_as(kind, field.name):
            found[field.name] = _plain(getattr(spec, field.name), field.kind, nested or whole)
    return found


def versions_of(spec: Any) -> Mapping[str, int]:
    """The versions of the code that a spec depends on, those in its fields left out.

    Returns:
        What its ``versions()`` names; nothing where it has none.
    """
    named: Callable[[], Mapping[str, int]] | None = getattr(spec, "versions", None)
    return {} if named is None else named()


_KNOWN = "_fingerprint"
"""Under which a spec that cannot change keeps its fingerprint: evaluations hold dozens of others."""


def fingerprint(spec: Any) -> str:
    """Hash of everything that decides a spec's result.

    Raises:
        TypeError: if a value is of an unknown kind, or not of its field's.
        ValueError: if a number is NaN, or the hash of something that decides the result is not known yet.
    """
    attributes: dict[str, Any] = getattr(spec, "__dict__", {})
    if _KNOWN in attributes:
        return str(attributes[_KNOWN])
    kind, fields = _type(spec), {}
    for field in fields_of(kind):
        value = getattr(spec, field.name)
        if isinstance(field.outside, PinnedBy) and value and not getattr(spec, field.outside.hashed_in):
            raise ValueError(
                f"{kind.__name__}.{field.outside.hashed_in}: the hash of {value!r} decides the result and is not "
                "known; pin the spec before it is named (rllava.weights.pin_weights)"
            )
        if field.outside is None:
            with _told_as(kind, field.name):
                plain = _plain(value, field.kind, _reference)
            if _encoded(plain) != field.default:
                fields[field.name] = plain
    versions = {name: version for name, version in versions_of(spec).items() if version != 1}
    described = {"format": FORMAT, "type": kind.__name__, "fields": fields, "versions": versions}
    digest = hashlib.sha256(_encoded(described).encode()).hexdigest()[:16]
    if _never_changes(spec):
        attributes[_KNOWN] = digest
    return digest


def _never_changes(value: Any) -> bool:
    if isinstance(value, (str, int, float, types.NoneType)):
        return True
    if isinstance(value, tuple):
        return all(map(_never_changes, value))
    if not dataclasses.is_dataclass(value) or not hasattr(value, "__dict__"):
        return False
    frozen = type(value).__dataclass_params__.frozen  # type: ignore[union-attr]
    return _KNOWN in value.__dict__ or (
        frozen and all(_never_changes(getattr(value, field.name)) for field in dataclasses.fields(value))
    )


def _type(spec: object) -> type:
    return type(spec)


def _reference(spec: Any) -> dict[str, str]:
    return {"fingerprint": fingerprint(spec)}


def _encoded(plain: Any) -> str:
    return json.dumps(plain, sort_keys=True)


class _told_as:  # noqa: N801 (a context manager)
    """Says in an error of which field it is."""

    def __init__(self, kind: type[Any], field: str) -> None:
        self.kind, self.field = kind, field

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> Literal[False]:
        if type(error) in (TypeError, ValueError):
            raise type(error)(f"{self.kind.__name__}.{self.field}: {error}") from error  # type: ignore[misc]
        return False


def _plain(value: Any, kind: Any, nested: Callable[[Any], Any]) -> Any:
    """A value as JSON, normalised by the type that its field declares."""
    if isinstance(value, np.generic):
        value = value.item()
    if type(value) is kind and kind in (str, int, bool):
        return value
    origin, members = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _plain(value, members[0], nested)
    if origin in (Union, types.UnionType):
        return _of_union(value, members, nested)
    if origin is Literal and any(type(value) is type(known) and value == known for known in members):
        return value
    if kind is float and type(value) in (int, float):
        return _number(float(value))
    if kind in (None, types.NoneType) and value is None:
        return None
    if (origin or kind) in _SEQUENCES and isinstance(value, (tuple, list)):
        kinds = _members(value, members, origin)
        return [_plain(entry, member, nested) for entry, member in zip(value, kinds, strict=True)]
    if (origin or kind) in _MAPPINGS and isinstance(value, Mapping):
        keys, values = members or (str, Any)
        return {_key(_plain(key, keys, nested)): _plain(entry, values, nested) for key, entry in value.items()}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and isinstance(value, kind):
        return nested(value)
    if kind in (Any, object):
        return _of_union(value, (type(value) if dataclasses.is_dataclass(value) else None, *_KINDS), nested)
    expected = str(kind) if origin else getattr(kind, "__name__", str(kind))
    raise TypeError(f"expected {expected}, got {value!r} ({type(value).__name__})")


_SEQUENCES = (tuple, list, collections.abc.Sequence)
_MAPPINGS = (dict, collections.abc.Mapping)
_KINDS = (bool, int, float, str, tuple[Any, ...], dict[str, Any])


def _of_union(value: Any, members: tuple[Any, ...], nested: Callable[[Any], Any]) -> Any:
    if dataclasses.is_dataclass(value):
        # What is wrong within a spec is told, not taken for another member's failure.
        fitting = [member for member in members if isinstance(member, type) and isinstance(value, member)]
        return _plain(value, fitting[0] if fitting else None, nested)
    for member in sorted(members, key=lambda member: member is not type(value)):  # a bool is a bool before it is an int
        try:
            return _plain(value, member, nested)
        except TypeError:
            continue
    expected = " or ".join(getattr(member, "__name__", str(member)) for member in members)
    raise TypeError(f"expected {expected}, got {value!r} ({type(value).__name__})")


def _members(value: tuple[Any, ...] | list[Any], members: tuple[Any, ...], origin: Any) -> tuple[Any, ...]:
    """The type of each entry."""
    if not members or origin is not tuple or members[1:] == (Ellipsis,):
        return (members[0] if members else Any,) * len(value)
    if len(members) != len(value):
        raise TypeError(f"expected {len(members)} entries, got {value!r}")
    return members


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"expected text as a key, got {key!r} ({type(key).__name__})")
    return key


def _number(value: float) -> float:
    if math.isnan(value):
        raise ValueError("NaN is not equal to itself and identifies nothing; give a number")
    return value + 0.0  # -0.0 is 0.0
