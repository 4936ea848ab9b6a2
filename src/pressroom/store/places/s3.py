"""The place in a bucket: `s3://bucket/prefix`, of Amazon or of any server that speaks its protocol.

Credentials come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN) or from the role of
the machine, never from the setting; AWS_REGION and AWS_ENDPOINT_URL say where. A piece is written to an unnamed local
file first, because its name is known only at its end, and sent in parts; the bucket shows it when the last one is in.
"""

from __future__ import annotations

import ipaddress
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from pressroom.kernel.errors import MissingDependencyError, NotFoundError, SettingsError, StoreError, StoreFullError
from pressroom.store.places.base import Place, Writer, checked_name

try:
    import obstore
    from obstore import exceptions
    from obstore.store import S3Store
except ImportError as error:
    raise MissingDependencyError(
        "a store in a bucket needs the library obstore", hint="pip install 'pressroom[s3]'", extra="s3"
    ) from error

# A request that brings this much takes longer than its round trip; more of them at once than this bring no more.
_PART = 8 << 20
_AT_ONCE = 4
_RETRIES: Any = {
    "max_retries": 8,
    "retry_timeout": timedelta(seconds=120),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=10), "base": 2},
}


class Backend(Place):
    def __init__(self, url: str, *, root: Path) -> None:
        bucket, prefix = _parsed(url)
        self._url = f"s3://{bucket}/{prefix}".rstrip("/")
        self._spool = root
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
        options: Any = {"timeout": timedelta(seconds=60), "connect_timeout": timedelta(seconds=10)}
        if endpoint.startswith("http://") and _is_loopback(endpoint):
            options["allow_http"] = True
        try:
            self._store = S3Store(bucket, prefix=prefix or None, client_options=options, retry_config=_RETRIES)
        except exceptions.BaseError as error:
            raise SettingsError(
                f"the bucket {self._url} cannot be used: {_short(error)}",
                hint="Set AWS_REGION, and AWS_ENDPOINT_URL where it is not Amazon's.",
            ) from error

    @contextmanager
    def write(self, *, size: int | None = None) -> Iterator[Writer]:
        try:
            if size is not None and (free := _free(self._spool)) < size:
                raise _full(self._spool, size, free)
            spool = tempfile.TemporaryFile(dir=self._spool)  # noqa: SIM115  # closed below
        except OSError as error:
            raise _unspooled(self._spool, error) from error
        with spool:
            yield _Writer(self, spool)

    def read(self, name: str, offset: int, length: int) -> bytes:
        if not length:
            return b""
        with self._failures(name):
            found = bytes(obstore.get_range(self._store, checked_name(name), start=offset, length=length))
        if len(found) != length:
            raise StoreError(
                f"{name} in {self._url} ends before {offset + length} bytes",
                hint="The bucket was altered. `press verify` names what is affected.",
                name=name,
            )
        return found

    def read_into(self, name: str, offset: int, out: memoryview) -> None:
        starts = range(0, len(out), _PART)

        def fetch(start: int) -> None:
            end = min(len(out), start + _PART)
            out[start:end] = self.read(name, offset + start, end - start)

        if len(starts) < 2:
            for start in starts:
                fetch(start)
            return
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(fetch, starts))

    def local(self, name: str) -> Path | None:
        if self.size(name) is None:
            raise self._gone(name)
        return None

    def size(self, name: str) -> int | None:
        try:
            with self._failures(name):
                return int(obstore.head(self._store, checked_name(name))["size"])
        except NotFoundError:
            return None

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        # The library lists whole folders; what is asked for may begin inside a name.
        folder = prefix.rpartition("/")[0]
        with self._failures(prefix):
            for batch in obstore.list(self._store, folder or None):
                for found in batch:
                    if found["path"].startswith(prefix):
                        yield found["path"], int(found["size"])

    def delete(self, name: str) -> bool:
        if self.size(name) is None:
            return False
        with self._failures(name):
            obstore.delete(self._store, name)
        return True

    def close(self) -> None:
        """The library closes its connections when it is let go."""

    def _send(self, name: str, spool: IO[bytes]) -> None:
        spool.seek(0, os.SEEK_END)
        size = spool.tell()
        spool.seek(0)
        with self._failures(name):
            # Overwriting is what makes it safe to try again when an answer was lost: a name means the same bytes for
            # ever, and the bucket changes it at once.
            obstore.put(
                self._store,
                checked_name(name),
                spool,
                mode="overwrite",
                chunk_size=_PART,
                max_concurrency=2,
                use_multipart=size > _PART,
            )
        if self.size(name) != size:
            raise StoreError(
                f"{self._url} took {name} and does not have its {size} bytes",
                hint="Something else writes there, or the server keeps no promises: use another prefix or bucket.",
                name=name,
            )

    @contextmanager
    def _failures(self, name: str) -> Iterator[None]:
        try:
            yield
        except (exceptions.NotFoundError, FileNotFoundError) as error:
            raise self._gone(name) from error
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
            raise StoreError(
                f"{self._url} refuses: {_short(error)}",
                hint="Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what they may do in this bucket.",
                name=name,
            ) from error
        except (exceptions.BaseError, OSError) as error:
            raise StoreError(
                f"{self._url} does not answer as it should, after several tries: {_short(error)}",
                hint="Try again later; nothing was lost. AWS_ENDPOINT_URL and AWS_REGION say where it is.",
                name=name,
            ) from error

    def _gone(self, name: str) -> NotFoundError:
        return NotFoundError(
            f"the store does not hold {name.rpartition('/')[2]}",
            hint="Pull the model that it belongs to again; where there is no bucket of that name, make one.",
            asked=name,
        )


class _Writer:
    def __init__(self, place: Backend, spool: IO[bytes]) -> None:
        self._place = place
        self._spool = spool

    def write(self, data: bytes | bytearray | memoryview) -> None:
        try:
            self._spool.write(data)
        except OSError as error:
            raise _unspooled(self._place._spool, error) from error

    def commit(self, name: str) -> None:
        try:
            self._spool.flush()
        except OSError as error:
            raise _unspooled(self._place._spool, error) from error
        self._place._send(name, self._spool)


def _parsed(url: str) -> tuple[str, str]:
    """Bucket and prefix."""
    scheme, _, rest = url.partition("://")
    bucket, _, prefix = rest.partition("/")
    if "@" in bucket or ":" in bucket:  # the text is not quoted: what is there may be a secret
        raise SettingsError(
            "the store setting holds more than s3://bucket/prefix",
            hint="Credentials are read from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, never from a setting.",
        )
    prefix = prefix.strip("/")
    if scheme != "s3" or not bucket or (prefix and not _is_prefix(prefix)):
        raise SettingsError(
            f"store = {url!r} does not name a bucket", hint="Write it as s3://bucket/prefix.", asked=url
        )
    return bucket, prefix


def _is_prefix(prefix: str) -> bool:
    try:
        checked_name(prefix)
    except StoreError:
        return False
    return True


def _is_loopback(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _short(error: BaseException) -> str:
    """The first line of what the library says, without what it says of itself."""
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__


def _free(directory: Path) -> int:
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


def _full(directory: Path, size: int, free: int) -> StoreFullError:
    return StoreFullError(
        f"{directory} has {free / 1e9:.3g} GB free, and {size / 1e9:.3g} GB are needed on their way to the bucket",
        hint="Make room where the workspace is.",
        needed=size,
        free=free,
        path=str(directory),
    )


def _unspooled(directory: Path, error: OSError) -> StoreError:
    return StoreFullError(
        f"{directory} cannot take bytes on their way to the bucket: {error.strerror}",
        hint="Make room where the workspace is, or check its permissions.",
        path=str(directory),
    )
