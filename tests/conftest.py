"""Registers the shared fixtures; see the modules for what each gives."""

pytest_plugins = [
    "tests.fixtures.processes",
    "tests.fixtures.s3_server",
    "tests.fixtures.ray_cluster",
]
