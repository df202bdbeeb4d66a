"""The cluster that these tests may use: the one that E2E_KUBECONFIG names, or one of kind's of their own.

E2E_LOAD_IMAGE is a command that is given a folder and a name: it builds the folder's Dockerfile and makes the image
known to the nodes. E2E_API_SERVER is one that is given "stop" or "start". No other cluster is ever touched.
"""

import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_support import Namespace, numbers
from real_cluster import IMAGE, ROOT, Cluster, Release

#: Of kind's own release notes: a node image is pinned by its digest.
KIND_CONFIG = ROOT / "tests" / "e2e" / "kubernetes" / "kind.yaml"
KIND_CLUSTER = "intervaljob-e2e"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    named = os.environ.get("E2E_KUBECONFIG")
    if named:
        load, api_server = shlex.split(os.environ["E2E_LOAD_IMAGE"]), shlex.split(os.environ["E2E_API_SERVER"])
        found = Cluster(
            kubeconfig=Path(named),
            postgres_image=os.environ.get("E2E_POSTGRES_IMAGE", "postgres:18"),
            load=lambda context, name: _run(*load, str(context), name),
            api_server=lambda verb: _run(*api_server, verb),
        )
        found.load(ROOT, f"{IMAGE}:dev")
        yield found
        return
    kubeconfig = tmp_path_factory.mktemp("kind") / "kubeconfig"
    options = (f"--name={KIND_CLUSTER}", f"--kubeconfig={kubeconfig}")
    _run("kind", "create", "cluster", *options, f"--config={KIND_CONFIG}", "--wait=120s")
    try:
        found = Cluster(
            kubeconfig=kubeconfig, postgres_image="postgres:18", load=_load_in_kind, api_server=_api_server_of_kind
        )
        found.load(ROOT, f"{IMAGE}:dev")
        yield found
    finally:
        _run("kind", "delete", "cluster", *options)


def _load_in_kind(context: Path, name: str) -> None:
    _run("docker", "build", f"--tag={name}", str(context))
    _run("kind", "load", "docker-image", f"--name={KIND_CLUSTER}", name)


def _api_server_of_kind(verb: str) -> None:
    """The kubelet runs it for as long as its manifest is there."""
    manifest, away = "/etc/kubernetes/manifests/kube-apiserver.yaml", "/kube-apiserver.yaml"
    source, target = (manifest, away) if verb == "stop" else (away, manifest)
    _run("docker", "exec", f"{KIND_CLUSTER}-control-plane", "mv", source, target)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=900)


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[Namespace]:
    name = f"e2e-{next(numbers)}"
    cluster.make_namespace(name)
    yield Namespace(cluster, name)
    cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="module")
def release(cluster: Cluster) -> Iterator[Release]:
    """With nothing but the images set."""
    installed = Release(cluster, "intervaljob")
    installed.install()
    yield installed
    installed.uninstall()
