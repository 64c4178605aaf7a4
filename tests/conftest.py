"""Registers the shared fixtures; see the modules for what each gives."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when its client is imported; no test may fetch real weights

pytest_plugins = [
    "tests.fixtures.processes",
    "tests.fixtures.s3_server",
    "tests.fixtures.ray_cluster",
]

# Tests import timm and open_clip themselves, sometimes before the package that makes torchvision importable.
from rllava.torchvision_shim import declare_missing_operators  # noqa: E402

declare_missing_operators()
