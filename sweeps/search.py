"""Of everything that could be built, what is on the front of clean against robust, within a budget?

Searches over encoders and ensembles of them, language models, projectors and training settings (Optuna on Ray Tune),
gives most configurations few samples and short trainings and the best of them more (successive halving), scores the
front again on samples that nobody has chosen by, and writes a report to STORAGE/reports/search/. What an ablation or
another search has left in the storage is found. The same command again goes on from where it was stopped.
"""

from sweeps.console import run_script
from sweeps.search_settings import Options, check_search_numbers


def main(options: Options) -> None:
    """Searches."""
    check_search_numbers(options)
    from sweeps.search_options import make_search  # imports torch and transformers

    search = make_search(options)
    from sweeps.runner import Machines, shut_down  # imports Ray, which takes seconds
    from sweeps.search_runner import run_search

    machines = Machines(
        options.address, options.workers, options.attack_workers, options.trials, options.gpus, options.memory
    )
    try:
        run_search(search, machines)
    finally:
        shut_down()


if __name__ == "__main__":
    run_script(main, Options, __doc__, log=True)
