"""The three programs of a control plane: kube-apiserver, etcd and kubectl, wherever they can be had."""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from intervaljob.embedded import processes
from intervaljob.errors import EmbeddedError

Report = Callable[[str], None]

NAMES = ("kube-apiserver", "etcd", "kubectl")


@dataclass(frozen=True, kw_only=True)
class Programs:
    """Where the programs are, and which Kubernetes they are, as `v1.34.4`."""

    kube_apiserver: Path
    etcd: Path
    kubectl: Path
    version: str


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A release of envtest: the three programs, built by the Kubernetes project for tests."""

    url: str
    sha512: str


_RELEASES = "https://github.com/kubernetes-sigs/controller-tools/releases/download"
ARCHIVE_VERSION = "v1.34.1"
# Checksums: envtest-releases.yaml in kubernetes-sigs/controller-tools.
ARCHIVES = {
    "x86_64": Archive(
        url=f"{_RELEASES}/envtest-v1.34.1/envtest-v1.34.1-linux-amd64.tar.gz",
        sha512="c5e7c237ae18a8c65d0df1214b864ecd19aa9ff4f1383dbd477c202546d778c0"
        "f74efe15750ec38f57d8de26ba17cd62f404446cdd3c975399a5d4589de35cdd",
    ),
    "aarch64": Archive(
        url=f"{_RELEASES}/envtest-v1.34.1/envtest-v1.34.1-linux-arm64.tar.gz",
        sha512="bf13d2456183e66d084e28e1c9eed6a408fb77a06d8d1fd0461a7d9bc0c90b63"
        "d29ea67870b28f80d1f992acb026007d6f43987753c859c81d6a78bc1ca2c903",
    ),
}
_SILENCE_SECONDS = 5
_DOWNLOAD_SECONDS = 900
_CHUNK_BYTES = 1 << 20

MODULES_VERSION = "v1.34.4"
_MODULES = Path(__file__).parent / "modules"
_PACKAGES = {
    "kube-apiserver": ("kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver"),
    "etcd": ("etcd", "go.etcd.io/etcd/server/v3"),
    "kubectl": ("kubernetes", "k8s.io/kubernetes/cmd/kubectl"),
}
_BUILD_SECONDS = 3600


def find(*, report: Report) -> Programs:
    """The programs, from the first of these ways that has them.

    1. the folder that KUBEBUILDER_ASSETS names, as for envtest (controller-runtime);
    2. this package's cache, `$XDG_CACHE_HOME/intervaljob/<version>/bin`;
    3. the official envtest archive, into the cache;
    4. a build of the Go modules that this package pins, into the cache.

    `report` is told what takes long, and why a way that was meant to work did not. Several processes may call
    this at once: one fetches, the others wait for it. EmbeddedError lists every way and why it failed.
    """
    cache = _cache_folder()
    failures = []
    for way in (_from_assets, _from_cache, _fetch):
        try:
            return way(cache, report)
        except EmbeddedError as error:
            failures.append(str(error))
    raise EmbeddedError("cannot find kube-apiserver, etcd and kubectl: " + "; ".join(failures))


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "intervaljob"


def _from_assets(_cache: Path, report: Report) -> Programs:
    folder = os.environ.get("KUBEBUILDER_ASSETS")
    if not folder:
        raise EmbeddedError("KUBEBUILDER_ASSETS is not set")
    try:
        return _in_folder(Path(folder))
    except EmbeddedError as error:
        report(f"KUBEBUILDER_ASSETS: {error}")
        raise EmbeddedError(f"KUBEBUILDER_ASSETS: {error}") from error


def _from_cache(cache: Path, _report: Report) -> Programs:
    failures = []
    for version in (ARCHIVE_VERSION, MODULES_VERSION):
        try:
            return _in_folder(cache / version / "bin")
        except EmbeddedError as error:
            failures.append(str(error))
    raise EmbeddedError("cache: " + ", ".join(failures))


def _fetch(cache: Path, report: Report) -> Programs:
    """Fill the cache, unless another process did while this one waited for it."""
    with _locked(cache):
        try:
            return _from_cache(cache, report)
        except EmbeddedError:
            pass
        try:
            return _download(cache / ARCHIVE_VERSION, report)
        except EmbeddedError as error:
            refused = f"download: {error}"
            report(refused)
        try:
            return _build(cache / MODULES_VERSION, report)
        except (EmbeddedError, OSError) as error:
            raise EmbeddedError(f"{refused}; build: {error}") from error


def _in_folder(folder: Path) -> Programs:
    missing = [name for name in NAMES if not os.access(folder / name, os.X_OK)]
    if missing:
        raise EmbeddedError(f"{folder} has no {', '.join(missing)}")
    try:
        answer = processes.run([folder / "kube-apiserver", "--version"], environment=os.environ, seconds=30)
    except OSError as error:
        raise EmbeddedError(f"{folder / 'kube-apiserver'} does not run: {error}") from error
    return Programs(
        kube_apiserver=folder / "kube-apiserver",
        etcd=folder / "etcd",
        kubectl=folder / "kubectl",
        version=answer.strip().rpartition(" ")[2],
    )


def _download(folder: Path, report: Report) -> Programs:
    machine = platform.machine()
    archive = ARCHIVES.get(machine)
    if archive is None:
        raise EmbeddedError(f"there is no envtest archive for {machine}")
    report(f"downloading {archive.url} (about 160 MB, once)")
    try:
        with _filling(folder) as part, tempfile.TemporaryFile(dir=part.parent) as file:
            digest = hashlib.sha512()
            for chunk in _chunks(archive.url):
                digest.update(chunk)
                file.write(chunk)
            if digest.hexdigest() != archive.sha512:
                raise EmbeddedError(f"{archive.url} has sha512 {digest.hexdigest()}, not {archive.sha512}")
            file.seek(0)
            with tarfile.open(fileobj=file) as tar:
                _extract(tar, part)
    except (OSError, HTTPException, tarfile.TarError) as error:
        raise EmbeddedError(f"{archive.url}: {error}") from error
    return _in_folder(folder / "bin")


def _chunks(url: str) -> Iterator[bytes]:
    deadline = time.monotonic() + _DOWNLOAD_SECONDS
    with urllib.request.urlopen(url, timeout=_SILENCE_SECONDS) as response:  # noqa: S310 - our own address
        while chunk := response.read(_CHUNK_BYTES):
            if time.monotonic() > deadline:
                raise EmbeddedError(f"{url} took longer than {_DOWNLOAD_SECONDS} s")
            yield chunk


def _extract(tar: tarfile.TarFile, folder: Path) -> None:
    for member in tar:
        name = Path(member.name).name
        content = tar.extractfile(member) if name in NAMES else None
        if content is not None:
            with (folder / name).open("wb") as file:
                shutil.copyfileobj(content, file)
            (folder / name).chmod(0o755)


def _build(folder: Path, report: Report) -> Programs:
    go = shutil.which("go")
    if go is None:
        raise EmbeddedError("Go is not installed")
    major, minor, _patch = MODULES_VERSION.removeprefix("v").split(".")
    version = "k8s.io/component-base/version"
    facts = {"gitVersion": MODULES_VERSION, "gitMajor": major, "gitMinor": minor}
    flags = " ".join(["-s", "-w", *(f"-X {version}.{name}={value}" for name, value in facts.items())])
    with _filling(folder) as part:
        for name, (module, package) in _PACKAGES.items():
            report(f"compiling {name} (once; minutes, or a quarter of an hour on a slow machine)")
            _run_go([go, "build", "-ldflags", flags, "-o", str(part / name), package], module=module)
    return _in_folder(folder / "bin")


def _run_go(command: list[str], *, module: str) -> None:
    try:
        subprocess.run(
            command,
            cwd=_MODULES / module,
            env={**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -trimpath"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_BUILD_SECONDS,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        last = error.stderr.strip().splitlines()[-1:]
        raise EmbeddedError(f"go build of {command[-1]} failed: {' '.join(last)}") from error
    except subprocess.TimeoutExpired as error:
        raise EmbeddedError(f"go build of {command[-1]} took longer than {_BUILD_SECONDS} s") from error


@contextmanager
def _filling(folder: Path) -> Iterator[Path]:
    """A folder to write to that becomes `folder/bin` whole, or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as temporary:
        part = Path(temporary) / "bin"
        part.mkdir()
        yield part
        shutil.rmtree(folder / "bin", ignore_errors=True)
        part.rename(folder / "bin")


@contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """Hold the cache for this process; the wait is bounded because the work of whoever holds it is."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = (cache / "lock").open("w")
    except OSError as error:
        raise EmbeddedError(f"the cache cannot be written: {error}") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
