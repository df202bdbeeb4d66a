from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from intervaljob.model.retry import backoff_seconds


@given(
    failures=st.integers(1, 100_000),
    initial=st.integers(1, 3600),
    maximum=st.integers(1, 86_400),
    key=st.text(),
)
def test_the_wait_is_within_a_tenth_of_a_capped_doubling(failures: int, initial: int, maximum: int, key: str) -> None:
    nominal = min(maximum, initial * 2 ** (failures - 1))
    waited = backoff_seconds(failures=failures, initial=initial, maximum=maximum, key=key)
    assert 0.9 * nominal <= waited <= 1.1 * nominal


def test_the_same_failure_always_waits_the_same() -> None:
    waits = {backoff_seconds(failures=3, initial=10, maximum=600, key="a") for _ in range(10)}
    assert waits == {backoff_seconds(failures=3, initial=10, maximum=600, key="a")}


def test_keys_and_failures_are_spread_over_the_whole_range() -> None:
    by_key = [backoff_seconds(failures=1, initial=100, maximum=100, key=str(n)) for n in range(1000)]
    by_failure = [backoff_seconds(failures=n, initial=100, maximum=100, key="a") for n in range(1, 1001)]
    for waits in (by_key, by_failure):
        assert min(waits) < 91
        assert max(waits) > 109
        assert abs(sum(waits) / len(waits) - 100) < 1
