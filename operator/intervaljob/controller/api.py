"""The API server, as far as the operator needs it: IntervalJobs, their statuses and events, and worker Pods."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
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
#: Seconds after which the server ends a watch of Pods; one that is silent for longer than that is broken.
WATCH_SECONDS = 300
#: Objects in one page of a list.
PAGE = 500
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
        self._custom = client.CustomObjectsApi(api_client)
        self._core = client.CoreV1Api(api_client)

    async def cluster_id(self) -> str:
        """The uid of the namespace kube-system: what tells this cluster from every other."""
        try:
            namespace = await self._core.read_namespace("kube-system", _request_timeout=REQUEST_SECONDS)
        except ApiException as error:
            if error.status not in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND):
                raise
            raise SettingsError(
                f"the uid of kube-system cannot be read ({error.status} {error.reason}):"
                " allow it, or set INTERVALJOB_CLUSTER_ID"
            ) from error
        assert namespace.metadata is not None
        return str(namespace.metadata.uid)

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

    async def all(self, *, namespaces: tuple[str, ...]) -> AsyncIterator[IntervalJob]:
        """Every IntervalJob of these namespaces (none: of all), page by page."""
        for namespace in namespaces or (None,):
            following: str | None = ""
            while following is not None:
                page = await self._page(namespace, following)
                for body in page["items"]:
                    yield IntervalJob.from_body(body)
                following = page["metadata"].get("continue") or None

    async def _page(self, namespace: str | None, following: str) -> dict[str, Any]:
        options: dict[str, Any] = {"limit": PAGE, "_request_timeout": REQUEST_SECONDS}
        if following:
            options["_continue"] = following
        if namespace is None:
            page = await self._custom.list_cluster_custom_object(GROUP, VERSION, PLURAL, **options)
        else:
            page = await self._custom.list_namespaced_custom_object(GROUP, VERSION, namespace, PLURAL, **options)
        return _object(page)

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
        now = datetime.now(UTC)
        about = client.V1ObjectReference(
            api_version=f"{GROUP}/{VERSION}", kind=KIND, name=name, namespace=namespace, uid=uid
        )
        event = client.CoreV1Event(
            metadata=client.V1ObjectMeta(name=f"{name[:200]}.{uuid4().hex[:16]}", namespace=namespace),
            involved_object=about,
            type=kind,
            reason=reason,
            message=message[:EVENT_MESSAGE],
            source=client.V1EventSource(component="intervaljob"),
            reporting_component=f"{GROUP}/operator",
            first_timestamp=now,
            last_timestamp=now,
            count=1,
        )
        await self._core.create_namespaced_event(namespace, event, _request_timeout=REQUEST_SECONDS)

    async def worker_pods(self, *, namespace: str) -> tuple[list[Pod], str]:
        """Every worker Pod of the namespace, and the resource version from which to watch."""
        pods, version, following = [], "", ""
        while True:
            options = {"label_selector": WORKER_LABEL, "limit": PAGE} | ({"_continue": following} if following else {})
            page = await self._list_pods(namespace, **options)
            pods += [Pod.from_body(body) for body in page["items"]]
            version, following = page["metadata"]["resourceVersion"], page["metadata"].get("continue") or ""
            if not following:
                return pods, version

    async def pod_exists(self, pod: Pod, *, namespace: str) -> bool:
        """Whether this very Pod is there, with whatever labels. A list, so that no right to get Pods is needed."""
        page = await self._list_pods(namespace, field_selector=f"metadata.name={pod.name}")
        return any(Pod.from_body(body).uid == pod.uid for body in page["items"])

    async def watch_worker_pods(self, *, namespace: str, version: str) -> AsyncGenerator[tuple[str, Pod], None]:
        """(ADDED, MODIFIED or DELETED, the Pod) of every change after this version, until the server ends the watch.

        DELETED comes with the last state, and also for a Pod that has lost its label. Raises what UNREACHABLE lists;
        ApiException with 410 where the server no longer knows the version.
        """
        response = await self._core.list_namespaced_pod_without_preload_content(
            namespace,
            label_selector=WORKER_LABEL,
            resource_version=version,
            watch=True,
            timeout_seconds=WATCH_SECONDS,
            _request_timeout=WATCH_SECONDS + REQUEST_SECONDS,
        )
        async with response:
            await _refused(response)
            try:
                async for line in response.content:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise ApiException(status=event["object"]["code"], reason=event["object"]["message"])
                    yield event["type"], Pod.from_body(event["object"])
            except ValueError as error:
                raise ConnectionError(f"the watch was cut off: {error}") from error

    async def _list_pods(self, namespace: str, **options: Any) -> dict[str, Any]:
        """One page as it was sent: of a Pod's hundreds of fields a few are looked at."""
        response = await self._core.list_namespaced_pod_without_preload_content(
            namespace, _request_timeout=REQUEST_SECONDS, **options
        )
        async with response:
            await _refused(response)
            return _object(await response.json())


async def _refused(response: aiohttp.ClientResponse) -> None:
    """Raises ApiException for an answer that is none."""
    if response.status != HTTPStatus.OK:
        raise ApiException(status=response.status, reason=response.reason, body=await response.text())


def _object(body: object) -> dict[str, Any]:
    assert isinstance(body, dict)
    return body


#: What a request may raise that a later try may mend.
UNREACHABLE = (ApiException, aiohttp.ClientError, OSError, TimeoutError)
