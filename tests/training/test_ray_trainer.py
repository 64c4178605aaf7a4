"""How a training run under Ray Train is put together."""

import pytest
from ray.train import ScalingConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from rllava.training import ray_trainer


@pytest.mark.usefixtures("local_ray")
def test_nobody_waits_for_an_actor_that_needs_the_dashboard_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = ray_trainer.Trainer(lambda: None, scaling_config=ScalingConfig(num_workers=1))
    callbacks = trainer._create_default_callbacks()
    assert callbacks
    assert not any(isinstance(callback, PlacementGroupCleanerCallback) for callback in callbacks)
    monkeypatch.setattr(ray_trainer, "_dashboard_answers", lambda: True)
    assert [type(callback) for callback in callbacks].count(ray_trainer._NoDatasets) == 1
    assert DatasetsCallback not in map(type, callbacks), "it would start an actor that shares out no datasets"
    (cleaner,) = {*map(type, trainer._create_default_callbacks())} - {*map(type, callbacks)}
    assert cleaner is PlacementGroupCleanerCallback
