from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intervaljob.model.lease import fence_after, renew_every

leases = st.floats(3, 3600)
TICK_AHEAD = 2.0  # the most that one tick adds to witnessed time


@given(lease=leases)
def test_executors_are_dead_before_the_lease_runs_out(lease: float) -> None:
    margin = lease - fence_after(lease)
    assert 0.2 * 3 - 1e-9 <= margin <= TICK_AHEAD + 1e-9


@given(lease=st.floats(10, 3600))
def test_from_ten_seconds_on_a_lease_outlasts_a_stepped_clock(lease: float) -> None:
    assert fence_after(lease) + TICK_AHEAD == pytest.approx(lease)


@given(lease=leases, share=st.floats(0, 1))
def test_two_lost_renewals_do_not_cost_the_lease(lease: float, share: float) -> None:
    """The third is sent after three periods and two pauses, and its answer may take half a period."""
    third_answered = (3.4 + share / 2) * renew_every(lease)
    assert third_answered <= fence_after(lease) + 1e-9


@pytest.mark.parametrize(("lease", "fence", "renew"), [(3, 2.4, 0.6), (10, 8, 2), (30, 28, 6), (3600, 3598, 720)])
def test_leases_as_they_are_set(lease: float, fence: float, renew: float) -> None:
    assert fence_after(lease) == pytest.approx(fence)
    assert renew_every(lease) == pytest.approx(renew)
