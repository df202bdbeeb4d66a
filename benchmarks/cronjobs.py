"""How many of many CronJobs that are due every minute kube-controller-manager makes a Job for, and how late.

    python benchmarks/cronjobs.py --jobs 1000 --minutes 3             # the controller with its defaults
    python benchmarks/cronjobs.py --jobs 1000 --minutes 3 --tuned

A control plane without nodes, on this machine. kube-controller-manager is no program that is downloaded or compiled:
KUBEBUILDER_ASSETS names a folder that has it beside etcd, kube-apiserver and kubectl. The Jobs are suspended, so
nothing is spent on Pods. A Job counts for the minute that it is for, and its lateness is from that minute until a
watch shows it. Jobs that come later than half a minute after the last one that is looked at are not seen.
"""

import argparse
import os
import platform
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.cluster import CRONJOBS, Cluster
from benchmarks.lateness import MINUTE, percentiles, say
from benchmarks.throughput import cpu_seconds

from intervaljob.embedded.control_plane import ControlPlane
from intervaljob.embedded.processes import Child
from intervaljob.embedded.programs import find

GRACE_SECONDS = 30
TUNED = ("--kube-api-qps=1000", "--kube-api-burst=2000", "--concurrent-cron-job-syncs=50", "--concurrent-job-syncs=50")
CRONJOB = {
    "apiVersion": "batch/v1",
    "kind": "CronJob",
    "spec": {
        "schedule": "* * * * *",
        "jobTemplate": {
            "spec": {
                "suspend": True,
                "template": {
                    "spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "example.com/none"}]}
                },
            }
        },
    },
}


def start_controllers(control_plane: ControlPlane, program: Path, *, log: Path, tuned: bool) -> Child:
    """kube-controller-manager that has begun; without the keys of service accounts, as nothing here has one."""
    child = Child(
        [
            program,
            f"--kubeconfig={control_plane.kubeconfig}",
            f"--authentication-kubeconfig={control_plane.kubeconfig}",
            f"--authorization-kubeconfig={control_plane.kubeconfig}",
            "--bind-address=127.0.0.1",
            "--secure-port=0",
            "--leader-elect=false",
            *(TUNED if tuned else ()),
        ],
        log=log,
        environment=os.environ,
    )
    child.wait_until(lambda: '"Starting cronjob controller v2"' in log.read_text(), seconds=60)
    return child


def run(cluster: Cluster, controllers: Child, options: argparse.Namespace) -> None:
    """Let whole minutes pass, and report each."""
    start = (int(time.time() + 5) // MINUTE + 1) * MINUTE
    minutes = range(start, start + options.minutes * MINUTE, MINUTE)
    lateness: dict[int, list[float]] = defaultdict(list)

    def seen(event: dict[str, Any]) -> None:
        if event["type"] == "ADDED":
            minute = int(event["object"]["metadata"]["name"].rpartition("-")[2]) * MINUTE
            lateness[minute].append(time.time() - minute)

    time.sleep(max(0.0, start - 2 - time.time()))
    before, begin = cpu_seconds(controllers.pid), time.monotonic()
    cluster.watch("/apis/batch/v1/jobs", seen, seconds=minutes.stop + GRACE_SECONDS - time.time())
    cores = (cpu_seconds(controllers.pid) - before) / (time.monotonic() - begin)
    print("| minute | due | Jobs made | missed | due → Job seen, s: p50 / p99 / max |")
    print("| --- | --- | --- | --- | --- |")
    for minute in minutes:
        made = len(lateness[minute])
        name = time.strftime("%H:%M", time.gmtime(minute))
        print(f"| {name} | {options.jobs} | {made} | {options.jobs - made} | {percentiles(lateness[minute])} |")
    print(f"kube-controller-manager: {cores:.2f} cores")


def main() -> None:
    """Run it and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--minutes", type=int, default=3)
    parser.add_argument("--tuned", action="store_true", help=" ".join(TUNED))
    options = parser.parse_args()
    load, programs = os.getloadavg()[1], find(report=say)
    program = programs.kube_apiserver.with_name("kube-controller-manager")
    if not program.exists():
        parser.error(f"there is no {program}: name a folder that has it with KUBEBUILDER_ASSETS")
    with (
        tempfile.TemporaryDirectory(prefix="intervaljob-cronjobs-") as folder,
        ControlPlane(programs=programs) as plane,
    ):
        cluster = Cluster(plane, CRONJOBS)
        cluster.create(options.jobs, CRONJOB)
        log = Path(folder) / "kube-controller-manager.log"
        controllers = start_controllers(plane, program, log=log, tuned=options.tuned)
        try:
            run(cluster, controllers, options)
        finally:
            controllers.stop(seconds=15)
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores; Kubernetes {programs.version}")
    print(f"load of the machine in the five minutes before: {load:.2f}")
    print(f"command: python benchmarks/cronjobs.py {' '.join(sys.argv[1:])}")


if __name__ == "__main__":
    main()
