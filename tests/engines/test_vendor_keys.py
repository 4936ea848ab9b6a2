"""Keys: where they come from, and that they are nowhere else. The engine is a process of its own here."""

from __future__ import annotations

import datetime
import http.client
import json
import os
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from pressroom.engines import Engine, EngineSpec, State, create
from pressroom.engines._vendor.connection import LineError, proxy_for
from pressroom.engines._vendor.keys import Key, KeyInFile, KeyProblem, from_environment
from pressroom.engines._vendor.options import OptionError, Options, read
from pressroom.engines._vendor.setting_up import key_for
from pressroom.kernel import EngineStartError, MissingDependencyError

from .test_vendor_faults import failing
from .test_vendor_openai import CHAT, USUAL, chat, streamed, whole
from .vendor_servers import Answer, ScriptedVendor, ask, description, events, get, katan, stream, until

KEY = "sk-test-0123456789abcdef"
Make = Callable[..., Engine]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Engine] = []

    def engine(url: str, protocol: str = "openai", **options: Any) -> Engine:
        model = description(tmp_path, protocol, url)
        made.append(create("vendor", EngineSpec(name="mine", model=model, log=tmp_path / "log", options=options)))
        return made[-1]

    yield engine
    for each in made:
        each.stop()


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text(KEY + "\n")
    path.chmod(0o600)
    return path


def told(engine: Engine) -> EngineStartError:
    with pytest.raises(EngineStartError) as caught:
        engine.start()
    return caught.value


def everything(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "key")


def test_the_key_is_nowhere_but_at_the_vendor(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the vendor says it back in every way it can, and where it is refused."""
    monkeypatch.setenv("MY_KEY", KEY)
    back = f"your key {KEY}, sent as Bearer {KEY}, is wrong"
    answers = [
        failing(401, back),
        failing(400, back, param=KEY, code=KEY),
        failing(404, back),
        failing(418, back),
        failing(429, back, code="insufficient_quota"),
        Answer(body={"error": {"message": back, "code": 400}}),
        Answer(body={"error": back}),
        Answer(body=whole(back)),
        Answer(body=whole(back)),
        Answer(stream=True, pieces=events(USUAL[1], {"error": {"message": back, "code": 400}})),
        streamed({**USUAL[1], "note": back}, USUAL[3]),
        Answer(status=301, headers={"Location": f"http://127.0.0.1:1/{KEY}"}, body=b""),
        Answer(body=KEY.encode()),
    ]
    said = []
    with ScriptedVendor(*answers) as vendor:
        engine = make(vendor.url, key_env="MY_KEY", retries=0, breaker_failures=0)
        endpoint = engine.start()
        for answer in answers:
            if answer.stream:
                said.append(json.dumps(stream(endpoint.url, CHAT, chat())))
            else:
                said.append(json.dumps(ask(endpoint.url, CHAT, chat())))
        said.append(json.dumps(get(endpoint.url, "/health")))
        arguments = Path(f"/proc/{endpoint.pid}/cmdline")
        said.append(arguments.read_text() if arguments.exists() else "")
        said.append(repr(endpoint))
    assert [asked.headers["authorization"] for asked in vendor.asked] == [f"Bearer {KEY}"] * len(answers)
    assert "[key]" in "".join(said) and KEY not in "".join(said)
    assert KEY.encode() not in everything(tmp_path)
    assert b"vendor_refused_key" in (tmp_path / "log").read_bytes()


@pytest.mark.slow
def test_a_vendor_that_repeats_both_keys_tells_nobody(make: Make, tmp_path: Path, key_file: Path) -> None:
    """llm-katan says which key it got and which it expects."""
    expected = "sk-expected-0123456789"
    with katan(tmp_path, "--validate-keys", "--api-keys", f"openai={expected},anthropic={expected}") as url:
        for protocol in ("openai", "anthropic"):
            endpoint = make(url, protocol, key_file=str(key_file)).start()
            status, answer, _ = ask(endpoint.url, CHAT, chat())
            assert status == 502 and answer["error"]["code"] == "vendor_refused_key"
            assert "sk-" not in json.dumps(answer)
            key_file.write_text(expected)
            status, answer, _ = ask(endpoint.url, CHAT, chat())
            assert status == 200, "the file is read again"
            key_file.write_text(KEY)


def test_a_missing_key_is_said_by_its_variable(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "MY_KEY"):
        monkeypatch.delenv(variable, raising=False)
    error = told(make("https://api.openai.com/v1"))
    assert "OPENAI_API_KEY" in error.message and "key_env" in error.hint
    assert "ANTHROPIC_API_KEY" in told(make("https://api.anthropic.com/v1", "anthropic")).message
    assert "MY_KEY" in told(make("https://api.openai.com/v1", key_env="MY_KEY")).message


def test_the_key_of_one_vendor_does_not_go_to_another(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    error = told(make("https://vendor.invalid/v1"))
    assert "vendor.invalid" in error.message and "key_env" in error.hint
    with ScriptedVendor(Answer(body=whole())) as vendor:
        assert ask(make(vendor.url).start().url, CHAT, chat())[0] == 200
    assert "authorization" not in vendor.asked[0].headers


@pytest.mark.parametrize("protocol", ["openai", "anthropic"])
def test_which_key_goes_where(protocol: str, monkeypatch: pytest.MonkeyPatch, key_file: Path) -> None:
    def key(url: str, **options: Any) -> str:
        for variable in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "OTHER"):
            monkeypatch.setenv(variable, f"key-in-{variable}")
        return key_for({"protocol": protocol, "url": url}, Options(**options)).current()

    own = f"https://api.{protocol}.com/v1"
    assert key(own) == f"key-in-{protocol.upper()}_API_KEY"
    assert key(own, key_env="OTHER") == key("https://else.invalid", key_env="OTHER") == "key-in-OTHER"
    assert key("https://else.invalid", key_file=str(key_file)) == KEY
    assert key(own, no_key=True) == key("https://else.invalid", no_key=True) == key("http://127.0.0.1:1") == ""
    with pytest.raises(KeyProblem, match=r"else\.invalid"):
        key("https://else.invalid")


@pytest.mark.parametrize(
    "options",
    [
        {"key": KEY},
        {"api_key": KEY},
        {"key_env": KEY},
        {"key_env": 7},
        {"no_key": KEY},
        {"retries": KEY},
        {"completions": KEY},
        {"key_env": "A", "key_file": "/b"},
        {"timeout_s": 0},
        {"timeout_s": 1e400},
    ],
)
def test_options_that_are_none(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError) as caught:
        read(options)
    assert KEY not in str(caught.value) + caught.value.hint
    assert next(iter(options)) in str(caught.value)


def test_options_that_cannot_be_used_are_said(make: Make) -> None:
    error = told(make("http://127.0.0.1:1/v1", key=KEY))
    assert "key_env" in error.hint and KEY not in error.message + error.hint + json.dumps(error.facts)
    assert "PEM" in told(make("http://127.0.0.1:1/v1", ca_file="/nowhere")).hint


def test_an_address_that_is_not_encrypted_is_refused(make: Make) -> None:
    error = told(make("http://vendor.invalid/v1", no_key=True))
    assert "not encrypted" in error.message and "allow_http" in error.hint
    assert make("http://vendor.invalid/v1", no_key=True, allow_http=True).start().port
    assert "completions" in told(make("http://127.0.0.1:1", "anthropic", completions="native")).message


# Files


def test_a_key_file_is_the_owners_alone(key_file: Path, make: Make) -> None:
    key_file.chmod(0o644)
    error = told(make("https://api.openai.com/v1", key_file=str(key_file)))
    assert "everybody" in error.message and "chmod 600" in error.hint
    key_file.chmod(0o640)
    assert KeyInFile(key_file).current() == KEY


@pytest.mark.parametrize("content", [b"", b"\n", b"two words", b"a\nb", b"\x00" * 9, "schlüssel".encode()])
def test_a_key_file_holds_one_key(key_file: Path, content: bytes) -> None:
    key_file.write_bytes(content)
    with pytest.raises(KeyProblem) as caught:
        KeyInFile(key_file)
    assert str(key_file) in str(caught.value)
    with pytest.raises(KeyProblem):
        KeyInFile(key_file.parent)
    with pytest.raises(KeyProblem):
        KeyInFile(key_file.with_name("missing"))


def test_a_key_file_is_read_again_when_it_changes(key_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = KeyInFile(key_file)
    new = key_file.with_name("new")
    new.write_text("sk-another-0123456789")
    new.chmod(0o600)
    new.replace(key_file)
    assert key.current() == "sk-another-0123456789"
    assert key.scrubbed(f"a {KEY} b sk-another-0123456789 c") == "a [key] b [key] c", "the one before is still one"
    # What is wrong with a replacement leaves the key from before, and is said once.
    key_file.chmod(0o644)
    assert key.current() == key.current() == "sk-another-0123456789"
    key_file.unlink()
    assert key.current() == key.current() == "sk-another-0123456789"
    assert len([record for record in caplog.records if "cannot be read again" in record.message]) == 2
    assert KEY not in caplog.text
    key_file.write_text(KEY)
    key_file.chmod(0o600)
    assert key.current() == KEY


def test_a_variable_is_read_once_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")
    assert from_environment("MY_KEY").current() == KEY
    assert "MY_KEY" not in os.environ
    for value in ("", " ", "two words", "a\tb", "schlüssel"):
        monkeypatch.setenv("MY_KEY", value)
        with pytest.raises(KeyProblem, match="MY_KEY"):
            from_environment("MY_KEY")


def test_what_looks_like_a_key_is_taken_out_of_texts() -> None:
    key = Key("my-own-secret/with+signs")
    said = key.scrubbed(
        "my-own-secret/with+signs my-own-secret%2Fwith%2Bsigns sk-proj-***********wxyz Bearer abc.def, sk-ill and skill"
    )
    assert said == "[key] [key] [key] [key], sk-ill and skill"
    assert key.without(b"say my-own-secret/with+signs") == b"say [key]"
    assert Key("EMPTY").scrubbed("EMPTY") == "EMPTY"


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that nobody signed but itself, with its key."""
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "vendor")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "vendor.pem"
    path.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


def test_tls_with_a_certificate_that_is_named(make: Make, certificate: Path, key_file: Path) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    with ScriptedVendor(Answer(body=whole()), streamed(*USUAL), tls=tls) as vendor:
        trusted = make(vendor.url, key_file=str(key_file), ca_file=str(certificate)).start()
        assert ask(trusted.url, CHAT, chat())[0] == 200
        assert stream(trusted.url, CHAT, chat())[-1] == "[DONE]"
        others = make(vendor.url, key_file=str(key_file)).start()
        status, answer, _ = ask(others.url, CHAT, chat())
        assert status == 502 and answer["error"]["code"] == "vendor_tls"
        until(lambda: len(vendor.asked) == 2)


# Proxies


def test_a_proxy_of_the_environment_is_used_and_its_password_not_said(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with ScriptedVendor(Answer(body=whole(), headers={"Connection": "close"})) as proxy:
        place = proxy.url.removeprefix("http://").removesuffix("/v1")
        monkeypatch.setenv("HTTP_PROXY", f"http://user:hunter2@{place}")
        endpoint = make("http://vendor.invalid/v1", no_key=True, allow_http=True, retries=0).start()
        assert ask(endpoint.url, CHAT, chat())[0] == 200
    (asked,) = proxy.asked
    assert asked.path == "http://vendor.invalid/v1/chat/completions" and "proxy-authorization" in asked.headers
    status, answer, _ = ask(endpoint.url, CHAT, chat())  # the proxy is gone now
    assert status == 503 and "proxy" in answer["error"]["message"]
    assert b"hunter2" not in everything(tmp_path) and "hunter2" not in json.dumps(answer)
    monkeypatch.setenv("NO_PROXY", "vendor.invalid")
    assert proxy_for("http://vendor.invalid/v1") is None
    assert proxy_for("http://other.invalid/v1") is not None
    assert proxy_for("http://127.0.0.1:1/v1") is None
    monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:1")
    with pytest.raises(LineError):
        proxy_for("https://other.invalid/v1")


# The engine


@pytest.mark.slow
def test_10_000_malformed_bodies(make: Make) -> None:
    random = Random(7)
    pieces = [
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b":",
        b",",
        b"null",
        b"1e999",
        b"\\ud800",
        b"messages",
        b"role",
        b"user",
        b"\xff",
    ]
    with ScriptedVendor(failing(400)) as vendor:
        engine = make(vendor.url)
        endpoint = engine.start()
        connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=60)
        before = 0
        for number in range(10_000):
            body = b"".join(random.choices(pieces, k=random.randrange(12)))
            path = random.choice((CHAT, "/v1/completions", "/v1/embeddings", "/nothing"))
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            assert 400 <= response.status < 500 and "error" in json.loads(response.read()), body
            if number == 1000:
                before = engine.health().memory_bytes
        connection.close()
        assert engine.health().memory_bytes - before < 16 << 20
        assert not vendor.asked
        # And what is no HTTP at all, or no end of it.
        for raw in (b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"POST / HTTP/1.1\r\nA: " + b"x" * 100_000):
            with socket.create_connection((endpoint.host, endpoint.port)) as client:
                client.sendall(raw + b"\r\n\r\n")
                assert b" 400 " in client.recv(100)
        big = b'{"messages": "' + b"x" * (65 << 20) + b'"}'
        assert ask(endpoint.url, CHAT, big)[0] == 413
        assert engine.health().state is State.READY


def test_a_missing_library_names_its_extra(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "aiohttp" else real(name, *a))
    with pytest.raises(MissingDependencyError) as caught:
        make("http://127.0.0.1:1/v1").start()
    assert "pip install 'pressroom[vendors]'" in caught.value.hint


def test_it_needs_a_description(tmp_path: Path) -> None:
    engine = create("vendor", EngineSpec(name="mine", log=tmp_path / "log"))
    assert "press pull" in told(engine).hint
