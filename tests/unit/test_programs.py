"""Where the control plane's programs come from: scripts and a local HTTP server stand in for the world."""

import hashlib
import io
import socket
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from intervaljob.embedded import processes, programs
from intervaljob.embedded.programs import ARCHIVE_VERSION, MODULES_VERSION, NAMES, Archive, Programs, find
from intervaljob.errors import EmbeddedError

GO = """#!/bin/sh
# Writes a program that tells its version to the file after -o, as `go build` would.
PATH=/usr/bin:/bin
echo "$CGO_ENABLED $GOFLAGS $(basename "$PWD") $*" >> "{log}"
while [ "$1" != -o ]; do shift; done
sleep 0.1
printf '#!/bin/sh\\necho Kubernetes compiled\\n' > "$2"
chmod +x "$2"
"""


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def stand_ins(folder: Path, *, version: str, names: tuple[str, ...] = NAMES) -> Path:
    for name in names:
        script(folder / name, f"#!/bin/sh\necho Kubernetes {version}\n")
    return folder


def archive_of(folder: Path) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        tar.add(folder, "controller-tools/envtest")
    return data.getvalue()


class World:
    """What `find` meets: no assets, an empty cache, a refused download, no Go; each test adds to it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.cache = folder / "cache" / "intervaljob"
        self.reports: list[str] = []
        self._patch = monkeypatch
        (folder / "tools").mkdir()
        monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(self.cache.parent))
        monkeypatch.setenv("PATH", str(folder / "tools"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr("platform.machine", lambda: "x86_64")
        self.offer(port=processes.free_port(), data=b"")

    def find(self) -> Programs:
        return find(report=self.reports.append)

    def offer(self, *, port: int, data: bytes) -> None:
        """Download from `http://127.0.0.1:port/archive`, and expect `data` there."""
        archive = Archive(url=f"http://127.0.0.1:{port}/archive", sha512=hashlib.sha512(data).hexdigest())
        self._patch.setattr(programs, "ARCHIVES", {"x86_64": archive})

    def assets(self, folder: Path) -> None:
        self._patch.setenv("KUBEBUILDER_ASSETS", str(folder))

    def install_go(self, text: str = GO) -> Path:
        log = self.folder / "go.log"
        script(self.folder / "tools" / "go", text.replace("{log}", str(log)))
        return log


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, int, list[str]]]:
    """A folder, the port of an HTTP server that serves it, and the requests that came."""
    folder = tmp_path / "served"
    folder.mkdir()
    requests: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - its name there
            requests.append(format % arguments)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, server.server_port, requests
        server.shutdown()
        thread.join()


def test_the_folder_of_envtest_comes_before_the_cache(world: World) -> None:
    stand_ins(world.cache / ARCHIVE_VERSION / "bin", version="cached")
    assets = stand_ins(world.folder / "assets", version="v1.30.0")
    world.assets(assets)
    assert world.find() == Programs(
        kube_apiserver=assets / "kube-apiserver",
        etcd=assets / "etcd",
        kubectl=assets / "kubectl",
        version="v1.30.0",
    )
    assert world.reports == []


def test_an_incomplete_folder_of_envtest_is_told_and_passed_over(world: World) -> None:
    stand_ins(world.cache / ARCHIVE_VERSION / "bin", version="cached")
    assets = stand_ins(world.folder / "assets", version="v1.30.0", names=("etcd", "kubectl"))
    world.assets(assets)
    assert world.find().version == "cached"
    assert world.reports == [f"KUBEBUILDER_ASSETS: {assets} has no kube-apiserver"]


def test_a_program_of_another_machine_is_passed_over(world: World) -> None:
    assets = stand_ins(world.folder / "assets", version="v1.30.0")
    (assets / "kube-apiserver").write_bytes(b"\x7fELF of some other machine")
    stand_ins(world.cache / MODULES_VERSION / "bin", version="cached")
    world.assets(assets)
    assert world.find().version == "cached"
    assert "kube-apiserver does not run" in world.reports[0]


@pytest.mark.parametrize("version", [ARCHIVE_VERSION, MODULES_VERSION])
def test_the_cache_is_used_whichever_way_filled_it(world: World, version: str) -> None:
    folder = stand_ins(world.cache / version / "bin", version=version)
    assert world.find().etcd == folder / "etcd"
    assert world.reports == []


def test_the_archive_is_downloaded_once_and_then_found_in_the_cache(
    world: World, served: tuple[Path, int, list[str]]
) -> None:
    folder, port, requests = served
    data = archive_of(stand_ins(world.folder / "release", version="downloaded"))
    (folder / "archive").write_bytes(data)
    world.offer(port=port, data=data)
    first = world.find()
    assert first.version == "downloaded"
    assert first.kubectl == world.cache / ARCHIVE_VERSION / "bin" / "kubectl"
    assert world.find() == first
    assert requests == ['"GET /archive HTTP/1.1" 200 -']
    assert world.reports == [f"downloading http://127.0.0.1:{port}/archive (about 160 MB, once)"]


def test_an_archive_with_another_checksum_is_refused_and_leaves_nothing(
    world: World, served: tuple[Path, int, list[str]]
) -> None:
    folder, port, _requests = served
    data = archive_of(stand_ins(world.folder / "release", version="downloaded"))
    (folder / "archive").write_bytes(data)
    world.offer(port=port, data=b"something else")
    with pytest.raises(EmbeddedError, match=f"has sha512 {hashlib.sha512(data).hexdigest()}, not "):
        world.find()
    assert list((world.cache / ARCHIVE_VERSION).iterdir()) == []


def test_an_archive_that_lacks_a_program_is_refused(world: World, served: tuple[Path, int, list[str]]) -> None:
    folder, port, _requests = served
    data = archive_of(stand_ins(world.folder / "release", version="downloaded", names=("etcd", "kubectl")))
    (folder / "archive").write_bytes(data)
    world.offer(port=port, data=data)
    with pytest.raises(EmbeddedError, match=r"download: .* has no kube-apiserver;"):
        world.find()


def test_a_server_that_says_nothing_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_SILENCE_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        world.offer(port=silent.getsockname()[1], data=b"")
        with pytest.raises(EmbeddedError, match="timed out"):
            world.find()


def test_the_pinned_modules_are_compiled_when_the_download_fails(world: World) -> None:
    log = world.install_go()
    found = world.find()
    assert found.version == "compiled"
    assert found.etcd == world.cache / MODULES_VERSION / "bin" / "etcd"
    lines = log.read_text().splitlines()
    assert [line.split()[:4] for line in lines] == [
        ["0", "-mod=readonly", "-trimpath", module] for module in ("kubernetes", "etcd", "kubernetes")
    ]
    assert all(f"-X k8s.io/component-base/version.gitVersion={MODULES_VERSION} " in line for line in lines)
    assert [line.split()[-1] for line in lines] == [
        "k8s.io/kubernetes/cmd/kube-apiserver",
        "go.etcd.io/etcd/server/v3",
        "k8s.io/kubernetes/cmd/kubectl",
    ]
    assert [report.split()[0:2] for report in world.reports[2:]] == [["compiling", name] for name in NAMES]


def test_the_modules_pin_the_version_that_is_told() -> None:
    text = (Path(programs.__file__).parent / "modules" / "kubernetes" / "go.mod").read_text()
    assert f"k8s.io/kubernetes {MODULES_VERSION}\n" in text


def test_two_at_once_compile_once(world: World) -> None:
    log = world.install_go()
    together = threading.Barrier(2)

    def one() -> Programs:
        together.wait(10)
        return world.find()

    with ThreadPoolExecutor(2) as pool:
        first, second = [each.result(30) for each in [pool.submit(one), pool.submit(one)]]
    assert first == second
    assert len(log.read_text().splitlines()) == len(NAMES)


def test_a_failed_compilation_leaves_nothing_in_the_cache(world: World) -> None:
    world.install_go("#!/bin/sh\necho first >&2\necho module not found >&2\nexit 1\n")
    with pytest.raises(EmbeddedError, match=r"go build of k8s\.io/.*/kube-apiserver failed: module not found$"):
        world.find()
    assert list((world.cache / MODULES_VERSION).iterdir()) == []


def test_when_nothing_works_every_way_is_listed_with_its_reason(world: World) -> None:
    with pytest.raises(EmbeddedError) as failure:
        world.find()
    ways = str(failure.value).removeprefix("cannot find kube-apiserver, etcd and kubectl: ").split("; ")
    assert ways[0] == "KUBEBUILDER_ASSETS is not set"
    assert ways[1].startswith(f"cache: {world.cache / ARCHIVE_VERSION / 'bin'} has no kube-apiserver, etcd, kubectl")
    assert ways[2].startswith("download: http://127.0.0.1:")
    assert "refused" in ways[2]
    assert ways[3:] == ["build: Go is not installed"]


def test_a_machine_without_an_archive_is_told_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(EmbeddedError, match="download: there is no envtest archive for riscv64"):
        world.find()


def test_a_cache_that_cannot_be_written_is_told_so(world: World) -> None:
    world.cache.parent.write_text("a file, not a folder")
    with pytest.raises(EmbeddedError, match="the cache cannot be written"):
        world.find()
