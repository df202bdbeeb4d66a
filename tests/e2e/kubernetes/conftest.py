"""The cluster that these tests may use: the one that E2E_KUBECONFIG names, or one of kind's of their own.

E2E_LOAD_IMAGE is a command that is given a folder, a name and build arguments: it builds the folder's Dockerfile and
makes the image known to the nodes. E2E_API_SERVER is one that is given "stop" or "start". No other cluster is touched.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_support import Namespace, numbers
from pytest_kind import KindCluster
from real_cluster import IMAGE, POSTGRES_IMAGE, ROOT, Cluster, Release, run


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Cluster:
    found = Cluster.named() or _of_kind(request.getfixturevalue("kind_cluster"))
    found.load(ROOT, f"{IMAGE}:dev")
    return found


def _of_kind(kind: KindCluster) -> Cluster:
    """Its programs and its node's image are those that the Makefile pins."""

    def load(context: Path, image: str, *arguments: str) -> None:
        run("docker", "build", *(f"--build-arg={one}" for one in arguments), f"--tag={image}", str(context))
        kind.load_docker_image(image)

    def api_server(verb: str) -> None:
        """The kubelet runs it for as long as its manifest is there."""
        manifest, away = "/etc/kubernetes/manifests/kube-apiserver.yaml", "/kube-apiserver.yaml"
        source, target = (manifest, away) if verb == "stop" else (away, manifest)
        run("docker", "exec", f"{kind.name}-control-plane", "mv", source, target)

    return Cluster(
        kubeconfig=kind.kubeconfig_path.resolve(), postgres_image=POSTGRES_IMAGE, load=load, api_server=api_server
    )


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[Namespace]:
    name = f"e2e-{next(numbers)}"
    cluster.make_namespace(name)
    yield Namespace(cluster, name)
    cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="module")
def since(cluster: Cluster) -> float:
    """When the module's release began to be installed, by the monotonic clock."""
    return time.monotonic()


@pytest.fixture(scope="module")
def release(cluster: Cluster, since: float) -> Iterator[Release]:
    """With nothing but the images set."""
    installed = Release(cluster, "intervaljob")
    installed.install()
    yield installed
    installed.uninstall()
