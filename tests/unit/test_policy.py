"""What becomes of a task whose worker is gone."""

import pytest

from intervaljob.model.policy import DRAINED, RECOVERY_LIMIT, End, verdict


@pytest.mark.parametrize("recoveries", range(RECOVERY_LIMIT))
def test_a_task_below_its_limit_is_run_again(recoveries: int) -> None:
    assert verdict(job_deleted=False, recoveries=recoveries, evidence="lease_expired") is None


def test_a_task_at_its_limit_is_given_up() -> None:
    end = verdict(job_deleted=False, recoveries=RECOVERY_LIMIT, evidence="executor_exited")
    assert end == End("failed", "RecoveryLimitExceeded: its worker was lost 4 times")


def test_a_drain_is_not_the_tasks_fault() -> None:
    assert verdict(job_deleted=False, recoveries=RECOVERY_LIMIT, evidence=DRAINED) is None


@pytest.mark.parametrize("evidence", ["lease_expired", DRAINED])
@pytest.mark.parametrize("recoveries", [0, RECOVERY_LIMIT])
def test_the_task_of_a_deleted_job_is_cancelled(recoveries: int, evidence: str) -> None:
    end = verdict(job_deleted=True, recoveries=recoveries, evidence=evidence)
    assert end == End("cancelled", "the IntervalJob was deleted")
