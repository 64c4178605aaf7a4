"""Of everything that could be built, what is on the front of clean against robust, within a budget?

Searches over encoders and ensembles of them, language models, projectors and training settings (Optuna on Ray Tune),
gives most configurations few samples and short trainings and the best of them more (successive halving), scores the
front again on samples that nobody has chosen by, and writes a report to STORAGE/reports/search/. What an ablation or
another search has left in the storage is found. The same command again goes on from where it was stopped.
"""

from sweeps.console import note, run_script
from sweeps.search_settings import Options, check_search_numbers


def main(options: Options) -> None:
    """Searches."""
    check_search_numbers(options)
    from sweeps.search_options import make_search, read_search  # imports torch and transformers

    if options.plan is not None:
        from sweeps.planning import print_plan

        asked = read_search(options)
        print_plan(options, asked.plan)
        note(
            f"a search decides on its way what it runs; planned is each of {len(asked.plan.grid.candidates)} models of "
            "its parts once, by the preset's other settings, on all samples; --max-trials and --max-hours end it sooner"
        )
        return
    search = make_search(options)
    from sweeps.runner import machines_of, shut_down  # imports Ray, which takes seconds
    from sweeps.search_runner import run_search

    try:
        run_search(search, machines_of(options))
    finally:
        shut_down()


if __name__ == "__main__":
    run_script(main, Options, __doc__, log=True)
