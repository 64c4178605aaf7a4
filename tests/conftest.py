"""Registers the shared fixtures; see the modules for what each gives."""

import gc
import os

import hypothesis

# The same examples everywhere and always, however slow the machine: a clone's tests pass or fail as their author's did.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)
hypothesis.settings.load_profile("fixed")

# Numbers do not hang on how many cores there are, and the processes of pytest -n share them without more threads than
# cores. (To be set before PyTorch is imported.)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # read when its client is imported; no test may fetch real weights


def pytest_collection_finish() -> None:
    """What is imported by now stays: the garbage collector need not look through a million objects again and again."""
    gc.collect()
    gc.freeze()


pytest_plugins = [
    "pytester",
    "tests.fixtures.distribution",
    "tests.fixtures.endpoint",
    "tests.fixtures.packages",
    "tests.fixtures.processes",
    "tests.fixtures.s3_server",
    "tests.fixtures.ray_cluster",
]


# Tests import timm and open_clip themselves, sometimes before the package that makes torchvision importable.
from rllava.torchvision_shim import declare_missing_operators  # noqa: E402

declare_missing_operators()
