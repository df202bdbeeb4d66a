"""What kopf is told by the operator."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from intervaljob.controller.serving import _kopf_settings


def test_a_request_is_tried_until_the_api_server_is_back() -> None:
    """With kopf's own eight backoffs the operator ended after 54 seconds of answers with 503."""
    backoffs = _kopf_settings().networking.error_backoffs
    assert isinstance(backoffs, Iterable)
    for _ in "two requests":
        seconds = list(itertools.islice(backoffs, 1000))
        assert len(seconds) == 1000
        assert min(seconds) >= 1
        assert max(seconds) <= 5
