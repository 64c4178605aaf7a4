"""What a trial makes of errors in Ray's workers."""

import pytest
import ray.data
from ray.exceptions import RayTaskError

from cluster.connect import ClusterInfo
from rllava.errors import UserError
from sweeps.failures import users_mistake


class TrainingFailedError(Exception):
    """Ray Train's, as far as it matters: it holds its workers' errors."""

    def __init__(self, failures: dict[int, BaseException]) -> None:
        super().__init__("1 worker failed")
        self.worker_failures = failures


def in_a_task(error: Exception) -> BaseException:
    """As Ray raises it: of the error's class as well, with a traceback for text."""
    raised: BaseException = RayTaskError("task", "Traceback (most recent call last): ...", error).as_instanceof_cause()
    return raised


def test_a_users_mistake_is_found_in_whatever_ray_wraps_around_it() -> None:
    mistake = UserError("encoder 'mine': mine.pth is damaged; fetch it again")
    assert users_mistake(mistake) == str(mistake)
    assert users_mistake(in_a_task(mistake)) == str(mistake)
    assert users_mistake(TrainingFailedError({0: in_a_task(mistake)})) == str(mistake)
    wrapped = RuntimeError("map failed")
    wrapped.__cause__ = in_a_task(mistake)
    assert users_mistake(wrapped) == str(mistake)


def test_a_programs_mistake_stays_one() -> None:
    failed = RuntimeError("broken")
    failed.__cause__ = failed
    assert users_mistake(failed) is None
    assert users_mistake(TrainingFailedError({0: in_a_task(ValueError("broken"))})) is None


def test_a_users_mistake_in_a_task_of_ray_data_is_found(local_ray: ClusterInfo) -> None:
    assert local_ray.is_local
    with pytest.raises(Exception, match="shard 'x' is damaged") as caught:
        list(ray.data.from_items([{"path": "x"}]).map(fail).iter_rows())
    assert users_mistake(caught.value) == "shard 'x' is damaged (bad page); delete it"
    assert users_mistake(TrainingFailedError({0: caught.value})) == "shard 'x' is damaged (bad page); delete it"


def fail(row: dict[str, str]) -> dict[str, str]:
    raise UserError(f"shard '{row['path']}' is damaged (bad page); delete it")
