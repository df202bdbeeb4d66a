"""A Kubernetes API of one's own: etcd and kube-apiserver on loopback, without nodes and controllers."""

import base64
import datetime as dt
import os
import signal
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self
from urllib.parse import quote

import yaml

from intervaljob.embedded import certificates, processes
from intervaljob.embedded.programs import Programs
from intervaljob.errors import EmbeddedError

_START_SECONDS = 90
_STOP_SECONDS = 15
_KUBECTL_SECONDS = 120


class ControlPlane:
    """An API server that accepts, validates, authorizes and stores, and nothing more; it runs inside `with`.

    Namespaces, custom resources with their CEL rules, events and RBAC work. There is no controller: pods are
    not run, owned objects are not collected, and a deleted namespace stays `Terminating`.

    `data` is a folder that keeps the objects for the next time (the machine's crash may lose them: etcd does
    not wait for the disk); without it they are gone at the end. Both servers end with this process; start
    them from the main thread (see `processes.Child`). Raises EmbeddedError when one does not start.
    """

    def __init__(self, *, programs: Programs, data: Path | None = None) -> None:
        self._programs = programs
        self._data = data
        self._folder = Path()
        self._etcd_port = processes.free_port()
        self._port = processes.free_port()
        self._authority = certificates.Authority(now=dt.datetime.now(dt.UTC))
        self._api_server: processes.Child | None = None
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._folder = self._data or Path(stack.enter_context(TemporaryDirectory(prefix="intervaljob-cluster-")))
            self._folder.mkdir(parents=True, exist_ok=True)
            self._write_certificates()
            self._write_kubeconfig("admin", group="system:masters")
            etcd = self._start_etcd()
            stack.callback(etcd.stop, seconds=_STOP_SECONDS)
            stack.callback(self.stop_apiserver)
            self.start_apiserver()
            self._exit = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._exit.close()

    @property
    def server(self) -> str:
        """The address of the API; it stays the same when the API server is stopped and started."""
        return f"https://127.0.0.1:{self._port}"

    @property
    def kubeconfig(self) -> Path:
        """A file with which one may do everything."""
        return self._kubeconfig("admin")

    def kubeconfig_for(self, user: str) -> Path:
        """A file with which one is `user`, in no group: allowed what RBAC gives it.

        `system:serviceaccount:NAMESPACE:NAME` is the name of a service account to RBAC.
        """
        return self._write_kubeconfig(user)

    def kubectl(self, *arguments: str, input: str | None = None, check: bool = True) -> str:  # noqa: A002
        """Run kubectl as administrator and return what it wrote to stdout.

        EmbeddedError, with what it wrote to stderr, when it fails, unless `check` is false.
        """
        return processes.run(
            [self._programs.kubectl, "--kubeconfig", self.kubeconfig, *arguments],
            environment={**os.environ, "KUBECACHEDIR": str(self._folder / "kubectl-cache")},
            seconds=_KUBECTL_SECONDS,
            stdin=input,
            check=check,
        )

    def start_apiserver(self) -> None:
        """Start the API server and return when it serves."""
        pki = self._folder
        self._api_server = processes.Child(
            [
                self._programs.kube_apiserver,
                f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
                "--bind-address=127.0.0.1",
                "--advertise-address=127.0.0.1",
                f"--secure-port={self._port}",
                "--endpoint-reconciler-type=none",
                "--service-cluster-ip-range=10.96.0.0/16",
                "--authorization-mode=RBAC",
                "--disable-admission-plugins=ServiceAccount",
                "--allow-privileged",
                "--profiling=false",
                f"--client-ca-file={pki / 'ca.crt'}",
                f"--tls-cert-file={pki / 'server.crt'}",
                f"--tls-private-key-file={pki / 'server.key'}",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-account-key-file={pki / 'service-accounts.key'}",
                f"--service-account-signing-key-file={pki / 'service-accounts.key'}",
            ],
            log=self._folder / "kube-apiserver.log",
            environment=os.environ,
        )
        self._api_server.wait_until(self._is_ready, seconds=_START_SECONDS)

    def stop_apiserver(self) -> None:
        """Take the API away; nothing happens when it is away already."""
        if self._api_server is not None:
            self._api_server.stop(signal.SIGTERM, seconds=_STOP_SECONDS)
            self._api_server = None

    def _start_etcd(self) -> processes.Child:
        clients = f"http://127.0.0.1:{self._etcd_port}"
        return processes.Child(
            [
                self._programs.etcd,
                f"--data-dir={self._folder / 'etcd'}",
                "--unsafe-no-fsync",
                "--log-level=warn",
                f"--listen-client-urls={clients}",
                f"--advertise-client-urls={clients}",
                "--listen-peer-urls=http://127.0.0.1:0",
            ],
            log=self._folder / "etcd.log",
            environment=os.environ,
        )

    def _is_ready(self) -> bool:
        """The server is ready and has made the namespaces that every cluster has."""
        try:
            self.kubectl("get", "--raw=/readyz", "--request-timeout=2s")
            self.kubectl("get", "namespace", "default", "kube-system", "--request-timeout=2s")
        except EmbeddedError:
            return False
        return True

    def _write_certificates(self) -> None:
        certificate, key = self._authority.server()
        (self._folder / "ca.crt").write_bytes(self._authority.certificate)
        (self._folder / "server.crt").write_bytes(certificate)
        _write_secret(self._folder / "server.key", key)
        _write_secret(self._folder / "service-accounts.key", certificates.signing_key())

    def _kubeconfig(self, user: str) -> Path:
        """Its name is free of the colons of `user`, which separate files in KUBECONFIG."""
        return self._folder / f"{quote(user, safe='')}.kubeconfig"

    def _write_kubeconfig(self, user: str, *, group: str | None = None) -> Path:
        certificate, key = self._authority.client(user, group=group)
        name = "intervaljob"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": name,
            "clusters": [
                {
                    "name": name,
                    "cluster": {
                        "server": self.server,
                        "certificate-authority-data": _base64(self._authority.certificate),
                    },
                }
            ],
            "users": [
                {
                    "name": user,
                    "user": {
                        "client-certificate-data": _base64(certificate),
                        "client-key-data": _base64(key),
                    },
                }
            ],
            "contexts": [{"name": name, "context": {"cluster": name, "user": user}}],
        }
        path = self._kubeconfig(user)
        _write_secret(path, yaml.safe_dump(config, sort_keys=False).encode())
        return path


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _write_secret(path: Path, data: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(data)
