"""How much memory operators and workers need at rest, as the kubelet measures it, and how large a worker is on disk.

    python benchmarks/footprint.py               # on the cluster of E2E_KUBECONFIG, named as for make e2e

Installs the chart with nothing but the images set. Each worker has run two tasks at once before it rests, so it has two
executors. Memory is the working set, as `kubectl top` shows it, twenty seconds after the last task.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from cluster_support import Namespace, eventually
from real_cluster import IMAGE, ROOT, Cluster, Release

MB = 1_000_000
REST_SECONDS = 20
#: The worker's tree: PID 1, its manager, the zygote, the executors.
TREE = """
import os
def below(pid):
    children = open(f"/proc/{pid}/task/{pid}/children").read().split()
    return sum((below(child) for child in children), len(children))
print(below(1) - 2)
"""


def main() -> None:
    """Install, let it work, let it rest, and print a table."""
    cluster = Cluster.named()
    if cluster is None:
        raise SystemExit("E2E_KUBECONFIG: name a cluster, as for make e2e")
    cluster.load(ROOT, f"{IMAGE}:dev")
    release = Release(cluster, "intervaljob")
    release.install(workerDefaults={"concurrency": 2})
    try:
        release.ready("operator", count=2)
        workers = release.ready("worker", count=2)
        _fork_executors(cluster, release, workers)
        time.sleep(REST_SECONDS)
        print("| what | working set, MB |\n| --- | --- |")
        for name, size in sorted(_working_sets(cluster, release.namespace).items()):
            print(f"| {name} | {size / MB:.0f} |")
    finally:
        release.uninstall()
    print(f"\nworker's packages (pip install intervaljob): {_installed_size() / MB:.1f} MB")


def _fork_executors(cluster: Cluster, release: Release, workers: list[str]) -> None:
    """Four tasks at once for four places."""
    cluster.make_namespace("footprint")
    namespace = Namespace(cluster, "footprint")
    names = [f"busy-{number}" for number in range(4)]
    for name in names:
        namespace.apply(name, handler="sleep", payload='{"seconds": 5}')
        namespace.run_now(name)
    eventually(lambda: all(release.execute(one, TREE).strip() == "2" for one in workers), what="two executors each")
    for name in names:
        namespace.ended(name)
    cluster.kubectl("delete", "namespace", "footprint", "--wait=false")


def _working_sets(cluster: Cluster, namespace: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for node in cluster.objects("nodes"):
        raw = cluster.kubectl("get", "--raw", f"/api/v1/nodes/{node['metadata']['name']}/proxy/stats/summary")
        pods: list[dict[str, Any]] = json.loads(raw)["pods"]
        for pod in pods:
            if pod["podRef"]["namespace"] == namespace:
                for container in pod.get("containers", ()):
                    found[pod["podRef"]["name"]] = container["memory"]["workingSetBytes"]
    return found


def _installed_size() -> int:
    """Bytes of what `pip install` puts into an empty folder, which compiles it."""
    with tempfile.TemporaryDirectory() as folder:
        uv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--compile-bytecode", "--target", folder]
        subprocess.run([*uv, str(ROOT)], check=True)
        return sum(path.lstat().st_size for path in Path(folder).rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
