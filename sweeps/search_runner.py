"""Runs a search: Ray Tune over what the study suggests, the front once more on fresh samples, then the report."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from cluster.connect import ClusterInfo, launcher_file
from cluster.machine import usable_cores
from cluster.node_types import Machinery, read_launcher, running_nodes, this_machine
from cluster.placement import Placement
from cluster.shared import share_ray_data
from rllava.data.ray_dataset import in_ray_tasks
from rllava.data.shards import FEW_ROWS, Tasks, in_this_process
from rllava.errors import SweepError
from rllava.search.history import Event, History, Log, Study
from rllava.search.space import SearchSpace
from sweeps.console import current_log, note, say
from sweeps.fitting import TooLarge
from sweeps.plan import check_sources, prepare_data
from sweeps.runner import Machines, carry_out, check_workers_of, find_machines, fit, logged_into
from sweeps.search_board import SearchBoard, standing
from sweeps.search_report import write_report
from sweeps.searching import Search, front_plan, hours_so_far, seeded, work_on_search
from sweeps.trial import Work, run_search_trial


class Suggestions(Searcher):  # type: ignore[misc]  # Ray has no types
    """What Ray Tune asks for the next trial. What comes out of one, the board tells the study: it knows the reasons.

    No trial is ever paused, nothing of it is Tune's to store: its state is that of the study.
    """

    def __init__(self, search: Search, study: Study) -> None:
        super().__init__()
        self.search = search
        self.study = study
        self.running: set[str] = set()

    def suggest(self, trial_id: str) -> Any:
        """Called by Ray Tune when there is room for a trial."""
        found = self.study.next()
        if found is None:
            return None if self.running else Searcher.FINISHED
        number, rung = found
        configuration = dict(self.study.history.proposed[number].configuration)
        spent = hours_so_far(self.search, configuration, rung)
        self.study.happened(Event("begun", number, rung, hours=spent))
        self.running.add(trial_id)
        label = self.search.label(number, rung, configuration)
        return {"candidate": label, "configuration": configuration, "number": number, "rung": rung}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Called by Ray Tune when a trial has ended, well or not."""
        self.running.discard(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: see above."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see above."""


def run_search(search: Search, machines: Machines) -> str:
    """Searches until the budget is spent, then scores the front again and writes the report.

    Returns:
        Path or URL of the report's page.

    Raises:
        UserError: if storage holds another study of this name, or every configuration was refused.
        SweepError: if every trial failed.
    """
    started = time.time()
    with logged_into(search.plan.store) as log:
        study = open_study(search)
        check_workers_of(search.plan, machines)
        found = seeded(search, study)
        if found:
            say(f"{search.name}: {found} configurations are complete in storage already")
        history = study.history
        if study.waiting or not study.over_budget:
            board = SearchBoard(search, study, after_failure=lambda: share_ray_data(in_use=True))
            board.say(f"{search.name}: {len(history.proposed)} configurations known; {standing(search, study)}")
            if log is not None:
                board.say(f"messages of Ray and its workers: {log.path}")
            placement, trials, study.space = prepare(search, machines, board.say)
            with board:
                search_on(search, study, placement, trials, board)
        check_outcome(study)
        plan = front_plan(search, study)
        say(f"{search.name}: the front of {len(study.history.front())} once more, on all samples")
        used = search.rungs[history.top].samples
        if any(spec.shards_of(used) == spec.shards_of(spec.samples) for spec in plan.grid.benchmarks):
            note(
                f"rung {history.top} takes all shards of a benchmark: no samples are left on which nobody has chosen; "
                "give smaller --rungs, or more --samples"
            )
        carry_out(plan, machines, log, started)
        page, table = write_report(search, study)
        say(table)
        minutes, seconds = divmod(int(time.time() - started), 60)
        say(f"search:  {search.plan.store.root}/searches/{search.name}   took {minutes} min {seconds} s")
        say(f"report:  {page}")
        return page


def open_study(search: Search) -> Study:
    """The study as storage has it, or a new one.

    Raises:
        UserError: if storage holds another one of this name.
    """
    signs = tuple(objective.sign for objective in search.objectives)
    log = Log(search.plan.store, search.name, search.seed)
    log.claim(search.description(), search.sampler)
    study = Study(
        search.space, History(len(search.rungs), signs), search.rungs, search.limits, search.sampler, search.seed, log
    )
    study.resume()
    return study


def prepare(search: Search, machines: Machines, tell: Callable[[str], None]) -> tuple[Placement, int, SearchSpace]:
    """Connects to Ray and builds the data that is missing.

    Args:
        tell: told of the data's progress.

    Returns:
        The resources of each kind of work, how many trials run at a time, and the space without what no node holds.

    Raises:
        UserError: if the nodes hold nothing of it.
    """
    plan = search.plan
    most = len(plan.grid.candidates) if search.limits.trials is None else search.limits.trials
    rows = check_sources(plan, plan.store.snapshot([plan.data(spec) for spec in plan.data_specs()]))
    info, placement, trials = find_machines(plan, machines, max(1, most))
    share_ray_data()
    tasks: Tasks = in_this_process
    if rows > FEW_ROWS:
        tasks = in_ray_tasks(placement.data_args(), usable_cores() if info.is_local else None)
    if rows:
        prepare_data(plan, tell, tasks)
    space = search.space
    if machinery := machinery_of(info, trials):
        space = replace(space, too_large=TooLarge(plan, machinery, placement))
        space.check()
    return placement, trials, space


def machinery_of(info: ClusterInfo, trials: int) -> Machinery | None:
    """The nodes of a cluster, those that may come included; None where of those nothing is known."""
    if info.is_local:
        return this_machine(trials, info.cpus)
    if not info.autoscaling:
        return running_nodes([node.resources for node in info.nodes], None)
    path = launcher_file()
    return None if path is None else read_launcher(path)


def search_on(search: Search, study: Study, placement: Placement, trials: int, board: SearchBoard) -> None:
    """Has Ray Tune run what the study suggests, until it suggests nothing more."""
    trainable = tune.with_parameters(run_search_trial, work=Work.of(work_on_search, search, placement))
    suggestions = Suggestions(search, study)
    config = tune.TuneConfig(search_alg=suggestions, num_samples=-1, max_concurrent_trials=trials, reuse_actors=False)
    fit(search.plan, trainable, {}, placement, config, board)


def check_outcome(study: Study) -> None:
    """Refuses to report on nothing.

    Raises:
        UserError: if no trial has finished and every one was refused.
        SweepError: if no trial has finished.
    """
    history = study.history
    if history.front():
        return
    reasons = "; ".join(dict.fromkeys(history.failed.values()))
    log = current_log()
    raise SweepError(
        f"no configuration has a value of every objective ({reasons or 'none was tried'})"
        f"{f'; details: {log.path}' if log is not None else ''}"
    )
