"""Registers the shared fixtures; see the modules for what each gives."""

pytest_plugins = [
    "tests.fixtures.processes",
    "tests.fixtures.s3_server",
    "tests.fixtures.ray_cluster",
]

# Tests import timm and open_clip themselves, sometimes before the package that makes torchvision importable.
from rllava.torchvision_shim import declare_missing_operators  # noqa: E402

declare_missing_operators()
