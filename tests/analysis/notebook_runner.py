"""Executes the notebook on some results, as a user's Jupyter would."""

import os
import sys
import tempfile
from pathlib import Path

import nbformat
import traitlets
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

REPOSITORY = Path(__file__).resolve().parents[2]
NOTEBOOKS = REPOSITORY / "analysis" / "notebooks"
NOTEBOOK = NOTEBOOKS / "pareto.ipynb"


class _OwnKernels(AsyncKernelManager):
    """Finds the kernel of this environment, whatever kernels the user has installed elsewhere."""

    @traitlets.default("kernel_spec_manager")
    def _kernel_spec_manager_default(self) -> KernelSpecManager:
        return KernelSpecManager(kernel_dirs=[os.path.join(sys.prefix, "share", "jupyter", "kernels")])


def execute_notebook(
    storage: str, sweep: str = "encoder_ablation", timeout_s: int = 800, notebook: str = NOTEBOOK.name
) -> nbformat.NotebookNode:
    """Executes a notebook in a fresh kernel of this very interpreter.

    Args:
        storage: path or URL of the results.
        timeout_s: most seconds a cell, or the start of the kernel, may take.

    Returns:
        The notebook with its outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    opened = nbformat.read(NOTEBOOKS / notebook, as_version=4)
    client = NotebookClient(
        opened,
        kernel_name="python3",
        kernel_manager_class=_OwnKernels,
        timeout=timeout_s,
        startup_timeout=timeout_s,
        shutdown_kernel="immediate",
    )
    with tempfile.TemporaryDirectory() as home:
        variables = {
            "RLLAVA_STORAGE": storage if "://" in storage or not storage else os.path.abspath(storage),
            "RLLAVA_SWEEP": sweep,
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
            "IPYTHONDIR": home,
        }
        return client.execute(env={**os.environ, **variables})
