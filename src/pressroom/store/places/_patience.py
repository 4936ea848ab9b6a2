"""How long a bucket is waited for, and what is tried again.

The library repeats single requests after 5xx, 429 and broken connections. It does not where an answer to a conditional
put is late, a list breaks off, or the beginning of an upload is refused; here the whole step is tried again for all of
these, with growing and random pauses, until `total_s` is over.
"""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from obstore import exceptions

from pressroom.kernel.errors import StoreError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

_log = logging.getLogger(__name__)

T = TypeVar("T")

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z0-9_.-]{1,80})</Code>")
# Client errors that another try may mend: too slow, in each other's way, too many.
_MENDABLE = (408, 409, 425, 429)
_FINAL_5XX = (501, 507)
_FINAL = (
    exceptions.PermissionDeniedError,
    exceptions.UnauthenticatedError,
    exceptions.InvalidPathError,
    exceptions.NotSupportedError,
    exceptions.UnknownConfigurationKeyError,
)


class AgainError(Exception):
    """What came is not what was asked for, and may be at the next try."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """One request may take `request_s` seconds; no new try begins after `total_s`.

    A part of 5 MiB beside another one comes through in `request_s` at 90 kB/s.
    """

    request_s: float = 120.0
    connect_s: float = 10.0
    total_s: float = 90.0
    first_pause_s: float = 0.1
    longest_pause_s: float = 5.0
    retries: int = 8


class Patient:
    """Tries again. `where` names the place in messages."""

    def __init__(self, where: str, patience: Patience) -> None:
        self._where = where
        self._patience = patience

    def until(self, step: Callable[[], T], name: str) -> T:
        """What the step returns, at the first try that succeeds.

        Raises:
            FileNotFoundError: the bucket says that there is no such piece, or no such bucket.
            StoreError: it refuses, or fails for longer than it is worth waiting for.
        """
        patience = self._patience
        deadline = time.monotonic() + patience.total_s
        pause = patience.first_pause_s
        tries = 1
        while True:
            try:
                return step()
            except FileNotFoundError:
                raise
            except (exceptions.BaseError, AgainError, OSError) as error:
                if "<Code>NoSuchBucket</Code>" in str(error):
                    raise FileNotFoundError(self._where) from error
                pause = min(pause, patience.longest_pause_s)
                pause *= random.uniform(0.5, 1.5)  # noqa: S311  so that many clients do not come back together
                if _is_final(error) or time.monotonic() + pause >= deadline:
                    raise self._failed(error, name, tries) from error
                _log.info("%s: try %d of %s failed: %s", self._where, tries, name, short(error))
                time.sleep(pause)
                pause *= 2
                tries += 1

    def client_options(self, *, plain_http: bool, kept: bool) -> ClientConfig:
        """`kept`: connections are used again."""
        options: ClientConfig = {
            "timeout": timedelta(seconds=self._patience.request_s),
            "connect_timeout": timedelta(seconds=self._patience.connect_s),
            "allow_http": plain_http,
        }
        if not kept:
            options["pool_max_idle_per_host"] = "0"
        return options

    def retry_config(self) -> RetryConfig:
        return {
            "max_retries": self._patience.retries,
            "retry_timeout": timedelta(seconds=self._patience.total_s),
            "backoff": {
                "init_backoff": timedelta(seconds=self._patience.first_pause_s),
                "max_backoff": timedelta(seconds=self._patience.longest_pause_s),
                "base": 2,
            },
        }

    def _failed(self, error: BaseException, name: str, tries: int) -> StoreError:
        said = short(error)
        if status_of(error) in (401, 403) or "<Code>ExpiredToken</Code>" in str(error):
            return StoreError(
                f"{self._where} refuses: {said}",
                hint="Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY or AWS_PROFILE, what they may do in this bucket, "
                "and this machine's clock.",
                name=name,
            )
        if _is_final(error):
            return StoreError(
                f"{self._where} cannot do what it was asked: {said}",
                hint="AWS_REGION and AWS_ENDPOINT_URL must be those of the bucket.",
                name=name,
            )
        return StoreError(
            f"{self._where} does not answer as it should, after {self._patience.total_s:g} s: {said}",
            hint="Try again later: nothing was lost or half-written. AWS_ENDPOINT_URL and AWS_REGION say where it is.",
            name=name,
            tries=tries,
        )


def status_of(error: BaseException | None) -> int | None:
    """The status of the HTTP answer that the error is about, where there was one."""
    found = _STATUS.search(str(error)) if isinstance(error, exceptions.BaseError | OSError) else None
    return int(found[1]) if found else None


def short(error: BaseException) -> str:
    """What happened, in a few words: the library's own run over pages, and quote what the server said."""
    text = str(error).partition("\n\nDebug source:")[0]
    status, code = status_of(error), _CODE.search(text)
    if status is not None:
        return f"it answered {status}" + (f" ({code[1]})" if code else "")
    return (text.rpartition(" - ")[2].strip().splitlines() or [type(error).__name__])[0][:200]


def _is_final(error: BaseException) -> bool:
    # The second: what the library makes of Amazon's 301, which says that the bucket is in another region.
    if isinstance(error, _FINAL) or "redirect without LOCATION" in str(error):
        return True
    status = status_of(error)
    return status is not None and ((300 <= status < 500 and status not in _MENDABLE) or status in _FINAL_5XX)
