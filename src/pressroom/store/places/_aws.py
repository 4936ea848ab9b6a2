"""Who asks for a bucket and where it is, from the environment and AWS's own files, as other AWS tools read them.

Keys: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN; else the profile AWS_PROFILE (or `default`) of
~/.aws/credentials and ~/.aws/config; else the role of the container or machine. Never from a setting or a URL.
"""

from __future__ import annotations

import configparser
import ipaddress
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pressroom.kernel.errors import SettingsError

if TYPE_CHECKING:
    from obstore.store import S3Credential

DEFAULT_REGION = "us-east-1"

_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
# With one of these the library asks for short-lived keys itself.
_ROLES = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_METADATA_ENDPOINT",
)
# Where a machine of Amazon's says which role it has.
_METADATA = ("169.254.169.254", 80)
_METADATA_WAIT_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """`key` and `secret` are empty where a role or nothing stands for them. Secrets are not in the repr."""

    region: str = DEFAULT_REGION
    endpoint: str = ""
    plain_http: bool = False
    key: str = ""
    secret: str = field(default="", repr=False)
    token: str = field(default="", repr=False)

    def as_credential(self) -> S3Credential:
        """The keys, which are valid for as long as the process runs."""
        return {
            "access_key_id": self.key,
            "secret_access_key": self.secret,
            "token": self.token or None,
            "expires_at": None,
        }


def account(environ: Mapping[str, str] | None = None) -> Account:
    """The account that the environment names.

    Raises:
        SettingsError: there is none, half of one, a profile that cannot be used, or an endpoint that must not be.
    """
    environ = os.environ if environ is None else environ
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    set_here = [name for name in keys if environ.get(name)]
    profile = _profile(environ, needed=len(set_here) < 2)
    if len(set_here) == 1:
        missing = next(name for name in keys if name not in set_here)
        raise SettingsError(
            f"{set_here[0]} is set and {missing} is not", hint="Set both, or neither to use a profile.", missing=missing
        )
    if set_here:
        key, secret, token = (environ.get(name, "") for name in (*keys, "AWS_SESSION_TOKEN"))
    else:
        key, secret, token = (
            profile.get(name, "") for name in ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
        )
        if not (key and secret):
            _check_for_role(environ)
    endpoint = next((environ[name] for name in _ENDPOINTS if environ.get(name)), profile.get("endpoint_url", ""))
    region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or profile.get("region")
    return Account(
        region=region or DEFAULT_REGION,
        endpoint=endpoint.rstrip("/"),
        plain_http=_may_be_plain(endpoint, environ),
        key=key,
        secret=secret,
        token=token,
    )


def _profile(environ: Mapping[str, str], *, needed: bool) -> dict[str, str]:
    """What AWS's files say of the profile; where one is named and `needed`, it must have keys."""
    name = environ.get("AWS_PROFILE") or environ.get("AWS_DEFAULT_PROFILE") or "default"
    named = name != "default"
    home = Path(environ.get("HOME") or "~").expanduser() / ".aws"
    config = Path(environ.get("AWS_CONFIG_FILE") or home / "config").expanduser()
    credentials = Path(environ.get("AWS_SHARED_CREDENTIALS_FILE") or home / "credentials").expanduser()
    found = _section(config, f"profile {name}" if named else name) | _section(credentials, name)
    if named and needed and not (found.get("aws_access_key_id") and found.get("aws_secret_access_key")):
        raise SettingsError(
            f"the AWS profile {name!r} has no aws_access_key_id and aws_secret_access_key in {credentials} or {config}",
            hint="Add them there, or hand over short-lived ones: "
            'eval "$(aws configure export-credentials --format env)".',
            profile=name,
        )
    return found


def _section(path: Path, name: str) -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        with path.open(encoding="utf-8") as file:
            parser.read_file(file)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        # The parser's words quote the line, and the line may hold a secret.
        why = error.strerror if isinstance(error, OSError) else "it is not an INI file"
        raise SettingsError(f"{path} cannot be read: {why}", hint="Mend it, or remove it.", path=str(path)) from None
    return dict(parser[name]) if parser.has_section(name) or name == parser.default_section else {}


def _check_for_role(environ: Mapping[str, str]) -> None:
    """Without this a laptop without keys would wait for minutes for an address that only Amazon's machines have."""
    if any(environ.get(name) for name in _ROLES) or environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("true", "1"):
        return
    if environ.get("AWS_EC2_METADATA_DISABLED", "").lower() != "true":
        try:
            socket.create_connection(_METADATA, timeout=_METADATA_WAIT_S).close()
            return
        except OSError:
            pass  # not a machine of Amazon's: said below
    raise SettingsError(
        "no credentials for the bucket were found, and this machine has no role",
        hint="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; `AWS_SKIP_SIGNATURE=true` reads public "
        "buckets without.",
    )


def _may_be_plain(endpoint: str, environ: Mapping[str, str]) -> bool:
    """Whether the endpoint is asked without TLS, which only this machine may be."""
    if not endpoint:
        return False
    try:
        parts = urlsplit(endpoint)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        parts, host = urlsplit(""), ""
    if parts.username is not None or parts.password is not None or "@" in endpoint:
        raise SettingsError(
            "AWS_ENDPOINT_URL holds a user name or password",  # and is not quoted
            hint="Credentials are read from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS's files.",
        )
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise SettingsError(
            f"AWS_ENDPOINT_URL={endpoint!r} is not the address of a server", hint="Write it as https://host:port."
        )
    if parts.scheme == "https":
        return False
    if not _is_loopback(host) and environ.get("AWS_ALLOW_HTTP", "").lower() not in ("true", "1"):
        raise SettingsError(
            f"AWS_ENDPOINT_URL={endpoint!r} would send models to {host} without encryption",
            hint="Use https://. Only this machine itself is asked over http://, unless AWS_ALLOW_HTTP=true.",
            host=host,
        )
    return True


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
