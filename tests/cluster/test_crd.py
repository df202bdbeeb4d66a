"""The schema of IntervalJob, as a real API server applies it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from intervaljob.embedded.control_plane import ControlPlane
from intervaljob.errors import EmbeddedError
from intervaljob.model.custom_resource import GROUP, PLURAL, VERSION, IntervalJob, definition

ROOT = Path(__file__).parents[2]
CRD = ROOT / "crds" / "intervaljobs.yaml"
SAMPLES = sorted((ROOT / "manifests" / "samples").glob("*.yaml"))
SCHEMA = yaml.safe_load(CRD.read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]

NAMESPACE = "crd"
STATUS = {
    "observedGeneration": 1,
    "conditions": [
        {
            "type": "Ready",
            "status": "True",
            "observedGeneration": 1,
            "lastTransitionTime": "2026-11-23T09:00:00Z",
            "reason": "Scheduled",
            "message": "next occurrence at 2026-11-23T10:00:30Z",
        }
    ],
    "jobId": "0b0c7a52-7d52-4b3e-9a3f-0d6c1a9d8a11",
    "schedule": "every 30s",
    "nextScheduleTime": "2199-11-23T10:00:30Z",
    "lastScheduleTime": "2026-11-23T10:00:00Z",
    "lastSuccessfulTime": "2026-11-23T09:59:32Z",
    "lastFailureTime": "2026-11-22T09:59:32Z",
    "active": [
        {
            "taskId": "7d9f1c9e-0b1a-4f5e-8f43-5a1f0c2d3e4b",
            "attempt": 2,
            "worker": "worker-0",
            "recovered": True,
            "startedAt": "2026-11-23T10:00:05Z",
        }
    ],
    "activeCount": 1,
    "lastResult": "Succeeded",
    "lastTask": {
        "taskId": "7d9f1c9e-0b1a-4f5e-8f43-5a1f0c2d3e4b",
        "status": "running",
        "attempt": 2,
        "recoveries": 1,
        "worker": "worker-0",
        "scheduledFor": "2026-11-23T10:00:00Z",
        "startedAt": "2026-11-23T10:00:00Z",
        "finishedAt": "2026-11-23T10:00:07Z",
        "message": "recovered",
    },
    "recentTasks": [
        {
            "taskId": "7d9f1c9e-0b1a-4f5e-8f43-5a1f0c2d3e4b",
            "status": "failed",
            "attempt": 2,
            "recoveries": 1,
            "lastEvidence": "lease_expired",
            "startedAt": "2026-11-23T10:00:05Z",
            "finishedAt": "2026-11-23T10:00:07Z",
            "message": "ValueError: no such account",
        }
    ],
    "counts": {"succeeded": 41, "failed": 2, "cancelled": 1, "recovered": 5, "skipped": 3},
}


class Cluster:
    """One namespace of the control plane, in which the resource is known."""

    def __init__(self, control_plane: ControlPlane) -> None:
        self._control_plane = control_plane

    def kubectl(self, *arguments: str, stdin: object = None) -> str:
        text = None if stdin is None else json.dumps(stdin)
        return self._control_plane.kubectl("--namespace", NAMESPACE, *arguments, input=text)

    def create(self, name: str, spec: object, *, dry_run: str = "none") -> dict[str, Any]:
        """The object as the API server stores it."""
        created = self.kubectl(
            "create", "--filename=-", "--output=json", f"--dry-run={dry_run}", stdin=manifest(name, spec)
        )
        return dict(json.loads(created))

    def refusal(self, spec: object) -> str:
        """What the user reads who applies this spec."""
        with pytest.raises(EmbeddedError) as caught:
            self.create("refused", spec, dry_run="server")
        return str(caught.value)

    def row(self, name: str, *options: str) -> dict[str, str]:
        """What `kubectl get` prints of the object, by column."""
        head, values = self.kubectl("get", "ivj", name, *options).splitlines()
        starts = [match.start() for match in re.finditer(r"\S+( \S+)*", head)]
        ends = [*starts[1:], None]
        return {head[start:end].strip(): values[start:end].strip() for start, end in zip(starts, ends, strict=True)}


def manifest(name: str, spec: object) -> dict[str, object]:
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "IntervalJob",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": spec,
    }


def fields(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field below this schema, with its path."""
    for name, field in (schema.get("properties") or schema.get("items", {}).get("properties") or {}).items():
        yield f"{path}.{name}", field
        yield from fields(field, f"{path}.{name}")


SPEC_FIELDS = dict(fields(SCHEMA["properties"]["spec"], "spec"))


@pytest.fixture(scope="module")
def cluster(control_plane: ControlPlane) -> Cluster:
    control_plane.kubectl("apply", "--server-side", f"--filename={CRD}")
    control_plane.kubectl("wait", "--for=condition=Established", f"crd/{PLURAL}.{GROUP}", "--timeout=30s")
    control_plane.kubectl("create", "namespace", NAMESPACE)
    return Cluster(control_plane)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_every_sample_is_accepted_and_can_be_scheduled(cluster: Cluster, sample: Path) -> None:
    stored = json.loads(cluster.kubectl("apply", f"--filename={sample}", "--output=json"))

    written = yaml.safe_load(sample.read_text())
    assert stored["metadata"]["name"] == written["metadata"]["name"] == sample.stem
    assert definition(IntervalJob.from_body(stored)).handler == written["spec"]["handler"]


def test_the_schema_fills_in_defaults(cluster: Cluster) -> None:
    assert cluster.create("defaults", {"interval": "5m", "handler": "echo"})["spec"] == {
        "interval": "5m",
        "handler": "echo",
        "jitterSeconds": 0,
        "suspend": False,
        "concurrencyPolicy": "Allow",
        "recoveryPolicy": "Rerun",
        "recoveryLimit": 3,
        "payload": "",
        "userId": "00000000-0000-0000-0000-000000000000",
        "workspaceId": "00000000-0000-0000-0000-000000000000",
        "queue": "default",
        "priority": 1,
        "backoffLimit": 3,
        "backoff": {"initialSeconds": 10, "maxSeconds": 360},
    }


def test_schema_and_code_have_the_same_defaults(cluster: Cluster) -> None:
    spec = {"interval": "5m", "handler": "echo", "backoff": {"maxSeconds": 20}}
    stored = cluster.create("same-defaults", spec)

    assert definition(IntervalJob.from_body(stored)) == definition(IntervalJob.from_body(stored | {"spec": spec}))


@pytest.mark.parametrize(
    "spec",
    [
        {"interval": "1s"},
        {"interval": "366d"},
        {"interval": "1d2h3m4s"},
        {"interval": "31622400s"},
        {"schedule": "*/5 * * * *"},
        {"schedule": " 0  3 1,15 JAN-MAR MON-FRI "},
        {"schedule": "0 0 L * 5#2"},
        {"schedule": "@midnight", "timeZone": "America/Argentina/Buenos_Aires"},
        {"schedule": "@annually", "timeZone": "Etc/GMT+5"},
        {"interval": "5m", "handler": "a" * 63},
        {"interval": "5m", "handler": "reports.v1:nightly-run_2"},
        {"interval": "5m", "queue": "a-b_c9"},
        {"interval": "5m", "payload": "x" * 262_144},
        {"interval": "5m", "userId": "7D9F1C9E-0B1A-4F5E-8F43-5A1F0C2D3E4B"},
        {"interval": "1m30s", "jitterSeconds": 90},
        {"schedule": "* * * * *", "jitterSeconds": 604_800},
        {"interval": "5m", "priority": 4, "backoffLimit": 1000, "activeDeadlineSeconds": 31_536_000},
        {"interval": "5m", "backoff": {"initialSeconds": 86_400, "maxSeconds": 86_400}},
    ],
    ids=lambda spec: str(spec)[:60],
)
def test_what_the_schema_accepts_the_code_accepts(cluster: Cluster, spec: dict[str, object]) -> None:
    stored = cluster.create("accepted", {"handler": "echo"} | spec, dry_run="server")
    stored["metadata"]["resourceVersion"] = "1"  # what is not stored has none
    definition(IntervalJob.from_body(stored))


INTERVAL = "write whole days, hours, minutes and seconds from 1s to 366d, such as 30s, 5m, 1h30m or 1d"
FIVE_FIELDS = "write five fields, such as */5 * * * *, or one of @hourly, @daily"
NO_SECONDS = "there is none for seconds; for times less than a minute apart write spec.interval"
ONE_OF = "write exactly one of spec.interval, such as 30s, and spec.schedule, such as */5 * * * *"
ZONE = "write a name of the IANA time zone database, such as Europe/Berlin or UTC"
HANDLER = "write a handler's name of letters, digits and any of _ . : - between them, such as reports.nightly"
JITTER = "write at most as many spec.jitterSeconds as spec.interval has seconds"
QUEUE = "write a queue's name of a-z and 0-9 with single - or _ between them, such as heavy-reports"
UUID = "write a UUID, such as "


@pytest.mark.parametrize(
    ("spec", "field", "advice"),
    [
        ({}, "spec", ONE_OF),
        ({"interval": "5m", "schedule": "@daily"}, "spec", ONE_OF),
        ({"interval": ""}, "spec.interval", INTERVAL),
        ({"interval": "30"}, "spec.interval", INTERVAL),
        ({"interval": "500ms"}, "spec.interval", INTERVAL),
        ({"interval": "-5m"}, "spec.interval", INTERVAL),
        ({"interval": "1.5h"}, "spec.interval", INTERVAL),
        ({"interval": "5m1h"}, "spec.interval", INTERVAL),
        ({"interval": "0h0s"}, "spec.interval", INTERVAL),
        ({"interval": "366d1s"}, "spec.interval", INTERVAL),
        ({"interval": "31622401s"}, "spec.interval", INTERVAL),
        ({"interval": "9" * 41}, "spec.interval", "may not be more than 40 bytes"),
        ({"schedule": ""}, "spec.schedule", FIVE_FIELDS),
        ({"schedule": "* * * *"}, "spec.schedule", FIVE_FIELDS),
        ({"schedule": "0 3 * * !"}, "spec.schedule", FIVE_FIELDS),
        ({"schedule": "@reboot"}, "spec.schedule", FIVE_FIELDS),
        ({"schedule": "@every 5m"}, "spec.schedule", 'for "every 5 minutes" write spec.interval'),
        ({"schedule": "0 */5 * * * *"}, "spec.schedule", NO_SECONDS),
        ({"schedule": "TZ=UTC 0 3 * * *"}, "spec.schedule", "write the zone in spec.timeZone"),
        ({"schedule": "CRON_TZ=Asia/Tokyo @daily"}, "spec.schedule", "write the zone in spec.timeZone"),
        ({"schedule": "@daily", "timeZone": ""}, "spec.timeZone", ZONE),
        ({"schedule": "@daily", "timeZone": "Local"}, "spec.timeZone", ZONE),
        ({"schedule": "@daily", "timeZone": "+02:00"}, "spec.timeZone", ZONE),
        ({"schedule": "@daily", "timeZone": "../etc/passwd"}, "spec.timeZone", ZONE),
        ({"interval": "5m", "timeZone": "UTC"}, "spec.timeZone", "remove spec.timeZone"),
        ({"interval": "1m30s", "jitterSeconds": 91}, "spec.jitterSeconds", JITTER),
        ({"interval": "5m", "jitterSeconds": -1}, "spec.jitterSeconds", "greater than or equal to 0"),
        ({"schedule": "@yearly", "jitterSeconds": 604_801}, "spec.jitterSeconds", "less than or equal to 604800"),
        ({"interval": "5m", "jitterSeconds": 1.5}, "spec.jitterSeconds", "integer"),
        ({"interval": "5m", "suspend": "yes"}, "spec.suspend", "boolean"),
        ({"interval": "5m", "concurrencyPolicy": "allow"}, "spec.concurrencyPolicy", '"Allow", "Forbid"'),
        ({"interval": "5m", "handler": None}, "spec.handler", "Required value"),
        ({"interval": "5m", "handler": ""}, "spec.handler", HANDLER),
        ({"interval": "5m", "handler": "my handler"}, "spec.handler", HANDLER),
        ({"interval": "5m", "handler": "echo."}, "spec.handler", HANDLER),
        ({"interval": "5m", "handler": "e" * 64}, "spec.handler", "may not be more than 63 bytes"),
        ({"interval": "5m", "payload": 7}, "spec.payload", 'must be of type string: "integer"'),
        ({"interval": "5m", "payload": {"a": 1}}, "spec.payload.a", "unknown field"),
        ({"interval": "5m", "payload": "x" * 262_145}, "spec.payload", "may not be more than 262144 bytes"),
        ({"interval": "5m", "payload": "é" * 131_073}, "spec.payload", "write at most 262144 bytes of UTF-8"),
        ({"interval": "5m", "payload": "a\0b"}, "spec.payload", "write binary data as base64"),
        ({"interval": "5m", "userId": "7"}, "spec.userId", UUID),
        ({"interval": "5m", "userId": "7d9f1c9e0b1a4f5e8f435a1f0c2d3e4b"}, "spec.userId", UUID),
        ({"interval": "5m", "workspaceId": ""}, "spec.workspaceId", UUID),
        ({"interval": "5m", "queue": "Default"}, "spec.queue", QUEUE),
        ({"interval": "5m", "queue": "a--b"}, "spec.queue", QUEUE),
        ({"interval": "5m", "queue": ""}, "spec.queue", QUEUE),
        ({"interval": "5m", "queue": "q" * 65}, "spec.queue", "may not be more than 64 bytes"),
        ({"interval": "5m", "priority": 0}, "spec.priority", "greater than or equal to 1"),
        ({"interval": "5m", "priority": 5}, "spec.priority", "less than or equal to 4"),
        ({"interval": "5m", "priority": 1.5}, "spec.priority", "integer"),
        ({"interval": "5m", "activeDeadlineSeconds": 0}, "spec.activeDeadlineSeconds", "equal to 1"),
        ({"interval": "5m", "activeDeadlineSeconds": 31_536_001}, "spec.activeDeadlineSeconds", "equal to 31536000"),
        ({"interval": "5m", "backoffLimit": -1}, "spec.backoffLimit", "greater than or equal to 0"),
        ({"interval": "5m", "backoffLimit": 1001}, "spec.backoffLimit", "less than or equal to 1000"),
        ({"interval": "5m", "backoff": {"initialSeconds": 0}}, "spec.backoff.initialSeconds", "equal to 1"),
        ({"interval": "5m", "backoff": {"maxSeconds": 604_801}}, "spec.backoff.maxSeconds", "604800"),
        (
            {"interval": "5m", "backoff": {"initialSeconds": 361}},
            "spec.backoff.maxSeconds",
            "write a spec.backoff.maxSeconds that is not less than spec.backoff.initialSeconds",
        ),
        ({"interval": "5m", "startingDeadlineSeconds": 5}, "spec.startingDeadlineSeconds", "unknown field"),
        ({"interval": "5m", "backoff": {"factor": 3}}, "spec.backoff.factor", "unknown field"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_refusal_names_the_field_and_says_what_to_write(
    cluster: Cluster, spec: dict[str, object], field: str, advice: str
) -> None:
    message = cluster.refusal({"handler": "echo"} | spec)

    assert re.search(rf'\b{re.escape(field)}(: |")', message), message
    assert advice in message
    assert "no such key" not in message


def test_an_object_without_a_spec_is_refused(cluster: Cluster) -> None:
    assert "spec: Required value" in cluster.refusal(None)


def test_an_edit_is_checked_like_a_new_object(cluster: Cluster) -> None:
    cluster.create("edited", {"interval": "5m", "handler": "echo"})

    with pytest.raises(EmbeddedError, match=re.escape(ONE_OF)):
        cluster.kubectl("patch", "ivj", "edited", "--type=merge", '--patch={"spec": {"schedule": "@daily"}}')
    cluster.kubectl(
        "patch", "ivj", "edited", "--type=merge", '--patch={"spec": {"schedule": "@daily", "interval": null}}'
    )


def test_a_status_holds_every_field_and_leaves_the_spec_alone(cluster: Cluster) -> None:
    before = cluster.create("status", {"interval": "30s", "handler": "echo"})
    patch = json.dumps({"status": STATUS, "spec": {"handler": "other"}})
    cluster.kubectl("patch", "ivj", "status", "--subresource=status", "--type=merge", f"--patch={patch}")

    after = json.loads(cluster.kubectl("get", "ivj", "status", "--output=json"))
    assert after["status"] == STATUS
    assert after["spec"] == before["spec"]
    assert after["metadata"]["generation"] == before["metadata"]["generation"]


def test_the_test_status_has_every_field_of_the_schema() -> None:
    def paths(value: object, path: str) -> Iterator[str]:
        if isinstance(value, list):
            yield from paths(value[0], path)
        elif isinstance(value, dict):
            for name, inner in value.items():
                yield f"{path}.{name}"
                yield from paths(inner, f"{path}.{name}")

    described = fields(SCHEMA["properties"]["status"], "status")
    assert set(paths(STATUS, "status")) == {path for path, _ in described}


def test_who_writes_the_spec_cannot_write_the_status(cluster: Cluster) -> None:
    cluster.create("no-status", {"interval": "30s", "handler": "echo"})
    cluster.kubectl("patch", "ivj", "no-status", "--type=merge", '--patch={"status": {"lastResult": "Succeeded"}}')
    assert "status" not in json.loads(cluster.kubectl("get", "ivj", "no-status", "--output=json"))


def test_a_status_of_more_than_ten_active_tasks_is_refused(cluster: Cluster) -> None:
    cluster.create("bounded", {"interval": "30s", "handler": "echo"})
    patch = json.dumps({"status": {"active": [{"taskId": str(number)} for number in range(11)]}})

    with pytest.raises(EmbeddedError, match=r"status\.active: Too many: 11"):
        cluster.kubectl("patch", "ivj", "bounded", "--subresource=status", "--type=merge", f"--patch={patch}")


def test_get_prints_what_one_wants_to_know(cluster: Cluster) -> None:
    cluster.create("printed", {"interval": "30s", "handler": "echo"})
    patch = json.dumps({"status": STATUS})
    cluster.kubectl("patch", "ivj", "printed", "--subresource=status", "--type=merge", f"--patch={patch}")

    row = cluster.row("printed")
    assert list(row) == [
        "NAME",
        "SCHEDULE",
        "SUSPEND",
        "ACTIVE",
        "LAST SCHEDULE",
        "LAST RESULT",
        "NEXT",
        "AGE",
    ]
    assert row | {"LAST SCHEDULE": "", "AGE": ""} == {
        "NAME": "printed",
        "SCHEDULE": "every 30s",
        "SUSPEND": "false",
        "ACTIVE": "1",
        "LAST SCHEDULE": "",
        "LAST RESULT": "Succeeded",
        "NEXT": "2199-11-23T10:00:30Z",
        "AGE": "",
    }
    assert re.fullmatch(r"(\d+[ydhms])+", row["LAST SCHEDULE"])
    assert re.fullmatch(r"(\d+[ydhms])+", row["AGE"])


def test_get_wide_prints_where_it_runs_and_how_it_fares(cluster: Cluster) -> None:
    cluster.create("wide", {"schedule": "@daily", "timeZone": "Europe/Berlin", "handler": "echo"})
    patch = json.dumps({"status": STATUS})
    cluster.kubectl("patch", "ivj", "wide", "--subresource=status", "--type=merge", f"--patch={patch}")

    row = cluster.row("wide", "--output=wide")
    assert list(row.items())[8:] == [
        ("TIMEZONE", "Europe/Berlin"),
        ("HANDLER", "echo"),
        ("QUEUE", "default"),
        ("READY", "True"),
        ("RECOVERED", "5"),
        ("FAILED", "2"),
    ]


def test_suspended_objects_can_be_selected(cluster: Cluster) -> None:
    cluster.create("held", {"interval": "30s", "handler": "echo", "suspend": True})
    cluster.create("going", {"interval": "30s", "handler": "echo"})

    held = cluster.kubectl("get", PLURAL, "--field-selector=spec.suspend=true", "--output=name").split()
    assert f"intervaljob.{GROUP}/held" in held
    assert f"intervaljob.{GROUP}/going" not in held


@pytest.mark.parametrize("path", SPEC_FIELDS)
def test_explain_describes_each_field_with_an_example(cluster: Cluster, path: str) -> None:
    explained = " ".join(cluster.kubectl("explain", f"intervaljob.{path}").split())

    assert f"FIELD: {path.rpartition('.')[2]} <" in explained
    assert " ".join(SPEC_FIELDS[path]["description"].split()) in explained
    assert "Example" in SPEC_FIELDS[path]["description"]
