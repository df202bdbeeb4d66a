"""Other ways to install it: a database of one's own, some namespaces, kustomize, an image; and how to remove it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_support import Namespace, eventually
from real_cluster import IMAGE, KILL_MANAGER, ROOT, Cluster, Release

pytestmark = pytest.mark.timeout(300)

DATABASE = "e2e-postgres"
PASSWORD = "e2e"
#: Of the manifests.
MANIFESTS = "intervaljob"
#: The CRD belongs to the release that brought it.
WITHOUT_CRD = {"crds": {"enabled": False}}
#: One of each; none needs more here.
SMALL = {"operator": {"replicas": 1}, "workerDefaults": {"replicas": 1}}


@pytest.fixture(autouse=True)
def _crd(cluster: Cluster) -> None:
    cluster.kubectl("apply", "--server-side", "--force-conflicts", f"--filename={ROOT / 'crds'}")


@pytest.fixture(scope="module")
def database(cluster: Cluster) -> Iterator[str]:
    """The URL, inside the cluster, of a Postgres that the chart knows nothing of."""
    labels = {"app": DATABASE}
    container = {
        "name": "postgres",
        "image": cluster.postgres_image,
        "env": [{"name": "POSTGRES_USER", "value": "owner"}, {"name": "POSTGRES_PASSWORD", "value": PASSWORD}],
        "readinessProbe": {"tcpSocket": {"port": 5432}, "periodSeconds": 1},
    }
    objects = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": DATABASE}},
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": DATABASE, "namespace": DATABASE, "labels": labels},
            "spec": {"containers": [container], "terminationGracePeriodSeconds": 1},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": DATABASE, "namespace": DATABASE},
            "spec": {"selector": labels, "ports": [{"port": 5432}]},
        },
    ]
    apply(cluster, objects)
    cluster.kubectl("--namespace", DATABASE, "wait", f"pod/{DATABASE}", "--for=condition=Ready", "--timeout=90s")
    yield f"postgresql://owner:{PASSWORD}@{DATABASE}.{DATABASE}:5432/owner"
    cluster.kubectl("delete", "namespace", DATABASE, "--wait=false")


#: Of docs/how-to.md: what is given before there are tables.
ROLES = """
    CREATE ROLE operator LOGIN PASSWORD 'e2e';
    CREATE ROLE worker LOGIN PASSWORD 'e2e';
    CREATE SCHEMA intervaljob;
    GRANT USAGE ON SCHEMA intervaljob TO operator, worker;
    ALTER DEFAULT PRIVILEGES IN SCHEMA intervaljob
        GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO operator, worker;
    ALTER DEFAULT PRIVILEGES IN SCHEMA intervaljob GRANT USAGE ON SEQUENCES TO operator, worker;
"""


def test_with_a_database_of_ones_own_each_part_has_the_rights_that_it_needs(cluster: Cluster, database: str) -> None:
    """The migration is a hook that runs before anything else, as the owner; the others read and write."""
    psql = f"PGPASSWORD={PASSWORD} psql -h 127.0.0.1 -U owner -v ON_ERROR_STOP=1 owner -c"
    cluster.kubectl("--namespace", DATABASE, "exec", DATABASE, "--", "sh", "-c", f'{psql} "$0"', ROLES)
    release = Release(cluster, "e2e-own-database", name="own")
    cluster.make_namespace(release.namespace)
    urls = {role: database.replace("//owner", f"//{role}") for role in ("owner", "operator", "worker")}
    release.kubectl(
        *("create", "secret", "generic", "my-postgres"),
        *(f"--from-literal={role}-url={url}" for role, url in urls.items()),
    )
    keys = {"migration": "owner-url", "operator": "operator-url", "worker": "worker-url"}
    release.install(**WITHOUT_CRD, **SMALL, database={"existingSecret": "my-postgres", "keys": keys})
    try:
        namespace = Namespace(cluster, release.namespace)
        namespace.apply("hello", interval="1s")
        namespace.ended("hello", within=90)
        namespace.apply("killed", handler="sleep", payload='{"seconds": 120}')
        namespace.run_now("killed")
        release.execute(namespace.running("killed")["worker"], KILL_MANAGER)
        eventually(lambda: namespace.running("killed")["attempt"] == 2, what="the second attempt", within=30)
        assert cluster.objects("statefulsets", "--namespace", release.namespace) == []
        assert cluster.objects("jobs", "--namespace", release.namespace) == [], "the hook is gone when it has succeeded"
    finally:
        remove(release)


def test_with_some_namespaces_others_are_neither_seen_nor_served(cluster: Cluster, database: str) -> None:
    served, other = (Namespace(cluster, f"e2e-{name}") for name in ("served", "other"))
    for namespace in (served, other):
        cluster.make_namespace(namespace.name)
        namespace.apply("hello", interval="1s")
    release = Release(cluster, "e2e-namespaced", name="namespaced")
    release.install(
        **WITHOUT_CRD,
        **SMALL,
        watchNamespaces=[served.name],
        clusterId="e2e",
        database={"url": database, "schema": "namespaced"},
        rbac={"aggregate": False},
    )
    try:
        served.ended("hello", within=90)
        assert other.status("hello") == {}
        user = f"--as=system:serviceaccount:{release.namespace}:namespaced-intervaljob-operator"

        def may(namespace: str) -> str:
            what = ("list", "intervaljobs.intervaljob.dev", f"--namespace={namespace}")
            return cluster.kubectl("auth", "can-i", *what, user, check=False).strip()

        assert {name: may(name) for name in (served.name, other.name)} == {served.name: "yes", other.name: "no"}
        assert cluster.kubectl("auth", "can-i", "get", "namespace/kube-system", user, check=False).strip() == "no"
    finally:
        remove(release)
        for namespace in (served, other):
            cluster.kubectl("delete", "namespace", namespace.name, "--wait=false")


def test_the_manifests_install_it_without_helm(cluster: Cluster, tmp_path: Path) -> None:
    """As manifests/overlays/evaluation says, with this test's images."""
    postgres, _, version = cluster.postgres_image.rpartition(":")
    images = [
        {"name": "ghcr.io/intervaljob/intervaljob", "newName": IMAGE, "newTag": "dev"},
        {"name": "postgres", "newName": postgres, "newTag": version},
    ]
    overlay = {"resources": [os.path.relpath(ROOT / "manifests/overlays/evaluation", tmp_path)], "images": images}
    (tmp_path / "kustomization.yaml").write_text(json.dumps(overlay))
    cluster.kubectl("delete", "namespace", MANIFESTS, "--ignore-not-found", "--timeout=60s")
    cluster.kubectl("create", "namespace", MANIFESTS)
    url = f"postgresql://intervaljob:{PASSWORD}@intervaljob-postgres.{MANIFESTS}:5432/intervaljob"
    literals = (f"--from-literal=password={PASSWORD}", f"--from-literal=url={url}")
    cluster.kubectl("--namespace", MANIFESTS, "create", "secret", "generic", "intervaljob-database", *literals)
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "--kustomize", str(tmp_path))
    try:
        namespace = Namespace(cluster, MANIFESTS)
        namespace.apply("hello", interval="1s")
        namespace.ended("hello", within=90)
    finally:
        cluster.kubectl("delete", "--kustomize", str(tmp_path), "--timeout=90s")


def test_handlers_of_ones_own_are_an_image_of_two_lines(cluster: Cluster, database: str) -> None:
    cluster.load(ROOT / "examples" / "worker-image", f"{IMAGE}-example:dev", f"INTERVALJOB_IMAGE={IMAGE}:dev")
    release = Release(cluster, "e2e-own-image", name="own-image")
    pool = {"image": {"repository": f"{IMAGE}-example", "tag": "dev"}, "handlers": ["handlers"], "queues": ["reports"]}
    release.install(
        **WITHOUT_CRD,
        **SMALL,
        database={"url": database, "schema": "own_image"},
        workers={"default": None, "own": pool},
    )
    try:
        namespace = Namespace(cluster, release.namespace)
        namespace.apply("invoice", interval="1s", handler="invoice", queue="reports", payload='{"customer": "a"}')
        namespace.ended("invoice", within=90)
    finally:
        remove(release)


def test_without_keeping_the_crd_everything_goes(cluster: Cluster, database: str) -> None:
    """Also IntervalJobs that have a task running; nothing hangs."""
    cluster.kubectl("delete", "crd", "intervaljobs.intervaljob.dev", "--ignore-not-found", "--timeout=30s")
    release = Release(cluster, "e2e-goes", name="goes")
    release.install(**SMALL, crds={"keep": False}, database={"url": database, "schema": "goes"})
    namespace = Namespace(cluster, release.namespace)
    namespace.apply("running", interval="1s", handler="sleep", payload='{"seconds": 120}')
    eventually(lambda: namespace.status("running").get("active"), what="a task runs", within=90)
    remove(release)
    assert "intervaljobs" not in cluster.kubectl("get", "crd", "--output=name")


def apply(cluster: Cluster, objects: list[dict[str, Any]]) -> None:
    body = {"apiVersion": "v1", "kind": "List", "items": objects}
    cluster.kubectl("apply", "--server-side", "--filename=-", input=json.dumps(body))


def remove(release: Release) -> None:
    """With its namespace; a hanging object would let this fail."""
    release.uninstall()
    release.cluster.kubectl("delete", "namespace", release.namespace, "--timeout=60s")
