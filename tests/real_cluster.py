"""A Kubernetes cluster with a kubelet, and the chart in it, as an administrator at a terminal has them."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cluster_support import eventually, numbers

ROOT = Path(__file__).parents[1]
CHART = ROOT / "helm" / "intervaljob"
IMAGE = "localhost/intervaljob"
POSTGRES_IMAGE = "postgres:18"
#: Bound on one command.
SECONDS = 300

#: Run in a worker's container: PID 1 has one child, the manager.
KILL_MANAGER = "import os; os.kill(int(open('/proc/1/task/1/children').read().split()[0]), 9)"


class Load(Protocol):
    """Makes a folder with a Dockerfile, built with `NAME=VALUE` arguments, known to the nodes as an image."""

    def __call__(self, context: Path, image: str, *arguments: str) -> None: ...


@dataclass(frozen=True)
class Cluster:
    """`api_server` is a command that takes "stop" or "start"."""

    kubeconfig: Path
    postgres_image: str
    load: Load
    api_server: Callable[[str], None]
    database_url: str = ""

    @classmethod
    def named(cls) -> Cluster | None:
        """The one that E2E_KUBECONFIG names, with the commands for it; None where none is named."""
        kubeconfig = os.environ.get("E2E_KUBECONFIG")
        if not kubeconfig:
            return None
        load, api_server = shlex.split(os.environ["E2E_LOAD_IMAGE"]), shlex.split(os.environ["E2E_API_SERVER"])
        return cls(
            kubeconfig=Path(kubeconfig),
            postgres_image=os.environ.get("E2E_POSTGRES_IMAGE", POSTGRES_IMAGE),
            load=lambda context, image, *arguments: run(*load, str(context), image, *arguments),
            api_server=lambda verb: run(*api_server, verb),
        )

    def kubectl(self, *arguments: str, input: str | None = None, check: bool = True) -> str:  # noqa: A002
        return self._run(["kubectl", *arguments], stdin=input, check=check)

    def helm(self, *arguments: str, stdin: str | None = None) -> str:
        return self._run([os.environ.get("HELM", "helm"), *arguments], stdin=stdin)

    def objects(self, kind: str, *arguments: str) -> list[dict[str, Any]]:
        found = json.loads(self.kubectl("get", kind, *arguments, "--output", "json"))["items"]
        assert isinstance(found, list)
        return found

    def make_namespace(self, name: str, **labels: str) -> None:
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        self.kubectl("apply", "--filename", "-", input=json.dumps(body))

    @contextmanager
    def without_api_server(self) -> Iterator[None]:
        """It is stopped while the block lasts; afterwards all of the cluster has noticed that it is back.

        Kubernetes' own clients wait up to a minute between their tries: a namespace that goes shows that they are done.
        """
        self.api_server("stop")
        try:
            yield
        finally:
            self.api_server("start")
            eventually(lambda: self.kubectl("get", "--raw=/readyz", check=False) == "ok", what="it answers", within=60)
            name = f"e2e-{next(numbers)}"
            self.make_namespace(name)
            self.kubectl("delete", "namespace", name, "--timeout=180s")

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig)}

    def _run(self, command: Sequence[str], *, stdin: str | None = None, check: bool = True) -> str:
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env=self.environment,
            check=False,
        )
        assert done.returncode == 0 or not check, f"{' '.join(command)}: {done.stderr.strip()}"
        return done.stdout


@dataclass(frozen=True)
class Release:
    """The chart in a namespace that enforces the restricted Pod security standard."""

    cluster: Cluster
    namespace: str
    name: str = "intervaljob"

    def install(self, **values: Any) -> None:
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        self.cluster.make_namespace(self.namespace, **labels)
        self._helm("install", values)

    def upgrade(self, **values: Any) -> None:
        self._helm("upgrade", values)

    def rollback(self) -> None:
        self.cluster.helm("rollback", self.name, "--namespace", self.namespace, "--wait", "--timeout=120s")

    def uninstall(self) -> None:
        self.cluster.helm("uninstall", self.name, "--namespace", self.namespace, "--wait", "--timeout=60s")

    def kubectl(self, *arguments: str, check: bool = True) -> str:
        return self.cluster.kubectl("--namespace", self.namespace, *arguments, check=check)

    def pods(self, component: str) -> list[dict[str, Any]]:
        selector = f"app.kubernetes.io/instance={self.name},app.kubernetes.io/component={component}"
        return self.cluster.objects("pods", "--namespace", self.namespace, "--selector", selector)

    def ready(self, component: str, *, count: int) -> list[str]:
        """Names of so many ready Pods, as soon as there are no others."""

        def look() -> list[str] | None:
            pods = self.pods(component)
            ready = [pod for pod in pods if _is_ready(pod)]
            return [pod["metadata"]["name"] for pod in ready] if len(ready) == len(pods) == count else None

        return eventually(look, what=f"{count} ready Pods: {component}", within=120)

    def roll_out(self, component: str) -> None:
        """Replace every Pod of a Deployment, one after the other, and wait for the end of it."""
        deployment = f"deployment/{self.name}-{component}"
        self.kubectl("rollout", "restart", deployment)
        self.kubectl("rollout", "status", deployment, "--timeout=180s")

    def execute(self, pod: str, code: str) -> str:
        """Python in a worker's container."""
        return self.kubectl("exec", pod, "--container=worker", "--", "python3", "-c", code, check=False)

    def sql(self, text: str) -> list[list[str]]:
        """Rows of the evaluation Postgres."""
        psql = 'PGPASSWORD=$POSTGRES_PASSWORD psql -h 127.0.0.1 -U intervaljob -At -F "|" intervaljob -c "$0"'
        pod = f"{self.name}-postgres-0"
        options = "SET search_path = intervaljob"
        answer = self.kubectl("exec", pod, "--", "sh", "-c", psql, f"{options}; {text}")
        return [line.split("|") for line in answer.splitlines()[1:]]

    @contextmanager
    def database(self) -> Iterator[str]:
        """The URL of the evaluation Postgres on this machine, while the block lasts."""
        secret = json.loads(self.kubectl("get", "secret", f"{self.name}-database", "--output", "json"))
        password = base64.b64decode(secret["data"]["password"]).decode()
        command = ["kubectl", "--namespace", self.namespace, "port-forward", f"pod/{self.name}-postgres-0", ":5432"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=self.cluster.environment, text=True) as forward:
            try:
                assert forward.stdout is not None
                port = re.search(r"127\.0\.0\.1:(\d+)", forward.stdout.readline())
                assert port is not None, "kubectl port-forward does not say its port"
                yield f"postgresql://intervaljob:{password}@127.0.0.1:{port[1]}/intervaljob"
            finally:
                forward.send_signal(signal.SIGTERM)

    def _helm(self, verb: str, values: Mapping[str, Any]) -> None:
        """Values are nested, as in a file."""
        image = {"repository": IMAGE, "tag": "dev", "pullPolicy": "Never"}
        given = {"image": image, "evaluationPostgres": {"image": self.cluster.postgres_image}, **values}
        options = ("--namespace", self.namespace, "--values=-", "--timeout=180s")
        self.cluster.helm(verb, self.name, str(CHART), *options, stdin=json.dumps(given))


def run(*command: str) -> None:
    """Without its output, which is shown where it fails."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=900, check=False, text=True
    )
    assert done.returncode == 0, f"{shlex.join(command)}: {done.stdout[-2000:]}"


def _is_ready(pod: dict[str, Any]) -> bool:
    conditions = {one["type"]: one["status"] for one in pod["status"].get("conditions", [])}
    return conditions.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]
