"""The place in a bucket: `s3://bucket/prefix`, of Amazon or of any server that speaks its protocol.

A piece's name is known only when it is whole, so larger ones are written to an unnamed local file first and then sent
in parts; the bucket shows it when the last part is in. See `_aws` for where credentials come from, and `_uploads` for
what a killed writer leaves.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import obstore
from obstore import exceptions
from obstore.store import S3Store

from pressroom.kernel.errors import NotFoundError, SettingsError, StoreError, StoreFullError
from pressroom.kernel.workspace import DIRECTORY
from pressroom.store.places._aws import account
from pressroom.store.places._patience import AgainError, Patience, Patient, status_of
from pressroom.store.places._spool import Data, Spool
from pressroom.store.places._uploads import Uploads
from pressroom.store.places.base import Place, Writer, checked_name

# The least a part may have. Two on their way and one that is read make 15 MiB, whatever the piece has.
_PART = 5 << 20
_PARTS_AT_ONCE = 2
_MOST_PARTS = 10_000
# Requests for more than this gain nothing from being longer; so many at once hide the round trips of each.
_RANGE = 4 << 20
_RANGES_AT_ONCE = 8
_MOST_KNOWN = 100_000
_FULL_STATUS = 507


class Backend(Place):
    def __init__(self, url: str, *, root: Path, patience: Patience | None = None) -> None:
        self._bucket, prefix = _parsed(url)
        self.url = f"s3://{self._bucket}/{prefix}".rstrip("/")
        self._root = root
        self._patient = Patient(self.url, Patience() if patience is None else patience)
        found = account()
        options: dict[str, Any] = {"region": found.region, "disable_bulk_delete": True}
        if found.endpoint:
            options["endpoint"] = found.endpoint
        # Handed over this way they go before whatever else the library finds: a session token that was left in the
        # environment does not get beside keys of a file.
        keys = None if not found.key else lambda: found.as_credential()

        def made(*, kept: bool) -> S3Store:
            return S3Store(
                self._bucket,
                prefix=prefix or None,
                config=options,  # type: ignore[arg-type]  # a TypedDict that is made from what is set
                client_options=self._patient.client_options(plain_http=found.plain_http, kept=kept),
                retry_config=self._patient.retry_config(),
                credential_provider=keys,
            )

        try:
            # Where an answer decides what is kept, each request has a connection of its own: on one that is used again,
            # an answer that comes twice would be taken for the next one. Ranges say what they are.
            self._store = made(kept=False)
            self._ranges = made(kept=True)
        except exceptions.BaseError as error:
            raise SettingsError(
                f"the bucket {self.url} cannot be used: {str(error).splitlines()[0]}",
                hint="Check AWS_REGION, AWS_ENDPOINT_URL and the other AWS_ variables.",
            ) from error
        self._uploads = Uploads(found, self._bucket, prefix, root / DIRECTORY / "uploads")
        self._uploads.sweep()
        # Pieces that were there when last looked at: they do not change, so `local` need not ask for each again.
        self._known: set[str] = set()
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._conditional = True

    @contextmanager
    def write(self, *, size: int | None = None) -> Iterator[Writer]:
        with Spool(self._root, self._send, in_memory=_PART) as spool:
            if size is not None:
                spool.make_room(size)
            yield spool

    def read(self, name: str, offset: int, length: int) -> bytes:
        return bytes(self._fetched(checked_name(name), offset, length))

    def read_into(self, name: str, offset: int, out: memoryview) -> None:
        checked_name(name)

        def fetch(start: int) -> None:
            end = min(len(out), start + _RANGE)
            out[start:end] = memoryview(self._fetched(name, offset + start, end - start))

        starts = range(0, len(out), _RANGE)
        if len(starts) < 2:
            fetch(0)
            return
        pool = self._threads()
        running = [pool.submit(fetch, start) for start in starts]
        try:
            for one in running:
                one.result()
        finally:
            # The buffer is the caller's again once this returns: nobody may write to it any more.
            for one in running:
                one.cancel()
            wait(running)

    def local(self, name: str) -> Path | None:
        if checked_name(name) not in self._known and self.size(name) is None:
            raise self._gone(name)
        return None

    def size(self, name: str) -> int | None:
        key = checked_name(name)
        try:
            size = int(self._patient.until(lambda: obstore.head(self._store, key), name)["size"])
        except FileNotFoundError:
            self._forget(name)
            return None
        self._remember(name)
        return size

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        if prefix:
            checked_name(prefix.removesuffix("/"))
        # The library lists whole folders; what is asked for may begin inside a name.
        folder = prefix.rpartition("/")[0] or None
        pages: Any = None
        last: str | None = None

        def page() -> Any:
            nonlocal pages
            if pages is None:
                pages = obstore.list(self._store, folder, offset=last)
            try:
                return next(pages, None)
            except exceptions.BaseError:
                pages = None  # begins again behind what was there already
                raise

        try:
            while (found := self._patient.until(page, prefix)) is not None:
                for entry in found:
                    last = max(last or "", entry["path"])
                    if entry["path"].startswith(prefix) and _is_name(entry["path"]):
                        yield entry["path"], int(entry["size"])
        except FileNotFoundError as error:
            raise self._no_bucket() from error

    def delete(self, name: str) -> bool:
        there = self.size(name) is not None
        if there:
            # Not found: somebody else was faster, or an answer was lost; it is gone.
            with suppress(FileNotFoundError):
                self._patient.until(lambda: obstore.delete(self._store, name), name)
            self._forget(name)
        return there

    def close(self) -> None:
        """Ends its threads; the library closes its connections when it is let go."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()

    def _fetched(self, name: str, offset: int, length: int) -> Any:
        def ask() -> Any:
            found = obstore.get_range(self._ranges, name, start=offset, length=length)
            if len(found) != length:
                check_size()
                raise AgainError(f"{len(found)} bytes came, and {length} were asked for")
            return found

        def check_size() -> None:
            size = self.size(name)
            if size is None:
                raise FileNotFoundError(name)
            if size < offset + length:
                raise StoreError(
                    f"{name} in {self.url} has {size} bytes, and {length} from {offset} on are asked for",
                    hint="The bucket was altered. `press verify` names what is affected.",
                    name=name,
                )

        try:
            if not length:
                check_size()
                return b""
            try:
                found = self._patient.until(ask, name)
            except StoreError as error:
                if status_of(error.__cause__) == 416:  # the range begins behind the end
                    check_size()
                raise
        except FileNotFoundError as error:
            self._forget(name)
            raise self._gone(name) from error
        self._remember(name)
        return found

    def _send(self, name: str, data: Data, size: int) -> None:
        key = checked_name(name)
        try:
            if isinstance(data, bytes | bytearray):
                self._patient.until(lambda: self._put(key, bytes(data)), name)
            elif self.size(name) is None:
                # A name that is taken keeps its bytes. Who comes to this line at once with another brings equal bytes
                # under equal names, and the bucket shows the one or the other, each whole.
                self._patient.until(lambda: self._put_parts(key, data, size), name)
        except FileNotFoundError as error:
            raise self._no_bucket() from error
        except StoreError as error:
            if status_of(error.__cause__) == _FULL_STATUS:
                raise StoreFullError(f"{self.url} is full", hint="Make room there.", needed=size, name=name) from error
            raise
        self._remember(name)

    def _put(self, key: str, data: bytes) -> None:
        mode: Any = "create" if self._conditional else "overwrite"
        try:
            if self._conditional or self.size(key) is None:
                obstore.put(self._store, key, data, mode=mode, use_multipart=False)
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as error:
            # Also where our own first try had come through and its answer was lost. Servers say the same while another
            # one is putting it, who may yet fail: then nothing is there.
            if self.size(key) is None:
                raise AgainError("another put of the same name is under way") from error
        except exceptions.BaseError as error:
            if not self._conditional or (status_of(error) != 501 and "<Code>NotImplemented</Code>" not in str(error)):
                raise
            self._conditional = False  # a server that does not know `If-None-Match`
            raise AgainError("the server takes no conditions") from error

    def _put_parts(self, key: str, file: IO[bytes], size: int) -> None:
        file.seek(0)
        part = max(_PART, -(-size // _MOST_PARTS))
        try:
            with self._uploads.running(key):
                obstore.put(
                    self._store,
                    key,
                    file,
                    chunk_size=part,
                    max_concurrency=_PARTS_AT_ONCE if part == _PART else 1,
                    use_multipart=True,
                )
        except (exceptions.BaseError, FileNotFoundError) as error:
            if self.size(key) == size:
                return  # the last answer was lost: it is there
            if isinstance(error, FileNotFoundError) and "NoSuchUpload" in str(error):
                raise AgainError("the bucket dropped the upload") from error
            raise
        if (found := self.size(key)) != size:
            raise StoreError(
                f"{self.url} took {key} with {size} bytes and has {found}",
                hint="Something else writes there, or the server keeps no promises: use another prefix or bucket.",
                name=key,
            )

    def _threads(self) -> ThreadPoolExecutor:
        # One pool for all: however many threads read, no more than this is on its way.
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(_RANGES_AT_ONCE, thread_name_prefix="pressroom-s3")
            return self._pool

    def _remember(self, name: str) -> None:
        with self._lock:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known.add(name)

    def _forget(self, name: str) -> None:
        with self._lock:
            self._known.discard(name)

    def _gone(self, name: str) -> NotFoundError:
        return NotFoundError(
            f"the store does not hold {name.rpartition('/')[2]}",
            hint="Pull the model that it belongs to again.",
            asked=name,
        )

    def _no_bucket(self) -> StoreError:
        return StoreError(
            f"there is no bucket {self._bucket}",
            hint="Make it, or correct the setting `store`; AWS_REGION and AWS_ENDPOINT_URL say where it is looked for.",
            bucket=self._bucket,
        )


def _parsed(url: str) -> tuple[str, str]:
    """Bucket and prefix."""
    scheme, _, rest = url.partition("://")
    bucket, _, prefix = rest.partition("/")
    if any(sign in rest for sign in "@:?"):  # the text is not quoted: what is there may be a secret
        raise SettingsError(
            "the setting `store` holds more than s3://bucket/prefix",
            hint="Credentials are read from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS's files, never from a "
            "setting; AWS_ENDPOINT_URL says which server is asked.",
        )
    prefix = prefix.removesuffix("/")
    if scheme != "s3" or not bucket or not _is_name(bucket) or (prefix and not _is_name(prefix)):
        raise SettingsError(
            f"store = {url!r} does not name a bucket",
            hint="Write it as s3://bucket/prefix, with letters, digits, '.', '_', '-' and '/'.",
            asked=url,
        )
    return bucket, prefix


def _is_name(text: str) -> bool:
    try:
        checked_name(text)
    except StoreError:
        return False
    return True
