"""What the chart repeats of other files: its CRDs, its values' schema, its README, and the manifests made of it.

    python helm/generate.py [--check]        needs helm in the PATH, or named by HELM

`values.yaml` is the source: every `# --` comment describes the key below it, and what a value is tells its type.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from intervaljob.settings import MAX_RETENTION, QUEUE_PATTERN

ROOT = Path(__file__).parents[1]
CHART = ROOT / "helm" / "intervaljob"
HELM = os.environ.get("HELM", "helm")
NAMESPACE = "intervaljob"

_RETENTION = {"minimum": 1, "maximum": int(MAX_RETENTION)}
#: What a type alone does not say, by path.
_LIMITS: dict[str, dict[str, Any]] = {
    "image.pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
    "image.digest": {"pattern": "^(sha256:[0-9a-f]{64})?$"},
    "database.schema": {"pattern": "^[a-z_][a-z0-9_]{0,45}$"},
    "operator.replicas": {"minimum": 0},
    "operator.statusWritesPerSecond": {"exclusiveMinimum": 0},
    **{f"operator.retention.{kind}Seconds": _RETENTION for kind in ("succeeded", "cancelled", "failed")},
    "operator.logFormat": {"enum": ["text", "json"]},
    "operator.logLevel": {"enum": ["debug", "info", "warning", "error"]},
    "workerDefaults.image.pullPolicy": {"enum": ["", "Always", "IfNotPresent", "Never"]},
    "workerDefaults.image.digest": {"pattern": "^(sha256:[0-9a-f]{64})?$"},
    "workerDefaults.replicas": {"minimum": 0},
    "workerDefaults.queues": {"minItems": 1, "items": {"type": "string", "pattern": QUEUE_PATTERN}},
    "workerDefaults.concurrency": {"minimum": 1, "maximum": 10_000},
    "workerDefaults.leaseSeconds": {"minimum": 3, "maximum": 3600},
    "workerDefaults.drainSeconds": {"minimum": 0, "maximum": 86_400},
    "workerDefaults.cancelSeconds": {"minimum": 0, "maximum": 3600},
    "workerDefaults.logFormat": {"enum": ["text", "json"]},
    "workerDefaults.logLevel": {"enum": ["debug", "info", "warning", "error"]},
    "workerDefaults.autoscaling.kind": {"enum": ["none", "hpa", "keda"]},
    "workerDefaults.maxUnavailable": {"type": ["integer", "string"]},
}
#: Maps whose keys are the user's or Kubernetes's.
_FREE = ("resources", "affinity", "nodeSelector", "annotations", "Labels", "labels", "Annotations")
_OBJECTS = (
    "env",
    "envFrom",
    "volumes",
    "volumeMounts",
    "tolerations",
    "topologySpreadConstraints",
    "imagePullSecrets",
)
_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}


def main() -> None:
    """Write what has changed; with `--check` name it instead, and end with 1."""
    wanted = generated()
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        print(f"{path.relative_to(ROOT)} {'is stale: run `make generate`' if _checking() else 'written'}")
        if not _checking():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted[path])
    sys.exit(1 if stale and _checking() else 0)


def generated() -> dict[Path, str]:
    """Every generated file with its text. The chart's own come first: helm reads them."""
    files = {CHART / "files" / "crds" / crd.name: crd.read_text() for crd in sorted((ROOT / "crds").glob("*.yaml"))}
    text = (CHART / "values.yaml").read_text()
    values, about = yaml.safe_load(text), dict(comments(text))
    files[CHART / "values.schema.json"] = json.dumps(schema(values, about), indent=2) + "\n"
    files[CHART / "README.md"] = readme(values, about)
    base, evaluation = ROOT / "manifests" / "base", ROOT / "manifests" / "overlays" / "evaluation"
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    files[base / "install.yaml"] = _manifest(
        namespace, *_rendered("--set=database.existingSecret=intervaljob-database", "--set=crds.keep=false")
    )
    files[evaluation / "postgres.yaml"] = _manifest(*_rendered("--show-only=templates/evaluation-postgres.yaml"))
    return files


def comments(text: str) -> Iterator[tuple[str, str]]:
    """(path, description) of every key that has one."""
    path: list[tuple[int, str]] = []
    said: list[str] = []
    for line in text.splitlines():
        if match := re.match(r"\s*# (-- )?(.*)", line):
            said = [match[2]] if match[1] else [*said, match[2]] if said else []
        elif match := re.match(r"( *)([A-Za-z]+):", line):
            indent = len(match[1])
            path = [*((depth, key) for depth, key in path if depth < indent), (indent, match[2])]
            if said:
                yield ".".join(key for _, key in path), " ".join(said)
            said = []


def schema(values: dict[str, Any], about: dict[str, str]) -> dict[str, Any]:
    """JSON schema of the values: what the defaults show, with no other key."""
    whole = _schema("", values, about)
    pool = whole["properties"]["workerDefaults"]
    whole["$defs"] = {"pool": pool}
    whole["properties"]["workerDefaults"] = {"$ref": "#/$defs/pool"}
    whole["properties"]["workers"] |= {
        "additionalProperties": {"anyOf": [{"$ref": "#/$defs/pool"}, {"type": "null"}]},
        "propertyNames": {"pattern": "^[a-z0-9]([-a-z0-9]{0,18}[a-z0-9])?$"},
    }
    whole["properties"]["extraObjects"]["items"] = {"type": ["object", "string"]}
    whole["properties"]["global"] = {"type": "object"}
    return {"$schema": "http://json-schema.org/draft-07/schema#", **whole}


def _schema(path: str, value: Any, about: dict[str, str]) -> dict[str, Any]:
    described = {"description": about[path]} if path in about else {}
    limits = _LIMITS.get(path, {})
    name = path.rpartition(".")[2]
    if isinstance(value, dict):
        if path == "workers" or name.endswith(_FREE):
            return {**described, "type": "object"}
        properties = {key: _schema(f"{path}.{key}".lstrip("."), below, about) for key, below in value.items()}
        return {**described, "type": "object", "additionalProperties": False, "properties": properties}
    if isinstance(value, list):
        items = {"type": "object"} if name in _OBJECTS else {"type": "string"}
        return {**described, "type": "array", "items": items, **limits}
    return {**described, "type": _TYPES[type(value)], **limits}


def readme(values: dict[str, Any], about: dict[str, str]) -> str:
    """The chart's README: how to install, and a table of the values."""
    rows = [
        f"| `{path}` | `{json.dumps(value)}` | {about.get(path, '')} |" for path, value in _leaves("", values, about)
    ]
    return (CHART / "README.md.tmpl").read_text().replace("@VALUES@", "\n".join(rows))


def _leaves(path: str, value: Any, about: dict[str, str]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value and not path.endswith("resources") and path != "workers":
        for key, below in value.items():
            yield from _leaves(f"{path}.{key}".lstrip("."), below, about)
    else:
        yield path, value


def _manifest(*objects: dict[str, Any]) -> str:
    head = "# Made of helm/intervaljob by helm/generate.py.\n---\n"
    return head + "---\n".join(yaml.safe_dump(one, sort_keys=False) for one in objects)


def _rendered(*options: str) -> list[dict[str, Any]]:
    """The chart's objects for those who use no Helm, the CRD first."""
    command: list[str | Path] = [HELM, "template", "intervaljob", CHART]
    command += [f"--namespace={NAMESPACE}", "--kube-version=1.34", *options]
    rendered = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    objects = [one for one in yaml.safe_load_all(rendered) if one is not None]
    for one in objects:
        _forget_helm(one)
    return sorted(objects, key=lambda one: one["kind"] != "CustomResourceDefinition")


def _forget_helm(one: dict[str, Any]) -> None:
    for metadata in (one["metadata"], one.get("spec", {}).get("template", {}).get("metadata", {})):
        labels, annotations = metadata.get("labels", {}), metadata.get("annotations", {})
        labels.pop("helm.sh/chart", None)
        labels.pop("app.kubernetes.io/managed-by", None)
        for name in [name for name in annotations if name.startswith("helm.sh/")]:
            del annotations[name]
        if "annotations" in metadata and not annotations:
            del metadata["annotations"]
    if one["kind"] == "Job":  # a Job's template cannot change: each version has one of its own
        one["metadata"]["name"] += "-" + one["metadata"]["labels"]["app.kubernetes.io/version"].replace(".", "-")


def _checking() -> bool:
    return "--check" in sys.argv[1:]


if __name__ == "__main__":
    main()
