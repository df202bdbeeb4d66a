"""What becomes of a task whose worker is gone."""

import pytest

from intervaljob.model.policy import CLAIM_LOST, DRAINED, NOT_STARTED, End, is_counted, verdict

LIMIT = 2


def judged(
    *, evidence: str = "lease_expired", recoveries: int = 0, policy: str = "Rerun", cancelled: str | None = None
) -> End | None:
    return verdict(cancelled=cancelled, policy=policy, limit=LIMIT, recoveries=recoveries, evidence=evidence)


@pytest.mark.parametrize("recoveries", range(LIMIT))
def test_a_task_below_its_limit_is_run_again(recoveries: int) -> None:
    assert judged(recoveries=recoveries) is None


def test_a_task_at_its_limit_is_given_up() -> None:
    end = judged(recoveries=LIMIT, evidence="executor_exited")
    assert end == End("failed", "RecoveryLimitExceeded: its worker was lost 3 times")


@pytest.mark.parametrize("evidence", [DRAINED, CLAIM_LOST, NOT_STARTED])
def test_what_is_not_the_tasks_fault_never_gives_it_up(evidence: str) -> None:
    assert not is_counted(evidence)
    assert judged(recoveries=LIMIT, evidence=evidence) is None


@pytest.mark.parametrize("evidence", ["lease_expired", "executor_exited", "superseded", "unknown_worker"])
def test_any_other_loss_counts(evidence: str) -> None:
    assert is_counted(evidence)


@pytest.mark.parametrize("evidence", ["lease_expired", "executor_exited", DRAINED])
def test_a_task_that_must_not_run_twice_fails(evidence: str) -> None:
    end = judged(policy="Fail", evidence=evidence)
    assert end is not None
    assert (end.status, end.error.split(":")[0]) == ("failed", "RecoveryPolicyFail")
    assert evidence in end.error


@pytest.mark.parametrize("evidence", [CLAIM_LOST, NOT_STARTED])
def test_one_that_must_not_run_twice_may_run_once(evidence: str) -> None:
    assert judged(policy="Fail", evidence=evidence) is None


@pytest.mark.parametrize("evidence", ["lease_expired", DRAINED, CLAIM_LOST])
@pytest.mark.parametrize("recoveries", [0, LIMIT])
@pytest.mark.parametrize("policy", ["Rerun", "Fail"])
def test_what_somebody_cancelled_is_cancelled(recoveries: int, evidence: str, policy: str) -> None:
    end = judged(recoveries=recoveries, evidence=evidence, policy=policy, cancelled="it was cancelled")
    assert end == End("cancelled", "it was cancelled")
