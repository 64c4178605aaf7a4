"""One manifest for who writes it and who reads it."""

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.manifest import ConditionEntry, JudgementsEntry, Manifest, ModelEntry, RecordsEntry
from rllava.errors import UserError
from tests.analysis.synthetic import PROTOCOL, SyntheticSweep, manifest_of

TEXT = st.text(max_size=8)
PATH = TEXT.map(lambda text: f"records/{text.replace('/', '')}x")
NUMBER = st.floats(0, 1e6)
SECONDS = st.just(math.nan) | NUMBER
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
PARTS = st.none() | st.integers(1)
RECORDS = st.builds(RecordsEntry, PATH, TEXT, TEXT, TEXT, st.none() | NUMBER, PARTS, SECONDS, st.booleans(), PARTS)
JUDGEMENTS = st.builds(JudgementsEntry, PATH, TEXT, TEXT, PARTS, SECONDS, st.booleans())
CONDITIONS = st.builds(
    ConditionEntry, TEXT, TEXT, st.none() | NUMBER, st.lists(st.integers(1, 5), max_size=2).map(tuple), st.booleans()
)
MODELS = st.builds(
    ModelEntry, TEXT, PATH, SECONDS, st.booleans(), st.none() | st.integers(0), st.dictionaries(TEXT, JSON, max_size=2)
)
MANIFESTS = st.builds(
    Manifest,
    sweep=TEXT,
    candidates=st.lists(TEXT, max_size=2).map(tuple),
    benchmarks=st.lists(TEXT, max_size=2).map(tuple),
    conditions=st.lists(CONDITIONS, max_size=3).map(tuple),
    samples=st.integers(0, 1000),
    records=st.lists(RECORDS, max_size=2).map(tuple),
    preset=TEXT,
    models=st.lists(MODELS, max_size=2).map(tuple),
    judgements=st.lists(JUDGEMENTS, max_size=2).map(tuple),
    versions=st.dictionaries(TEXT, TEXT, max_size=2),
    machine=st.dictionaries(TEXT, JSON, max_size=2),
    started=TEXT,
    finished=TEXT,
    wall_seconds=NUMBER,
)
ONE = manifest_of(SyntheticSweep(), [RecordsEntry("records/a-0", "a", "easy_vqa", PROTOCOL, 8.0)])


@given(MANIFESTS)
def test_what_is_written_is_what_is_read(manifest: Manifest) -> None:
    assert Manifest.from_json(manifest.to_json(), "here") == manifest


def test_a_time_that_is_not_known_is_null() -> None:
    written = json.loads(ONE.to_json())
    assert written["records"][0]["seconds"] is None
    assert "NaN" not in ONE.to_json()


def test_keys_of_later_versions_are_passed_over() -> None:
    written = json.loads(ONE.to_json())
    written |= {"format": 99, "moods": ["glad"]}
    written["records"][0]["mood"] = 3
    assert Manifest.from_json(json.dumps(written), "here") == ONE


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Manifest)])
def test_the_grid_and_the_artifacts_are_required(field: str) -> None:
    written = json.loads(ONE.to_json())
    del written[field]
    if field in ("sweep", "candidates", "benchmarks", "conditions", "samples", "records"):
        with pytest.raises(
            UserError, match=f"^here: no sweep manifest, key '{field}' is missing; run the sweep again$"
        ):
            Manifest.from_json(json.dumps(written), "here")
    else:
        default = next(entry for entry in dataclasses.fields(Manifest) if entry.name == field)
        expected = default.default_factory() if callable(default.default_factory) else default.default
        assert Manifest.from_json(json.dumps(written), "here") == dataclasses.replace(ONE, **{field: expected})


def test_a_manifest_of_an_earlier_version_is_refused_with_the_remedy() -> None:
    written = json.loads(ONE.to_json())
    del written["format"]  # the first format did not say which it is
    with pytest.raises(
        UserError, match=r"^here: an earlier version of rllava wrote this manifest; .*run the sweep again"
    ):
        Manifest.from_json(json.dumps(written), "here")
