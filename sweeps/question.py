"""What the script of a question does beside its plan."""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from sweeps.options import SweepOptions

if TYPE_CHECKING:
    from sweeps.plan import Plan

Asked = TypeVar("Asked", bound=SweepOptions)


def main_of(make_plan: "Callable[[Asked], Plan]") -> Callable[[Asked], None]:
    """The function that a script runs: it makes the plan of its options, and runs it."""

    def main(options: Asked) -> None:
        plan = make_plan(options)
        from sweeps.grid import run_plan  # imports torch and transformers

        run_plan(options, plan)

    return main
