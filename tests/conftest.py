"""Registers the shared fixtures; see the modules for what each gives."""

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when its client is imported; no test may fetch real weights

_RAY = {"tracked", "local_ray", "ray_head", "unbroken"}

pytest_plugins = [
    "tests.fixtures.processes",
    "tests.fixtures.s3_server",
    "tests.fixtures.ray_cluster",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start Ray run one after the other in one of the two processes, beside everything else in the other.

    pytest 9.2 distributes them over both, as if there were no groups (pytest-dev/pytest-xdist#1386).
    """
    for item in items:
        if _RAY & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group("ray"))


# Tests import timm and open_clip themselves, sometimes before the package that makes torchvision importable.
from rllava.torchvision_shim import declare_missing_operators  # noqa: E402

declare_missing_operators()
