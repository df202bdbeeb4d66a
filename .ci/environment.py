"""Make .venv as uv.lock says. Needs Python 3.11 and nothing else.

`uv sync` fetches from the addresses in the lock, so a machine that has a package index of its own could not use
it. Here the lock gives versions and hashes alone, and packages come from wherever uv or pip are set up to look.
Without either, uv itself is fetched from its address in the lock.
"""

import hashlib
import importlib.util
import io
import platform
import shutil
import subprocess
import sys
import tomllib
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
UV = VENV / "bin" / "uv"
REQUIREMENTS = VENV / "requirements.txt"
HELP = "install uv, or: apt-get install python3-venv"


def main() -> None:
    uv = shutil.which("uv")
    install: tuple[str | Path, ...]
    if uv:
        run(uv, "venv", "--quiet", "--clear", "--python", sys.executable, VENV)
        install = (uv, "pip", "install", "--quiet", "--python", PYTHON)
    elif pip := _make_venv():
        REQUIREMENTS.write_text(_requirement(_locked_uv()))
        run(*pip, "--require-hashes", "--requirement", REQUIREMENTS)
        uv, install = str(UV), pip
    else:
        _fetch(_locked_uv())
        uv, install = str(UV), (UV, "pip", "install", "--quiet", "--python", PYTHON)
    run(uv, "export", "--quiet", "--frozen", "--no-emit-project", "--python", PYTHON, "--output-file", REQUIREMENTS)
    run(*install, "--require-hashes", "--requirement", REQUIREMENTS)
    run(*install, "--no-deps", "--no-build-isolation", "--editable", ROOT)


def run(*command: str | Path) -> None:
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def _make_venv() -> tuple[str | Path, ...] | None:
    """A virtual environment, and how pip installs into it, where there is a pip (Debian packs each apart)."""
    environment = (sys.executable, "-m", "venv", "--clear")
    options = ("install", "--quiet", "--disable-pip-version-check")
    if importlib.util.find_spec("ensurepip"):
        run(*environment, VENV)
        return (PYTHON, "-m", "pip", *options)
    run(*environment, "--without-pip", VENV)
    if importlib.util.find_spec("pip"):
        return (sys.executable, "-m", "pip", "--python", PYTHON, *options)
    return None


def _locked_uv() -> dict[str, Any]:
    packages = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    return next(package for package in packages if package["name"] == "uv")


def _requirement(package: dict[str, Any]) -> str:
    hashes = " ".join(f"--hash={wheel['hash']}" for wheel in package["wheels"])
    return f"{package['name']}=={package['version']} {hashes}\n"


def _fetch(uv: dict[str, Any]) -> None:
    libc = "manylinux" if platform.libc_ver()[0] == "glibc" else "musllinux"
    machine = f"_{platform.machine()}."
    wheel = next((wheel for wheel in uv["wheels"] if libc in wheel["url"] and machine in wheel["url"]), None)
    if wheel is None:
        sys.exit(f"there is no uv for {platform.machine()} in uv.lock; {HELP}")
    try:
        with urllib.request.urlopen(wheel["url"], timeout=60) as answer:
            data = answer.read()
    except OSError as error:
        sys.exit(f"{wheel['url']}: {error}; {HELP}")
    if f"sha256:{hashlib.sha256(data).hexdigest()}" != wheel["hash"]:
        sys.exit(f"{wheel['url']} is not what uv.lock says")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        program = next(member for member in archive.namelist() if member.endswith("/scripts/uv"))
        UV.write_bytes(archive.read(program))
    UV.chmod(0o755)


if __name__ == "__main__":
    if sys.version_info < (3, 11):
        sys.exit("needs Python 3.11 or newer; say which with make PYTHON=python3.11")
    print("setting up .venv", flush=True)
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"failed: {' '.join(map(str, error.cmd))}")
