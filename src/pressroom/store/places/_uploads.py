"""Uploads in parts that were not finished: found and taken back, so that a bucket does not keep what nobody can see.

Each upload has a small locked file in the workspace while it runs. Who is killed leaves it unlocked, and the next one
to open the place asks the bucket to drop what was sent under that name. The library that does the uploading cannot
list uploads, so these two requests (ListMultipartUploads and AbortMultipartUpload) are signed here.
"""

from __future__ import annotations

import hashlib
import hmac
import html
import logging
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, urlsplit

from pressroom.kernel.errors import StoreError
from pressroom.store._temporary import left_over, paths, temporary
from pressroom.store.places._aws import Account

_log = logging.getLogger(__name__)

_EMPTY = hashlib.sha256(b"").hexdigest()
_UPLOAD = re.compile(r"<Upload>(.*?)</Upload>", re.DOTALL)
_MOST_ANSWER = 8 << 20
# Cleaning up must not keep anybody from opening the store.
_WAIT_S = 5.0


class Uploads:
    """The unfinished uploads of one place. `directory` is where their marks are; it is made when the first one runs."""

    def __init__(self, account: Account, bucket: str, prefix: str, directory: Path) -> None:
        self._account = account
        self._bucket = bucket
        self._prefix = prefix
        self._directory = directory
        # What a mark says before the name: marks of other buckets in the same workspace are not ours to clean.
        self._mine = f"{account.endpoint} {bucket} {prefix}\n"

    @contextmanager
    def running(self, name: str) -> Iterator[None]:
        """To be held while the piece is uploaded. Raises StoreError where the mark cannot be made."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            fd, path = temporary(self._directory)
        except OSError as error:
            raise self._unmarked(error) from error
        try:
            try:
                os.write(fd, f"{self._mine}{name}".encode())
            except OSError as error:
                path.unlink(missing_ok=True)
                raise self._unmarked(error) from error
            try:
                yield
            except Exception:
                # The library takes its upload back itself; where the bucket did not answer it could not.
                if self._dropped(name):
                    path.unlink(missing_ok=True)
                raise
            path.unlink(missing_ok=True)
        finally:
            os.close(fd)

    def sweep(self) -> None:
        """Take back what killed processes left. What the bucket does not let go now is tried at the next opening."""
        for path in paths(self._directory):
            try:
                with left_over(path) as fd:
                    said = "" if fd is None else os.pread(fd, 65_536, 0).decode()
                    if fd is None or (said and not said.startswith(self._mine)):
                        continue
                    # Nothing in it: its writer was killed before it began to upload.
                    if said and not self._dropped(said.removeprefix(self._mine)):
                        return
                    path.unlink(missing_ok=True)
            except OSError as error:
                _log.warning("%s is left over and cannot be removed: %s", path, error.strerror)

    def _unmarked(self, error: OSError) -> StoreError:
        return StoreError(
            f"{self._directory} cannot be written, and an upload is noted there first: {error.strerror or error}",
            hint="Make room where the workspace is, or check its permissions.",
            path=str(self._directory),
        )

    def _dropped(self, name: str) -> bool:
        """Whether no upload of the piece is left, as far as can be known."""
        if not self._account.key:
            _log.info("unfinished uploads of %s are left to the bucket's own rules: a role signs for it", name)
            return True
        key = f"{self._prefix}/{name}" if self._prefix else name
        try:
            found = self._ask("GET", "", {"uploads": "", "prefix": key})
            for upload in _UPLOAD.findall(found):
                if _value(upload, "Key") == key:
                    self._ask("DELETE", key, {"uploadId": _value(upload, "UploadId")})
        except (OSError, ValueError) as error:
            _log.warning("the unfinished upload of %s cannot be taken back now: %s", name, error)
            return False
        return True

    def _ask(self, method: str, key: str, query: dict[str, str]) -> str:
        account = self._account
        endpoint = account.endpoint or f"https://s3.{account.region}.amazonaws.com"
        base = urlsplit(endpoint)
        path = quote("/".join(part for part in (base.path.strip("/"), self._bucket, key) if part), safe="/-_.~")
        asked = "&".join(f"{quote(k, safe='-_.~')}={quote(v, safe='-_.~')}" for k, v in sorted(query.items()))
        headers = _signed(account, method, base.netloc, f"/{path}", asked, datetime.now(UTC))
        request = urllib.request.Request(  # noqa: S310  the scheme was checked where the endpoint was read
            f"{base.scheme}://{base.netloc}/{path}?{asked}", method=method, headers=headers
        )
        try:
            with urllib.request.urlopen(request, timeout=_WAIT_S) as answer:  # noqa: S310
                return bytes(answer.read(_MOST_ANSWER)).decode()
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 404:  # nothing of it is left
                return ""
            raise


def _signed(account: Account, method: str, host: str, path: str, query: str, now: datetime) -> dict[str, str]:
    """The headers of a request without a body, with AWS's signature version 4."""
    stamp = now.strftime("%Y%m%dT%H%M%SZ")
    headers = {"host": host, "x-amz-content-sha256": _EMPTY, "x-amz-date": stamp}
    if account.token:
        headers["x-amz-security-token"] = account.token
    names = ";".join(sorted(headers))
    listed = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
    whole = "\n".join([method, path, query, listed, names, _EMPTY])
    scope = f"{stamp[:8]}/{account.region}/s3/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(whole.encode()).hexdigest()])
    key = f"AWS4{account.secret}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={account.key}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    return headers


def _value(text: str, tag: str) -> str:
    found = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    if found is None:
        raise ValueError(f"the list of uploads has no {tag}")
    return html.unescape(found[1])
