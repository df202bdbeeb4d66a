"""Worker Pods are killed by force, each in mid-task, and the fault campaign's checker looks at what really ran."""

from pathlib import Path

import pytest
from chaos import pods
from real_cluster import Cluster, Release


@pytest.mark.timeout(600)
def test_pods_that_are_killed_lose_and_double_nothing(cluster: Cluster, release: Release, tmp_path: Path) -> None:
    outcome = pods.run(cluster, release, kills=6, folder=tmp_path)
    assert outcome.violations == []
    assert len(outcome.gaps) >= 6, "what the Pods ran was run again"
    assert max(outcome.gaps) < 10, "long before the lease of 30 s has run out"
