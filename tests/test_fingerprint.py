"""Fingerprints: what enters them, what does not, what is refused."""

import dataclasses
import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest

from rllava.encoders import encoder_spec
from rllava.fingerprint import Described, OnlyRounds, PinnedBy, fingerprint, to_json, versions_of


@dataclass(frozen=True)
class Recipe:
    steps: int


@dataclass(frozen=True)
class Trained:
    training: Recipe
    licence: str = ""
    origin: str = ""


@dataclass(frozen=True)
class Blur:
    severity: int = 1


@dataclass(frozen=True)
class Noise:
    severity: int = 1


@dataclass(frozen=True)
class Shown:
    condition: Blur | Noise
    others: tuple[Blur | Noise, ...] = ()


@dataclass(frozen=True)
class Values:
    number: float = 1.0
    count: int = 1
    flag: bool = False
    text: str = ""
    maybe: float | None = None
    kind: Literal["a", "b", 1] = "a"
    pair: tuple[float, int] = (0.0, 0)
    many: tuple[str, ...] = ()
    mixed: str | int | float | bool = 0
    table: Mapping[str, float] = field(default_factory=dict)
    anything: Any = None


def values(**changed: Any) -> Values:
    return Values(**changed)


def test_a_name_takes_no_field_out_of_the_identity() -> None:
    assert fingerprint(Trained(Recipe(4))) != fingerprint(Trained(Recipe(8)))
    assert fingerprint(Trained(Recipe(4), licence="a")) != fingerprint(Trained(Recipe(4), licence="b"))
    assert fingerprint(Trained(Recipe(4), origin="a")) != fingerprint(Trained(Recipe(4), origin="b"))


def test_what_a_field_is_declared_to_be_takes_it_out() -> None:
    @dataclass(frozen=True)
    class Declared:
        words: Described[str]
        batch_size: OnlyRounds[int]
        value: int
        more: Described[tuple[Recipe, ...]] = ()

    plain = Declared("one", 1, 1)
    assert fingerprint(plain) == fingerprint(Declared("two", 2, 1, (Recipe(4),)))
    assert fingerprint(plain) != fingerprint(Declared("one", 1, 2))
    assert to_json(plain) == {"words": "one", "batch_size": 1, "value": 1, "more": []}


def test_specs_that_are_all_defaults_differ_by_their_type_at_every_depth() -> None:
    prints = {fingerprint(spec) for spec in (Blur(), Noise(), Shown(Blur()), Shown(Noise()))}
    prints |= {fingerprint(Shown(Blur(), (other,))) for other in (Blur(), Noise())}
    assert len(prints) == 6


def test_a_new_field_with_a_default_keeps_the_fingerprint() -> None:
    old = make_dataclass("Grown", [("value", int)], frozen=True)
    new = make_dataclass(
        "Grown",
        [("value", int), ("option", float, field(default=1.0)), ("inner", Blur, field(default=Blur()))],
        frozen=True,
    )
    assert fingerprint(new(1)) == fingerprint(new(1, 1)) == fingerprint(new(1, 1.0, Blur(1))) == fingerprint(old(1))
    assert fingerprint(new(1, 2.0)) != fingerprint(old(1))
    assert fingerprint(new(1, 1.0, Blur(2))) != fingerprint(old(1))


def test_a_default_is_one_in_type_as_well() -> None:
    plain = fingerprint(values())
    for other in (False, 0.0, "0"):
        assert fingerprint(values(mixed=other)) != plain
    assert len({fingerprint(values(mixed=other)) for other in (1, 1.0, True, "1")}) == 4


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"number": 4}, {"number": 4.0}),
        ({"number": np.float64(4)}, {"number": np.int64(4)}),
        ({"number": -0.0}, {"number": 0}),
        ({"count": np.int32(4)}, {"count": 4}),
        ({"flag": np.True_}, {"flag": True}),
        ({"text": np.str_("a")}, {"text": "a"}),
        ({"maybe": 4}, {"maybe": 4.0}),
        ({"pair": (4, 4)}, {"pair": [4.0, 4]}),
        ({"many": ["a"]}, {"many": ("a",)}),
        ({"table": {"a": 1, "b": 2}}, {"table": {"b": 2.0, "a": 1.0}}),
        ({"anything": (1, Blur())}, {"anything": [1, Blur()]}),
        ({"number": 1}, {}),
    ],
)
def test_values_are_those_of_their_declared_type(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert fingerprint(values(**one)) == fingerprint(values(**other))
    assert to_json(values(**one)) == to_json(values(**other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"many": ("a", "b")}, {"many": ("b", "a")}),
        ({"many": ("ab",)}, {"many": ("a", "b")}),
        ({"kind": 1}, {"kind": "b"}),
        ({"maybe": 0.0}, {"maybe": None}),
        ({"table": {"a": 1.0}}, {"table": {"b": 1.0}}),
        ({"anything": Blur()}, {"anything": Noise()}),
        ({"anything": 1}, {"anything": True}),
    ],
)
def test_other_values_are_other_specs(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert fingerprint(values(**one)) != fingerprint(values(**other))


class Colour(enum.Enum):
    RED = "red"


class Name(enum.StrEnum):
    RED = "red"


@pytest.mark.parametrize(
    "wrong",
    [
        {"count": True},
        {"number": False},
        {"count": 1.0},
        {"flag": 1},
        {"text": 1},
        {"text": None},
        {"text": Path("a")},
        {"text": Name.RED},
        {"kind": True},
        {"kind": "c"},
        {"maybe": "1"},
        {"pair": (1.0, 1, 1)},
        {"pair": (1.0, 1.5)},
        {"many": {"a", "b"}},
        {"many": "ab"},
        {"many": (b"a",)},
        {"mixed": None},
        {"table": {1: 1.0}},
        {"anything": object()},
        {"anything": Colour.RED},
        {"anything": {"a"}},
        {"anything": np.zeros(2)},
        {"anything": 1j},
        {"anything": len},
    ],
)
def test_values_of_another_kind_raise_and_the_field_is_named(wrong: dict[str, Any]) -> None:
    for use in (fingerprint, to_json):
        with pytest.raises(TypeError, match=rf"^Values\.{next(iter(wrong))}: expected "):
            use(values(**wrong))


@pytest.mark.parametrize("wrong", [{"number": float("nan")}, {"maybe": np.float32("nan")}, {"pair": (float("nan"), 1)}])
def test_nan_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"^Values\.{next(iter(wrong))}: NaN"):
        fingerprint(values(**wrong))


def test_an_error_within_says_the_way_to_it() -> None:
    with pytest.raises(TypeError, match=r"^Shown\.others: Noise\.severity: expected int, got 'high' \(str\)$"):
        fingerprint(Shown(Blur(), (Noise("high"),)))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="no spec"):
        fingerprint({"a": 1})
    with pytest.raises(TypeError, match=r"^Shown\.condition: expected"):
        fingerprint(Shown(Recipe(1)))  # type: ignore[arg-type]


def test_weights_have_no_fingerprint_without_their_hash() -> None:
    @dataclass(frozen=True)
    class Loaded:
        weights: Annotated[str | None, PinnedBy("sha256")] = None
        sha256: str | None = None

    assert fingerprint(Loaded("here", "h")) == fingerprint(Loaded("there", "h")) != fingerprint(Loaded("here", "g"))
    fingerprint(Loaded())
    with pytest.raises(ValueError, match=r"Loaded\.sha256: the hash of 'here' .* is not known; pin .*pin_weights"):
        fingerprint(Loaded("here"))
    spec = encoder_spec("clip-l-336")
    with pytest.raises(ValueError, match="pin_weights"):
        fingerprint(spec)
    assert fingerprint(dataclasses.replace(spec, weights=None))


def test_a_spec_that_can_change_is_looked_at_again() -> None:
    table = {"a": 1.0}
    holding = values(table=table, anything=(1, {"b": 2}))
    before = fingerprint(holding)
    table["a"] = 2.0
    assert fingerprint(holding) != before

    @dataclass
    class Open:
        value: int

    thawed = Open(1)
    before = fingerprint(thawed)
    thawed.value = 2
    assert fingerprint(thawed) != before


def test_a_version_enters_from_the_second_on() -> None:
    def spec(**versions: int) -> Any:
        @dataclass(frozen=True)
        class Scored:
            value: int = 1

            def versions(self) -> Mapping[str, int]:
                return versions

        return Scored()

    assert versions_of(spec(metric=2)) == {"metric": 2}
    assert fingerprint(spec()) == fingerprint(spec(metric=1))
    assert len({fingerprint(spec(metric=1)), fingerprint(spec(metric=2)), fingerprint(spec(grid=2))}) == 3
