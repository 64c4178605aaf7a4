"""Tasks: what a model is asked, and how its answers are scored; one file per kind. Every file of this folder is
imported, so that a new kind is one file, which registers itself in :data:`rllava.tasks.task.TASKS`."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
