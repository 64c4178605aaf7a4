"""Who may import whom: the rules of the design, held by every file of the tree."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("rllava", "analysis", "cluster", "sweeps")
TREE = (*PACKAGES, "benchmarks", "tests")
PURE = (
    "rllava.recipes",
    "rllava.encoders",
    "rllava.model",
    "rllava.attacks",
    "rllava.conditions",
    "rllava.metrics",
    "rllava.tasks",
    "rllava.data",
)
ASKED = ("rllava.tasks", "rllava.metrics")
"""What the tasks that read and decode import: light, or each of their processes would load torch."""

ADAPTERS = (
    "rllava.data.ray_dataset",
    "rllava.training.ray_trainer",
    "rllava.training.ray_encoders",
    "rllava.evaluation.pipeline",
    "rllava.evaluation.imaging",
    "rllava.evaluation.judging",
)
"""The only modules of the library that know Ray."""

LIGHT = (
    "rllava.records",
    "rllava.judgements",
    "rllava.fronts",
    "rllava.fingerprint",
    "rllava.check_names",
    "rllava.filesystem",
    "rllava.snapshot",
    "rllava.s3",
    "rllava.faults",
    "rllava.errors",
    "rllava.data.hades",
    "rllava.metrics.yes_no",
)
"""What the analysis shares with what writes records."""

LIBRARY_TESTS = tuple(
    f"tests.{part}"
    for part in (
        "attacks",
        "cluster",
        "data",
        "encoders",
        "evaluation",
        "metrics",
        "model",
        "search",
        "tasks",
        "training",
    )
)

GPU_STACK = ("torch", "torchvision", "ray", "transformers", "deepspeed", "timm")


@dataclass(frozen=True)
class Rule:
    """What the modules below some packages must not import.

    Args:
        importers: packages or modules it binds.
        forbidden: packages or modules they must not import, nor anything below.
        but: importers it does not bind.
        allowed: exceptions from ``forbidden``.
    """

    importers: tuple[str, ...]
    forbidden: tuple[str, ...]
    but: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()


RULES = {
    "Ray appears in the library only in its adapters": Rule(("rllava",), ("ray",), but=ADAPTERS),
    "what runs in a plain process does not import the adapters either": Rule(PURE, ADAPTERS, but=ADAPTERS),
    "the library knows neither its users nor the cluster": Rule(("rllava",), ("sweeps", "analysis", "cluster")),
    "what tests the library knows its users as little": Rule(LIBRARY_TESTS, ("sweeps",)),
    "the cluster code knows no sweep": Rule(("cluster",), ("sweeps", "analysis")),
    "attacks know no LLaVA": Rule(
        ("rllava.attacks",),
        ("rllava", "transformers", "timm", "deepspeed"),
        allowed=("rllava.attacks", "rllava.check_names", "rllava.errors", "rllava.registry"),
    ),
    "tasks and metrics are plain descriptions": Rule(
        ASKED,
        ("rllava", *GPU_STACK),
        but=("rllava.metrics.judges.classifier",),  # imports them where weights are looked at
        allowed=(*ASKED, "rllava.errors", "rllava.fingerprint", "rllava.missing", "rllava.registry"),
    ),
    "analysis runs without the GPU stack": Rule(("analysis",), (*GPU_STACK, "sweeps", "cluster")),
    "analysis knows the record, not what wrote it": Rule(("analysis",), ("rllava",), allowed=LIGHT),
    "the record needs no GPU stack": Rule(LIGHT, GPU_STACK),
}


def below(name: str, parents: tuple[str, ...]) -> bool:
    """Says whether a module is one of ``parents`` or below one."""
    return any(name == parent or name.startswith(parent + ".") for parent in parents)


def imported_names(source: str, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Yields line and full name of everything that a module's source imports, at any depth of the source.

    Args:
        module: its dotted name, to resolve relative imports.
        is_package: whether it is an ``__init__.py``.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: None if is_package and node.level == 1 else -node.level + is_package]
                base = ".".join([*parents, *([base] if base else [])])
            for alias in node.names:
                # A name imported from a package may be a module: both spellings count.
                yield node.lineno, f"{base}.{alias.name}"


def is_forbidden(name: str, rule: Rule) -> bool:
    return below(name, rule.forbidden) and not below(name, rule.allowed)


def violations(root: Path) -> list[str]:
    """Returns a line per import in ``root`` that breaks a rule."""
    found = []
    for package in (*PACKAGES, "tests"):
        for path in sorted((root / package).rglob("*.py")):
            relative = path.relative_to(root)
            is_package = path.name == "__init__.py"
            module = ".".join(relative.with_suffix("").parts[: -1 if is_package else None])
            for line, name in imported_names(path.read_text(), module, is_package):
                for text, rule in RULES.items():
                    if below(module, rule.importers) and not below(module, rule.but) and is_forbidden(name, rule):
                        found.append(f"{relative}:{line} imports {name}: {text}")
    return found


def imports_of(root: Path) -> dict[str, set[str]]:
    """Returns, per module of the tree, the modules of the tree that it imports, at any depth of its source."""
    files = {}
    for package in TREE:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            files[".".join(parts[: -1 if path.name == "__init__.py" else None])] = path
    found: dict[str, set[str]] = {}
    for module, path in files.items():
        found[module] = set()
        for _, name in imported_names(path.read_text(), module, path.name == "__init__.py"):
            while name and name not in files:  # a name of a module, or of a package
                name = name.rpartition(".")[0]
            found[module] |= {name} - {"", module}
    return found


def reached(imports: dict[str, set[str]], module: str) -> set[str]:
    """Returns all that a module imports, by way of others too; itself if it is in a circle."""
    seen: set[str] = set()
    waiting = list(imports[module])
    while waiting:
        if (name := waiting.pop()) not in seen:
            seen.add(name)
            waiting += imports[name]
    return seen


def circles(root: Path) -> set[frozenset[str]]:
    """Returns the sets of modules each of which imports all others of its set."""
    imports = imports_of(root)
    beyond = {module: reached(imports, module) for module in imports}
    return {
        frozenset(other for other in beyond[module] if module in beyond[other])
        for module in imports
        if module in beyond[module]
    }


def test_no_circles_not_even_through_functions() -> None:
    assert circles(ROOT) == set()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a": "import rllava.b", "b": "def f():\n    from rllava.a import g"}, "ab"),
        ({"a": "from . import b", "b": "from .c import x", "c": "if TYPE:\n    import rllava.a"}, "abc"),
        ({"a": "import rllava.b", "b": "from rllava import c", "c": "import a"}, ""),
        ({"a": "from rllava.b import a", "b": "import json"}, ""),
    ],
)
def test_the_checker_sees_a_circle(files: dict[str, str], expected: str, tmp_path: Path) -> None:
    (tmp_path / "rllava").mkdir()
    (tmp_path / "rllava/__init__.py").touch()
    for name, source in files.items():
        (tmp_path / f"rllava/{name}.py").write_text(source)
    assert circles(tmp_path) == ({frozenset(f"rllava.{name}" for name in expected)} if expected else set())


def test_the_tree_keeps_the_rules() -> None:
    assert violations(ROOT) == []


def test_the_adapters_exist() -> None:
    for module in ADAPTERS:
        assert (ROOT / (module.replace(".", "/") + ".py")).exists(), module


@pytest.mark.parametrize(
    ("path", "line", "breaks"),
    [
        ("rllava/encoders/clip.py", "import ray", "Ray appears"),
        ("rllava/training/loop.py", "def f():\n    from ray import train", "Ray appears"),
        ("rllava/data/shards.py", "from rllava.data.ray_dataset import read", "does not import the adapters"),
        ("rllava/data/shards.py", "from . import ray_dataset", "does not import the adapters"),
        ("rllava/model/__init__.py", "from ..training import ray_trainer", "does not import the adapters"),
        ("rllava/attacks/apgd.py", "from rllava.model.llava import Llava", "attacks know no LLaVA"),
        ("rllava/attacks/apgd.py", "from rllava import encoders", "attacks know no LLaVA"),
        ("rllava/attacks/apgd.py", "from ..model import llava", "attacks know no LLaVA"),
        ("rllava/attacks/protocols.py", "from rllava.tasks.task import TASKS", "attacks know no LLaVA"),
        ("rllava/tasks/captioning.py", "import torch", "plain descriptions"),
        ("rllava/tasks/captioning.py", "import ray.data", "Ray appears"),
        ("rllava/metrics/vqa.py", "from rllava.evaluation.shard import seed_of", "plain descriptions"),
        ("rllava/evaluation/shard.py", "from cluster.placement import place", "neither its users nor the cluster"),
        ("rllava/store.py", "import sweeps.plan", "neither its users nor the cluster"),
        ("cluster/connect.py", "import sweeps", "knows no sweep"),
        ("analysis/plots.py", "import torch.nn", "without the GPU stack"),
        ("analysis/plots.py", "from rllava.store import Store", "knows the record"),
        ("analysis/plots.py", "import rllava", "knows the record"),
        ("rllava/records.py", "import torch", "needs no GPU stack"),
    ],
)
def test_the_checker_sees_a_violation(path: str, line: str, breaks: str, tmp_path: Path) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(line)
    found = violations(tmp_path)
    assert any(breaks in text and text.startswith(path) for text in found), found


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("rllava/data/ray_dataset.py", "import ray.data"),
        ("rllava/training/ray_trainer.py", "from ray.train import report\nfrom rllava.training import loop"),
        ("rllava/attacks/apgd.py", "from rllava.errors import UserError\nfrom . import common\nimport torch"),
        ("analysis/plots.py", "from rllava.records import KEY\nimport altair"),
        ("sweeps/encoder_ablation.py", "import ray, analysis, cluster.connect, rllava.model"),
        ("rllava/model/llava.py", "import raymond"),
    ],
)
def test_the_checker_lets_the_allowed_through(path: str, line: str, tmp_path: Path) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(line)
    assert violations(tmp_path) == []


@pytest.mark.parametrize(
    ("packages", "absent"),
    [(("analysis",), GPU_STACK), (PURE, ("ray",)), (ASKED, GPU_STACK)],
    ids=["analysis", "plain process", "tasks and metrics"],
)
def test_importing_everything_loads_no_more(packages: tuple[str, ...], absent: tuple[str, ...]) -> None:
    """What the packages they use load counts too, so this asks the interpreter."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for package in packages
        for path in (ROOT / package.replace(".", "/")).rglob("*.py")
        if path.name != "__init__.py"
    ]
    wanted = [module for module in modules if module not in ADAPTERS]
    script = f"import sys; {'; '.join(f'import {m}' for m in wanted)}; print({{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not ast.literal_eval(done.stdout) & set(absent)


def test_a_trial_that_only_waits_and_a_controller_load_no_torch() -> None:
    script = "import sweeps.trial, sweeps.telling, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


@pytest.mark.parametrize("script", ["encoder_ablation", "evaluate"])
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--budgets", "x"], 2, "error: --budgets x: expected numbers"),
        (["--budgets", "4", "8"], 2, "error: --budgets: add 0"),
        (["--samples", "1"], 2, "error: --samples 1: expected at least 2"),
        (["--help"], 0, ""),
    ],
    ids=["no number", "no clean score", "one sample", "help"],
)
def test_help_and_a_mistake_in_a_number_are_told_without_the_gpu_stack(
    script: str, arguments: list[str], code: int, said: str
) -> None:
    program = f"""
import runpy, sys
sys.argv = {[f"sweeps/{script}.py", *arguments]}
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print([name for name in {GPU_STACK} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == (1 if code else 0)
    assert done.stdout.splitlines()[-1] == "[]"
