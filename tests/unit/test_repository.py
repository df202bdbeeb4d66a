"""What holds for the repository itself."""

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from intervaljob.embedded.stack import packaged

ROOT = Path(__file__).parents[2]


def _toml(name: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / name).read_text())


@pytest.mark.parametrize("path", ["operator/__init__.py", "operator.py"])
def test_the_standard_librarys_operator_is_not_shadowed(path: str) -> None:
    """`operator` must stay the standard library's module, whatever folder is on the path."""
    assert not (ROOT / path).exists()


def test_make_help_lists_every_target() -> None:
    """A target that is not listed is not found."""
    targets = set(re.findall(r"^\.PHONY: (\S+)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    listed = {line.split()[0] for line in shown.splitlines() if line.startswith("  ")}
    assert listed == targets
    assert {"demo", "dev", "check", "test", "build-worker", "migrate", "migrate-remove-current-task-id"} <= listed


def test_the_changelog_begins_with_this_version() -> None:
    """A release says what is new in it."""
    (newest, *_) = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert newest == _toml("pyproject.toml")["project"]["version"]


def test_the_lock_is_of_these_dependencies() -> None:
    """Every requirement in pyproject.toml is in uv.lock as it is written: run `make lock` after a change."""
    project = _toml("pyproject.toml")
    (locked,) = [package for package in _toml("uv.lock")["package"] if package["name"] == "intervaljob"]
    optional = project["project"]["optional-dependencies"].values()
    wanted = [*project["project"]["dependencies"], *(one for group in optional for one in group)]
    assert _requirements(wanted) == _locked(locked["metadata"]["requires-dist"])
    assert _requirements(project["dependency-groups"]["dev"]) == _locked(locked["metadata"]["requires-dev"]["dev"])


def _requirements(lines: list[str]) -> set[tuple[str, frozenset[str]]]:
    """Names with the parts of their versions, in no order; extras are left out."""
    split = [re.fullmatch(r"([\w-]+)(?:\[[^]]*])?(.*)", line) for line in lines]
    return {(match[1], _versions(match[2])) for match in split if match}


def _locked(entries: list[dict[str, Any]]) -> set[tuple[str, frozenset[str]]]:
    return {(entry["name"], _versions(entry.get("specifier", ""))) for entry in entries}


def _versions(text: str) -> frozenset[str]:
    return frozenset(part.strip() for part in text.split(",") if part.strip())


def test_the_lock_names_public_addresses_only() -> None:
    """An index of one machine, written into the lock, would break it on every other."""
    text = (ROOT / "uv.lock").read_text()
    hosts = set(re.findall(r"\b\w+://([^/\"]+)", text))
    assert len(hosts) == 2  # the index, and where its files are
    assert all(re.fullmatch(r"([a-z]+\.)+org", host) for host in hosts), hosts
    assert "file:" not in text


def test_the_samples_are_found() -> None:
    """`make demo` applies them; the CRD is beside them."""
    assert {"hello.yaml", "sleep.yaml"} <= {path.name for path in packaged("manifests/samples").iterdir()}
    assert [path.name for path in packaged("crds").iterdir()] == ["intervaljobs.yaml"]
