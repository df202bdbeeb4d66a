"""The chart: what it renders is what the API server takes, within the restricted Pod security standard."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from intervaljob.embedded.control_plane import ControlPlane
from intervaljob.embedded.programs import Programs

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "intervaljob"
CI = sorted((CHART / "ci").glob("*.yaml"))
#: Kinds of others, which this API server does not know.
FOREIGN = ("keda.sh/", "monitoring.coreos.com/")
NAMESPACE = "chart"


def helm(*arguments: object) -> "subprocess.CompletedProcess[str]":
    program = os.environ.get("HELM") or shutil.which("helm")
    assert program is not None, "install helm, or name it by HELM"
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)


def rendered(*options: object) -> list[dict[str, Any]]:
    done = helm("template", "try", CHART, f"--namespace={NAMESPACE}", "--kube-version=1.34", *options)
    assert done.returncode == 0, done.stderr
    return [one for one in yaml.safe_load_all(done.stdout) if one is not None]


def of(kind: str, objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one for one in objects if one["kind"] == kind}


def refusal(*options: str) -> str:
    done = helm("template", "try", CHART, "--kube-version=1.34", *options)
    assert done.returncode != 0
    return done.stderr


def pod_of(workload: dict[str, Any]) -> dict[str, Any]:
    template = workload["spec"]["template"]
    assert isinstance(template, dict)
    return template


def environment(deployment: dict[str, Any]) -> dict[str, Any]:
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return {entry["name"]: entry.get("value") for entry in container["env"]}


@pytest.fixture(scope="module")
def cluster(control_plane: ControlPlane) -> ControlPlane:
    for name in (NAMESPACE, "intervaljob", "team-a", "team-b"):
        labels = {"pod-security.kubernetes.io/warn": "restricted"}
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        control_plane.kubectl("apply", "--server-side", "--filename=-", input=json.dumps(body))
    return control_plane


def taken(cluster: ControlPlane, kubectl: Path, objects: list[dict[str, Any]]) -> str:
    """The API server takes them; returns its warnings."""
    known = [one for one in objects if not one["apiVersion"].startswith(FOREIGN)]
    command = [kubectl, "--kubeconfig", cluster.kubeconfig, "apply", "--filename=-"]
    done = subprocess.run(
        [*map(str, command), "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict"],
        input=yaml.safe_dump_all(known),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(known)
    return done.stderr


@pytest.mark.parametrize("values", CI, ids=lambda path: path.stem)
def test_the_api_server_takes_all_that_is_rendered(cluster: ControlPlane, programs: Programs, values: Path) -> None:
    linted = helm("lint", "--strict", CHART, f"--values={values}", "--kube-version=1.34")
    assert linted.returncode == 0, linted.stdout
    objects = rendered(f"--values={values}")
    for one in objects:
        if one["kind"] not in ("CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding"):
            one["metadata"].setdefault("namespace", NAMESPACE)
    assert taken(cluster, programs.kubectl, objects) == ""


@pytest.mark.parametrize("folder", ["base", "overlays/evaluation", "overlays/production"])
def test_the_api_server_takes_the_manifests(cluster: ControlPlane, programs: Programs, folder: str) -> None:
    built = cluster.kubectl("kustomize", str(ROOT / "manifests" / folder))
    assert taken(cluster, programs.kubectl, [one for one in yaml.safe_load_all(built) if one is not None]) == ""


def test_what_is_generated_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "helm" / "generate.py", "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("operator.replica=3", r"/operator'.*'replica' not allowed"),
        ("worker.default.replicas=3", r"'worker' not allowed"),
        ("workers.default.replica=3", r"/workers/default'.*'replica' not allowed"),
        ("workers.Default.replicas=3", r"'Default' does not match pattern"),
        ("workerDefaults.autoscaling.kind=knative", r"/workerDefaults/autoscaling/kind'.*'none', 'hpa', 'keda'"),
        ("workerDefaults.queues=reports", r"/workerDefaults/queues'.*want array"),
        ("workerDefaults.leaseSeconds=2", r"/workerDefaults/leaseSeconds'.*3"),
        ("database.schema=Drop-it", r"/database/schema'.*does not match pattern"),
        ("operator.logLevel=trace", r"/operator/logLevel'"),
        ("watchNamespaces={a},database.existingSecret=b", "clusterId: write a name that no other cluster"),
        ("database.url=a,database.existingSecret=b", "give url or existingSecret, not both"),
        ("workers.default.queues={it's}", r"/workers/default/queues/0'.*does not match pattern"),
        (
            "workers.default.autoscaling.kind=keda",
            "workers.default.autoscaling.kind: keda needs a database of your own",
        ),
    ],
)
def test_a_wrong_value_is_refused_by_name(option: str, complaint: str) -> None:
    assert re.search(complaint, refusal(f"--set={option}"), re.DOTALL)


def test_without_a_database_an_evaluation_one_is_installed() -> None:
    objects = rendered()
    (name,) = of("StatefulSet", objects)
    (job,) = of("Job", objects).values()
    assert name == "try-intervaljob-postgres"
    assert "helm.sh/hook" not in job["metadata"].get("annotations", {})
    secret = of("Secret", objects)["try-intervaljob-database"]
    assert secret["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    url = f"postgresql://intervaljob:{secret['stringData']['password']}@try-intervaljob-postgres.chart:5432/intervaljob"
    assert secret["stringData"]["url"] == url


def test_an_evaluation_postgres_can_be_mended_by_an_upgrade() -> None:
    """Nothing waits for it before it is changed."""
    (job,) = of("Job", rendered("--is-upgrade")).values()
    assert "annotations" not in job["metadata"]


def test_a_url_is_a_secret_of_the_releases_and_one_of_its_migrations() -> None:
    objects = rendered("--set=database.url=postgresql://u:p@h/d")
    secrets = of("Secret", objects)
    assert set(secrets) == {"try-intervaljob-database-url", "try-intervaljob-migrate"}
    assert (
        "hook-succeeded" in secrets["try-intervaljob-migrate"]["metadata"]["annotations"]["helm.sh/hook-delete-policy"]
    )
    used = {
        name: next(v["secret"]["secretName"] for v in pod_of(one)["spec"]["volumes"] if "secret" in v)
        for name, one in {**of("Deployment", objects), **of("Job", objects)}.items()
    }
    assert used == {
        "try-intervaljob-operator": "try-intervaljob-database-url",
        "try-intervaljob-worker-default": "try-intervaljob-database-url",
        "try-intervaljob-migrate": "try-intervaljob-migrate",
    }


def test_pods_are_replaced_when_the_database_is_another_one() -> None:
    def checksums(url: str) -> set[str]:
        deployments = of("Deployment", rendered(f"--set=database.url={url}")).values()
        return {pod_of(one)["metadata"]["annotations"]["checksum/database"] for one in deployments}

    assert len(checksums("postgresql://a/d")) == 1
    assert checksums("postgresql://a/d") != checksums("postgresql://b/d")


def test_with_a_database_of_ones_own_nothing_is_installed_beside_it() -> None:
    objects = rendered(f"--values={CHART / 'ci' / 'external-database-values.yaml'}")
    assert not of("StatefulSet", objects)
    assert not of("Secret", objects)
    (job,) = of("Job", objects).values()
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    users = {**of("Deployment", objects), "migration": job}
    keys = {
        name: [volume["secret"] for volume in one["spec"]["template"]["spec"]["volumes"] if "secret" in volume]
        for name, one in users.items()
    }
    assert {name: [(one["secretName"], one["items"][0]["key"]) for one in found] for name, found in keys.items()} == {
        "try-intervaljob-operator": [("my-postgres", "operator-url")],
        "try-intervaljob-worker-default": [("my-postgres", "worker-url")],
        "migration": [("my-postgres", "owner-url")],
    }


@pytest.mark.parametrize("values", CI, ids=lambda path: path.stem)
def test_no_password_is_in_arguments_or_environment(values: Path) -> None:
    objects = rendered(f"--values={values}", "--set=migration.enabled=true")
    for workload in (*of("Deployment", objects).values(), *of("Job", objects).values()):
        spec = pod_of(workload)["spec"]
        containers = spec.get("initContainers", []) + spec["containers"]
        shown = json.dumps([{**one, "volumeMounts": []} for one in containers])
        assert "postgresql://" not in shown
        assert "secretKeyRef" not in shown


def test_a_list_of_namespaces_means_no_right_beyond_them() -> None:
    objects = rendered(f"--values={CHART / 'ci' / 'namespaced-values.yaml'}")
    assert not of("ClusterRole", objects)
    assert not of("ClusterRoleBinding", objects)
    granted = {one["metadata"]["namespace"] for one in objects if one["kind"] == "Role"}
    assert granted == {NAMESPACE, "team-a", "team-b"}
    given = environment(of("Deployment", objects)["try-intervaljob-operator"])
    assert (given["INTERVALJOB_WATCH_NAMESPACES"], given["INTERVALJOB_CLUSTER_ID"]) == ("team-a,team-b", "cluster-1")


def test_each_pool_of_workers_is_a_deployment_of_its_own() -> None:
    objects = rendered(f"--values={CHART / 'ci' / 'everything-values.yaml'}")
    pools = {name: one for name, one in of("Deployment", objects).items() if "worker" in name}
    assert set(pools) == {"try-ij-worker-reports", "try-ij-worker-small"}
    reports = pools["try-ij-worker-reports"]
    assert "replicas" not in reports["spec"]
    assert reports["spec"]["template"]["spec"]["containers"][0]["image"] == "example.com/reports:7"
    given = environment(reports)
    assert given["INTERVALJOB_QUEUES"] == "reports,reports-slow"
    assert given["INTERVALJOB_HANDLERS"] == "handlers,more.handlers:extra"
    (scaled,) = of("ScaledObject", objects).values()
    assert "queue IN ('reports', 'reports-slow')" in scaled["spec"]["triggers"][0]["metadata"]["query"]
    assert of("HorizontalPodAutoscaler", objects)["try-ij-worker-small"]["spec"]["maxReplicas"] == 10


def test_a_worker_pod_outlives_its_drain() -> None:
    worker = of("Deployment", rendered("--set=workers.default.drainSeconds=300"))["try-intervaljob-worker-default"]
    assert worker["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 315


@pytest.mark.parametrize(("keep", "policy"), [("true", {"helm.sh/resource-policy": "keep"}), ("false", None)])
def test_the_crd_is_kept_unless_it_is_said_otherwise(keep: str, policy: dict[str, str] | None) -> None:
    (crd,) = of("CustomResourceDefinition", rendered(f"--set=crds.keep={keep}")).values()
    assert crd["metadata"].get("annotations") == policy
    assert crd["spec"] == yaml.safe_load((ROOT / "crds" / "intervaljobs.yaml").read_text())["spec"]
