"""The API server, as far as the operator needs it: IntervalJobs, their statuses and events, and worker Pods."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any
from uuid import uuid4

import aiohttp
from kubernetes.aio import client, config
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.config.config_exception import ConfigException

from intervaljob.errors import SettingsError
from intervaljob.model.custom_resource import GROUP, PLURAL, VERSION, IntervalJob
from intervaljob.model.pod import WORKER_LABEL, Pod

logger = logging.getLogger(__name__)

KIND = "IntervalJob"

#: Bound on one request.
REQUEST_SECONDS = 30
#: Seconds after which the server ends a watch.
WATCH_SECONDS = 300
#: Seconds after which a watch that says nothing is broken: the server sends a bookmark each minute.
SILENT_SECONDS = 100.0
#: What a watch says that is no change.
BOOKMARK = "BOOKMARK"
#: Objects in one page of a list at most; in the first, whose size is not known; and bytes of one, about.
PAGE = 500
FIRST_PAGE = 50
PAGE_BYTES = 4_000_000
#: Longest message of an event (Kubernetes' own limit for core events).
EVENT_MESSAGE = 1024


class Conflict(Exception):  # noqa: N818 - HTTP's word
    """The object has changed since its resource version was read, or is gone."""


@asynccontextmanager
async def connect() -> AsyncIterator[Api]:
    """A client, configured as in a pod or from KUBECONFIG.

    Raises SettingsError when there is no way to a cluster.
    """
    try:
        config.load_incluster_config()
    except ConfigException:
        try:
            await config.load_kube_config()
        except (ConfigException, OSError) as error:
            raise SettingsError(f"no cluster: not in a pod, and KUBECONFIG does not lead to one: {error}") from error
    async with client.ApiClient() as api_client:
        yield Api(api_client)


class Api:
    """IntervalJobs and their events, and worker Pods."""

    def __init__(self, api_client: client.ApiClient) -> None:
        self._client = api_client
        self._custom = client.CustomObjectsApi(api_client)

    async def cluster_id(self) -> str:
        """The uid of the namespace kube-system: what tells this cluster from every other."""
        response = await self._request("GET", "/api/v1/namespaces/kube-system")
        async with response:
            if response.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND):
                raise SettingsError(
                    f"the uid of kube-system cannot be read ({response.status} {response.reason}):"
                    " allow it, or set INTERVALJOB_CLUSTER_ID"
                )
            await _refused(response)
            return str((await response.json())["metadata"]["uid"])

    async def get(self, *, namespace: str, name: str) -> IntervalJob | None:
        """The IntervalJob of that name, None when the API server says that there is none."""
        try:
            body = await self._custom.get_namespaced_custom_object(
                GROUP, VERSION, namespace, PLURAL, name, _request_timeout=REQUEST_SECONDS
            )
        except ApiException as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise
        return IntervalJob.from_body(_object(body))

    async def pages(self, *, namespace: str | None) -> AsyncGenerator[list[IntervalJob], None]:
        """Every IntervalJob of the namespace (None: of all) as of one moment, in pages of a size that memory allows."""
        following: str | None = ""
        limit = FIRST_PAGE
        while following is not None:
            body = await self._read(_intervaljobs(namespace), limit=limit, **_continued(following))
            limit = max(1, min(PAGE, limit * PAGE_BYTES // len(body)))
            page = _object(json.loads(body))
            yield [IntervalJob.from_body(one) for one in page["items"]]
            following = page["metadata"].get("continue") or None

    async def version(self, *, namespace: str | None) -> str:
        """The resource version of the namespace's IntervalJobs as they are now, from which to watch."""
        page = await self._list(_intervaljobs(namespace), limit=1)
        return str(page["metadata"]["resourceVersion"])

    def watch(self, *, namespace: str | None, version: str) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
        """Every change of an IntervalJob after this version; see `_watch`."""
        return self._watch(_intervaljobs(namespace), version=version)

    async def write_status(
        self, *, namespace: str, name: str, resource_version: str, status: Mapping[str, Any]
    ) -> IntervalJob:
        """Merge a status into the object that has this resource version still; returns what it is then.

        Raises Conflict when it has another one, or is gone.
        """
        try:
            body = await self._custom.patch_namespaced_custom_object_status(
                *(GROUP, VERSION, namespace, PLURAL, name),
                {"metadata": {"resourceVersion": resource_version}, "status": status},
                _content_type="application/merge-patch+json",
                _request_timeout=REQUEST_SECONDS,
            )
        except ApiException as error:
            if error.status in (HTTPStatus.CONFLICT, HTTPStatus.NOT_FOUND):
                raise Conflict from error
            raise
        return IntervalJob.from_body(_object(body))

    async def write_event(self, *, uid: str, namespace: str, name: str, kind: str, reason: str, message: str) -> None:
        """One event about an IntervalJob; `kind` is Normal or Warning."""
        now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{name[:200]}.{uuid4().hex[:16]}", "namespace": namespace},
            "involvedObject": {
                "apiVersion": f"{GROUP}/{VERSION}",
                "kind": KIND,
                "name": name,
                "namespace": namespace,
                "uid": uid,
            },
            "type": kind,
            "reason": reason,
            "message": message[:EVENT_MESSAGE],
            "source": {"component": "intervaljob"},
            "reportingComponent": f"{GROUP}/operator",
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        async with await self._request("POST", f"/api/v1/namespaces/{namespace}/events", body=event) as response:
            await _refused(response)

    async def worker_pods(self, *, namespace: str) -> tuple[list[Pod], str]:
        """Every worker Pod of the namespace, and the resource version from which to watch."""
        pods, version, following = [], "", ""
        while True:
            page = await self._list(_pods(namespace), labelSelector=WORKER_LABEL, limit=PAGE, **_continued(following))
            pods += [Pod.from_body(body) for body in page["items"]]
            version, following = page["metadata"]["resourceVersion"], page["metadata"].get("continue") or ""
            if not following:
                return pods, version

    async def pod_exists(self, pod: Pod, *, namespace: str) -> bool:
        """Whether this very Pod is there, with whatever labels. A list, so that no right to get Pods is needed."""
        page = await self._list(_pods(namespace), fieldSelector=f"metadata.name={pod.name}")
        return any(Pod.from_body(body).uid == pod.uid for body in page["items"])

    async def watch_worker_pods(self, *, namespace: str, version: str) -> AsyncGenerator[tuple[str, Pod], None]:
        """Every change of a worker Pod after this version; see `_watch`.

        DELETED comes also for a Pod that has lost its label.
        """
        async with aclosing(self._watch(_pods(namespace), version=version, labelSelector=WORKER_LABEL)) as events:
            async for kind, body in events:
                if kind != BOOKMARK:
                    yield kind, Pod.from_body(body)

    async def _watch(
        self, path: str, *, version: str, **options: object
    ) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
        """(ADDED, MODIFIED or DELETED, the object) of every change after this version, until the server ends the watch.

        DELETED comes with the last state; a BOOKMARK has nothing but a newer version. Raises what UNREACHABLE lists,
        also for a watch that is silent for longer than between bookmarks; ApiException with 410 where the server no
        longer knows the version.
        """
        query = {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": WATCH_SECONDS}
        response = await self._request(
            "GET", path, query={**query, "resourceVersion": version, **options}, seconds=WATCH_SECONDS + REQUEST_SECONDS
        )
        async with response:
            await _refused(response)
            async for line in _lines(response):
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise ApiException(status=event["object"]["code"], reason=event["object"]["message"])
                yield event["type"], event["object"]

    async def _list(self, path: str, **options: object) -> dict[str, Any]:
        """One page as it was sent."""
        return _object(json.loads(await self._read(path, **options)))

    async def _read(self, path: str, **options: object) -> bytes:
        async with await self._request("GET", path, query=options) as response:
            await _refused(response)
            return await response.read()

    async def _request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] | None = None,
        body: Mapping[str, object] | None = None,
        seconds: float = REQUEST_SECONDS,
    ) -> aiohttp.ClientResponse:
        """Any request. The client's own class for the core API loads the models of every kind there is (24 MB)."""
        verb, url, headers, content, form = await self._client.param_serialize(
            *(method, path),
            query_params=list((query or {}).items()),
            header_params={"Accept": "application/json", "Content-Type": "application/json"},
            body=body,
            auth_settings=["BearerToken"],
        )
        answer = await self._client.call_api(verb, url, headers, content, form, _request_timeout=seconds)
        response = answer.response
        assert isinstance(response, aiohttp.ClientResponse)
        return response


async def _refused(response: aiohttp.ClientResponse) -> None:
    """Raises ApiException for an answer that is none."""
    if not response.ok:
        raise ApiException(status=response.status, reason=response.reason, body=await response.text())


async def _lines(response: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
    """Line by line, however long one is: aiohttp's own limit is below the largest IntervalJob."""
    rest = b""
    while True:
        async with asyncio.timeout(SILENT_SECONDS):
            chunk = await response.content.readany()
        if not chunk:
            break
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line
    if rest:
        raise ConnectionError("the watch was cut off in the middle of an event")


def _intervaljobs(namespace: str | None) -> str:
    where = "" if namespace is None else f"/namespaces/{namespace}"
    return f"/apis/{GROUP}/{VERSION}{where}/{PLURAL}"


def _pods(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/pods"


def _continued(token: str) -> dict[str, object]:
    return {"continue": token} if token else {}


def _object(body: object) -> dict[str, Any]:
    assert isinstance(body, dict)
    return body


#: What a request may raise that a later try may mend.
UNREACHABLE = (ApiException, aiohttp.ClientError, OSError, TimeoutError)
