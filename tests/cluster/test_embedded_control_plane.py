"""The embedded control plane: a real API server."""

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from kubernetes import client, config

from intervaljob.embedded.control_plane import ControlPlane
from intervaljob.embedded.programs import Programs
from intervaljob.errors import EmbeddedError

CRD = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: probes.test.intervaljob.dev}
spec:
  group: test.intervaljob.dev
  scope: Namespaced
  names: {plural: probes, singular: probe, kind: Probe}
  versions:
    - name: v1
      served: true
      storage: true
      schema:
        openAPIV3Schema:
          type: object
          properties:
            spec:
              type: object
              properties: {low: {type: integer}, high: {type: integer}}
              x-kubernetes-validations:
                - {rule: "self.low <= self.high", message: "low must not be above high"}
"""


def probe(*, name: str, low: int, high: int) -> str:
    return (
        "apiVersion: test.intervaljob.dev/v1\nkind: Probe\n"
        f"metadata: {{name: {name}, namespace: default}}\nspec: {{low: {low}, high: {high}}}\n"
    )


@contextmanager
def connected(kubeconfig: Path) -> Iterator[client.CoreV1Api]:
    with config.new_client_from_config(str(kubeconfig)) as connection:
        yield client.CoreV1Api(connection)


def eventually(condition: Callable[[], bool], *, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def children(pid: int) -> set[int]:
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def test_the_kubeconfig_is_secret_and_works_in_the_python_client(control_plane: ControlPlane) -> None:
    assert stat.S_IMODE(control_plane.kubeconfig.stat().st_mode) == 0o600
    assert yaml.safe_load(control_plane.kubeconfig.read_text())["clusters"][0]["cluster"]["server"] == (
        control_plane.server
    )
    with connected(control_plane.kubeconfig) as api:
        names = {each.metadata.name for each in api.list_namespace().items if each.metadata}
    assert {"default", "kube-system"} <= names


def test_custom_resources_are_judged_by_their_cel_rules(control_plane: ControlPlane) -> None:
    control_plane.kubectl("apply", "-f", "-", input=CRD)
    control_plane.kubectl("wait", "--for=condition=Established", "crd/probes.test.intervaljob.dev", "--timeout=20s")
    control_plane.kubectl("apply", "-f", "-", input=probe(name="good", low=1, high=2))
    with pytest.raises(EmbeddedError, match="low must not be above high"):
        control_plane.kubectl("apply", "-f", "-", input=probe(name="bad", low=2, high=1))
    assert control_plane.kubectl("get", "probes", "-o", "name") == "probe.test.intervaljob.dev/good\n"


def test_kubectl_that_fails_is_silent_where_that_is_asked(control_plane: ControlPlane) -> None:
    assert control_plane.kubectl("get", "namespace", "nowhere", check=False) == ""


def test_a_user_may_do_what_rbac_gives_him_and_no_more(control_plane: ControlPlane) -> None:
    user = "system:serviceaccount:default:reader"
    kubeconfig = control_plane.kubeconfig_for(user)
    with connected(kubeconfig) as api, pytest.raises(client.ApiException) as refused:
        api.list_namespaced_config_map("default")
    assert refused.value.status == 403
    control_plane.kubectl("create", "role", "reader", "--verb=list", "--resource=configmaps")
    control_plane.kubectl("create", "rolebinding", "reader", "--role=reader", "--serviceaccount=default:reader")

    def allowed(namespace: str) -> bool:
        answer = control_plane.kubectl(
            *("auth", "can-i", "list", "configmaps", "--as", user, "-n", namespace), check=False
        )
        return answer == "yes\n"

    eventually(lambda: allowed("default"))
    assert not allowed("kube-system")
    with connected(kubeconfig) as api:
        api.list_namespaced_config_map("default")


def test_the_api_goes_away_and_comes_back_at_the_same_address_with_its_objects(
    control_plane: ControlPlane,
) -> None:
    address = control_plane.server
    control_plane.kubectl("create", "configmap", "kept")
    control_plane.stop_apiserver()
    try:
        with pytest.raises(EmbeddedError, match="refused"):
            control_plane.kubectl("get", "configmap", "kept")
        control_plane.stop_apiserver()
    finally:
        control_plane.start_apiserver()
    assert control_plane.server == address
    assert control_plane.kubectl("get", "configmap", "kept", "-o", "name") == "configmap/kept\n"


def test_a_data_folder_keeps_the_objects_for_the_next_time(programs: Programs, tmp_path: Path) -> None:
    data = tmp_path / "not" / "yet"
    with ControlPlane(programs=programs, data=data) as first:
        first.kubectl("create", "namespace", "kept")
    with ControlPlane(programs=programs, data=data) as second:
        assert second.kubectl("get", "namespace", "kept", "-o", "name") == "namespace/kept\n"


def test_a_server_that_does_not_start_shows_its_log(programs: Programs, tmp_path: Path) -> None:
    broken = tmp_path / "kube-apiserver"
    broken.write_text("#!/bin/sh\necho no such luck >&2\nexit 3\n")
    broken.chmod(0o755)
    replaced = Programs(kube_apiserver=broken, etcd=programs.etcd, kubectl=programs.kubectl, version=programs.version)
    before = children(os.getpid())
    with pytest.raises(EmbeddedError, match=r"kube-apiserver ended with code 3 while starting:\nno such luck"):
        ControlPlane(programs=replaced).__enter__()
    assert children(os.getpid()) == before


def test_the_servers_end_when_the_process_that_started_them_is_killed(programs: Programs, tmp_path: Path) -> None:
    program = (
        "import signal, sys\n"
        "from pathlib import Path\n"
        "from intervaljob.embedded import programs\n"
        "from intervaljob.embedded.control_plane import ControlPlane\n"
        "with ControlPlane(programs=programs.find(report=print), data=Path(sys.argv[1])):\n"
        "    print('up', flush=True)\n"
        "    signal.pause()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, tmp_path / "data"],
        stdout=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "KUBEBUILDER_ASSETS": str(programs.etcd.parent),
        },
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "up\n"
        servers = children(parent.pid)
        assert len(servers) == 2
        parent.send_signal(signal.SIGKILL)
    eventually(lambda: not any(is_running(pid) for pid in servers))
