"""Hands a search to the analysis: what was tried, what came out, and where its records are."""

import json
from dataclasses import asdict
from typing import Any

from analysis.search import FILE, analyse_search, format_search, load_search
from analysis.search_page import write_search
from rllava.search.history import Study
from rllava.search.sampling import STARTUP
from sweeps.searching import Search, folders_of


def write_report(search: Search, study: Study) -> tuple[str, str]:
    """Writes the files of a search's report.

    Returns:
        Path or URL of its page, and its table for a terminal.
    """
    store = search.plan.store
    content = json.dumps(describe(search, study), indent=1).encode()
    store.write(f"{store.root}/reports/{search.name}/{FILE.format(search.seed)}", content)
    statistics = analyse_search(load_search(search.plan.storage, search.name, search.seed))
    return write_search(statistics), format_search(statistics)


def describe(search: Search, study: Study) -> dict[str, Any]:
    """All of a search but its records, as JSON values."""
    history = study.history
    return {
        "name": search.name,
        "seed": search.seed,
        "training_seed": search.space.model.seed,
        "sampler": search.sampler,
        "startup": 2 * STARTUP,
        "columns": [asdict(column) for column in search.columns],
        "settings": [asdict(setting) for setting in search.space.settings],
        "rungs": [asdict(rung) for rung in search.rungs],
        "one_in": search.limits.one_in,
        "max_trials": search.limits.trials,
        "max_hours": search.limits.hours,
        "trials": history.trials,
        "spent": history.spent,
        "benchmarks": [spec.name for spec in search.plan.grid.benchmarks],
        "judged": [judge.label for judge in search.plan.judges],
        "top": history.top,
        "front": history.front(),
        "front_sweep": search.front_sweep,
        "timeline": history.timeline,
        "configurations": [_configuration(search, study, number) for number in range(len(history.proposed))],
    }


def _configuration(search: Search, study: Study, number: int) -> dict[str, Any]:
    history = study.history
    event = history.proposed[number]
    return {
        "number": number,
        "name": search.space.candidate(event.configuration).name,
        "source": event.source,
        "configuration": dict(event.configuration),
        "fate": history.fate(number, search.limits.one_in),
        "rungs": [
            _trial(search, study, number, rung) for rung in range(history.rungs) if number in history.finished[rung]
        ],
    }


def _trial(search: Search, study: Study, number: int, rung: int) -> dict[str, Any]:
    history = study.history
    plan = search.plan_of(history.proposed[number].configuration, rung)
    (candidate,) = plan.grid.candidates
    return {
        "rung": rung,
        "candidate": candidate.name,
        "values": list(history.finished[rung][number]),
        "hours": history.hours[number, rung],
        "records": folders_of(plan, judged=False),
        "judgements": folders_of(plan, judged=True) if plan.judges else {},
    }
