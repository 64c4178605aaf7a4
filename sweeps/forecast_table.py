"""A forecast as a page of tables, and as JSON."""

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from cluster.node_types import Machinery, NodeType
from sweeps.fitting import Memory
from sweeps.forecast import Forecast, StepForecast

GIB = 2.0**30


def table(found: Forecast) -> str:
    """For people: what would run, how large it is, how long it takes, what it costs, and what that rests on."""
    parts = [
        f"plan of {found.sweep} (preset {found.preset}), nothing is run; machines: {found.machinery.source}",
        *_missing(found),
        _steps(found),
        _sizes(found),
        _memory(found),
        _time(found),
        _money(found),
        *_rests(found),
    ]
    return "\n\n".join(part for part in parts if part)


def _missing(found: Forecast) -> list[str]:
    if not found.missing:
        return []
    lines = [f"  {item.what}: {item.where}" for item in found.missing]
    count = len(lines)
    return ["\n".join([f"missing before it can run ({count} input{'s' if count > 1 else ''}):", *lines])]


def _steps(found: Forecast) -> str:
    rows = []
    for kind, (there, to_do) in found.counts.items():
        own = [step for step in found.steps if step.kind == kind]
        rows.append(
            [kind, str(there), str(to_do), _count(sum(step.needed.steps for step in own)),
             _flops(sum(step.needed.flops for step in own)), _bytes(sum(step.needed.read for step in own)),
             _bytes(sum(step.needed.written for step in own))]
        )  # fmt: skip
    return _grid(["steps", "found", "to do", "gradient steps", "operations", "read", "written"], rows)


def _sizes(found: Forecast) -> str:
    rows = [
        [
            name,
            _count(size.encoders),
            _count(size.projectors),
            _count(size.language_model),
            _count(size.total),
            str(tokens),
        ]
        for name, (size, tokens) in found.sizes.items()
    ]
    return (
        _grid(["parameters", "encoders", "projectors", "language model", "all", "visual tokens"], rows) if rows else ""
    )


def _memory(found: Forecast) -> str:
    names = list(dict.fromkeys(name for entry in found.memory for name in entry.fits))
    kinds = {kind.name: kind for kind in found.machinery.kinds}
    heads = [f"{name}{_held(kinds[name])}" for name in names]
    rows = [
        [entry.candidate, entry.phase, f"{entry.bytes / GIB:.2f}", *(_fits(entry, name) for name in names)]
        for entry in found.memory
    ]
    return _grid(["memory of a worker", "phase", "GiB", *heads], rows) if rows else ""


def _held(kind: NodeType) -> str:
    memory = kind.gpu.memory if kind.gpu is not None else kind.memory
    return f" ({memory / GIB:.0f} GiB)" if memory else ""


def _fits(entry: Memory, name: str) -> str:
    fits = entry.fits.get(name)
    if fits is None:
        return "-"
    if fits == 0:
        return "does not fit"
    return f"{fits} sample{'s' if fits > 1 else ''}" if entry.phase.startswith("attack") else "fits"


def _time(found: Forecast) -> str:
    gpu = any(step.gpu_s for step in found.steps)
    unit = "GPU-hours" if gpu else "worker-hours"
    rows = []
    for kind in ("models", "images", "records"):
        own = [step for step in found.steps if step.kind == kind]
        if not own:
            continue
        label = {"models": "training", "images": "universal images", "records": "answers and attacks"}[kind]
        most = found.hours(kind, most=True)
        rows.append([label, _hours(found.hours(kind)), _hours(most), _rates(own)])
    text = _grid([unit, "expected", "at most", "speed known from"], rows)
    if found.timetable is None:
        return text
    nodes = ", ".join(f"{count} {name}" for name, count in found.timetable.most_nodes.items())
    where = "this machine" if found.machinery.local else f"up to {nodes}"
    candidates = f"{found.trials} candidate{'s' if found.trials > 1 else ''} at a time"
    wall = f"wall-clock time: {_duration(found.timetable.wall_s)}, {candidates}, on {where}"
    return f"{text}\n{wall}"


def _rates(steps: Sequence[StepForecast]) -> str:
    return "; ".join(dict.fromkeys(step.rate for step in steps if step.rate)) or "nothing to do"


def _money(found: Forecast) -> str:
    if found.timetable is None or found.machinery.local:
        return ""
    rows, lacking = [], []
    for kind in found.machinery.kinds:
        hours = found.timetable.node_hours.get(kind.name, 0.0)
        cost = found.cost_usd[kind.name]
        if cost is None and hours:
            lacking.append(kind.name)
        market = "spot" if kind.spot else "on demand"
        rows.append([kind.name, kind.instance or "-", market, f"{hours:.1f}", "?" if cost is None else f"{cost:,.0f}"])
    total = found.total_usd
    text = _grid(["node type", "instance", "market", "node-hours", "USD"], rows)
    if lacking:
        return f"{text}\ncost: no price for {', '.join(lacking)}; give a table with --prices"
    usd = "?" if total is None else f"{total:,.0f}"
    return f"{text}\ncost: {usd} USD at the prices of {found.prices}; storage and traffic not counted"


def _rests(found: Forecast) -> list[str]:
    parts = []
    if found.assumed:
        parts.append("\n".join(["assumed, not measured here:", *(f"  {line}" for line in found.assumed)]))
    if found.notes:
        parts.append("\n".join(["look at:", *(f"  {line}" for line in found.notes)]))
    return parts


def as_json(found: Forecast) -> str:
    """The whole forecast for programs: seconds, bytes, operations and USD as plain numbers."""
    content = {
        "sweep": found.sweep,
        "preset": found.preset,
        "machines": _machines(found.machinery),
        "missing": [dataclasses.asdict(item) for item in found.missing],
        "counts": {kind: {"found": there, "to_do": to_do} for kind, (there, to_do) in found.counts.items()},
        "steps": [_step(step) for step in found.steps],
        "parameters": {
            name: {**dataclasses.asdict(size), "total": size.total, "visual_tokens": tokens}
            for name, (size, tokens) in found.sizes.items()
        },
        "memory": [dataclasses.asdict(entry) for entry in found.memory],
        "hours": {
            "training": found.hours("models"),
            "attacks": found.hours("records", "images"),
            "attacks_at_most": found.hours("records", "images", most=True),
            "gpu": found.hours("models", "records", "images", gpu=True),
        },
        "wall_seconds": found.timetable.wall_s if found.timetable else None,
        "node_hours": dict(found.timetable.node_hours) if found.timetable else {},
        "candidates_at_a_time": found.trials,
        "cost_usd": {**found.cost_usd, "total": found.total_usd},
        "prices": found.prices,
        "rates": list(found.rates),
        "assumed": list(found.assumed),
        "notes": list(found.notes),
    }
    return json.dumps(content, indent=1)


def _machines(machinery: Machinery) -> dict[str, Any]:
    kinds = [
        {"name": kind.name, "instance": kind.instance, "spot": kind.spot, "most": kind.most, "memory": kind.memory,
         "gpu": kind.gpu.name if kind.gpu else None, "resources": dict(kind.resources)}
        for kind in machinery.kinds
    ]  # fmt: skip
    return {"source": machinery.source, "node_types": kinds}


def _step(step: StepForecast) -> dict[str, Any]:
    return {
        "kind": step.kind,
        "name": step.name,
        "path": step.path,
        "candidate": step.trial,
        "level": step.level,
        "found": step.found,
        "flops": step.needed.flops,
        "gradient_steps": step.needed.steps,
        "read_bytes": step.needed.read,
        "written_bytes": step.needed.written,
        "worker_seconds": step.worker_s,
        "worker_seconds_at_most": step.most_s,
        "gpu_seconds": step.gpu_s,
        "rate": step.rate,
    }


def _grid(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [list(heads), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    texts = set(_text_columns(lines))
    shown = [
        "  ".join(cell.ljust(width) if column in texts else cell.rjust(width)
                  for column, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip()
        for line in lines
    ]  # fmt: skip
    return "\n".join([shown[0], "-" * max(map(len, shown)), *shown[1:]])


def _text_columns(lines: Sequence[Sequence[str]]) -> Iterable[int]:
    """Columns that are read rather than compared."""
    for column in range(len(lines[0])):
        if column == 0 or not all(line[column][:1].isdigit() or line[column] in "-?" for line in lines[1:]):
            yield column


def _count(value: float) -> str:
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if value >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.4g} {unit}"
    return f"{value:.0f}"


def _flops(value: float) -> str:
    if value <= 0:
        return "0"
    power = min(6, int(math.log10(value) // 3))
    return f"{value / 10 ** (3 * power):.3g} {['', 'k', 'M', 'G', 'T', 'P', 'E'][power]}FLOP"


def _bytes(value: float) -> str:
    return f"{value / GIB:.3g} GiB"


def _hours(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"
