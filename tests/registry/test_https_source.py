"""Files from web servers: resumed after a cut, checked, and never from a place that was not asked for."""

from __future__ import annotations

import base64
import hashlib
import io
import shutil
import socket
import ssl
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pressroom.kernel import NetworkError, PressroomError, Progress, SourceError, UnsafeWeightsError, Workspace
from pressroom.registry import pull

from .servers import File, Site, site
from .test_path_source import nothing_kept
from .weights import gguf_bytes, pickle_bytes, safetensors_bytes

BIG = gguf_bytes(elements=1 << 16)


@pytest.fixture
def web() -> Iterator[Site]:
    with site() as running:
        yield running


def test_a_file(workspace: Workspace, web: Site) -> None:
    web.files["/models/Tiny.gguf"] = File(BIG)
    seen: list[Progress] = []
    workspace.events.subscribe(Progress, seen.append)
    version = pull(workspace, f"{web.url}/models/Tiny.gguf?download=true")
    assert (version.name, version.source) == ("tiny", f"{web.url}/models/Tiny.gguf")
    assert [f.path for f in version.files] == ["Tiny.gguf"]
    assert any(event.done == event.total == len(BIG) for event in seen)


def test_an_archive_and_a_file_in_it(workspace: Workspace, web: Site) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/m.gguf", gguf_bytes())
        archive.writestr("a/notes.md", "# Hi")
    web.files["/bundle.zip"] = File(buffer.getvalue())
    assert pull(workspace, f"{web.url}/bundle.zip").name == "bundle"
    notes = pull(workspace, f"{web.url}/bundle.zip#a/notes.md", as_data=True)
    assert notes.source == f"{web.url}/bundle.zip#a/notes.md"


def test_content_decides_what_a_file_is(workspace: Workspace, web: Site) -> None:
    web.files["/download"] = File(gguf_bytes())
    assert pull(workspace, f"{web.url}/download").metadata["format"] == "gguf"
    web.files["/m.gguf"] = File(pickle_bytes())
    with pytest.raises(UnsafeWeightsError):
        pull(workspace, f"{web.url}/m.gguf")
    web.files["/page.gguf"] = File(b"<!DOCTYPE html><html>log in</html>")
    with pytest.raises(SourceError, match="web page"):
        pull(workspace, f"{web.url}/page.gguf")


def test_a_cut_is_taken_up_again(workspace: Workspace, web: Site) -> None:
    web.files["/m.gguf"] = File(BIG, cuts=[1000, 50_000, 1])
    assert pull(workspace, f"{web.url}/m.gguf").size == len(BIG)
    assert [asked.partition("-")[0] for asked in web.ranges()] == [
        "bytes=0",
        "bytes=1000",
        "bytes=51000",
        "bytes=51001",
    ]
    assert web.sent == len(BIG)


def test_a_run_that_gave_up_is_taken_up_by_the_next(workspace: Workspace, web: Site) -> None:
    web.files["/m.gguf"] = File(BIG, cuts=[1000] + [0] * 50)
    with pytest.raises(NetworkError) as caught:
        pull(workspace, f"{web.url}/m.gguf")
    assert "goes on" in caught.value.hint
    web.files["/m.gguf"].cuts.clear()
    before = len(web.asked)
    assert pull(workspace, f"{web.url}/m.gguf").size == len(BIG)
    assert [headers.get("range") for _, _, headers in web.asked[before:]] == [f"bytes=1000-{len(BIG) - 1}"]
    assert web.sent == len(BIG)
    assert list(workspace.path("tmp").iterdir()) == []


@pytest.mark.parametrize("etag", ['"1"', None, 'W/"1"'])
def test_halves_of_two_files_are_not_put_together(workspace: Workspace, web: Site, etag: str | None) -> None:
    web.files["/m.gguf"] = File(gguf_bytes(seed=1, elements=1 << 16), cuts=[1000] + [0] * 50, etag=etag)
    with pytest.raises(NetworkError):
        pull(workspace, f"{web.url}/m.gguf")
    web.files["/m.gguf"] = File(BIG, etag=etag and etag.replace("1", "2"))
    digest = hashlib.sha256(BIG).hexdigest()
    assert pull(workspace, f"{web.url}/m.gguf#sha256={digest}").size == len(BIG)
    assert pull(workspace, f"{web.url}/m.gguf").number == 1


def test_servers_without_ranges_or_lengths(workspace: Workspace, web: Site) -> None:
    web.files["/m.gguf"] = File(BIG, ranges=False, cuts=[1000])
    assert pull(workspace, f"{web.url}/m.gguf").size == len(BIG)
    web.files["/n.gguf"] = File(gguf_bytes(seed=2), length=False)
    assert pull(workspace, f"{web.url}/n.gguf").number == 1


def test_declared_digests(workspace: Workspace, web: Site) -> None:
    web.files["/m.gguf"] = File(gguf_bytes())
    digest = hashlib.sha256(gguf_bytes()).hexdigest()
    first = pull(workspace, f"{web.url}/m.gguf#sha256={digest.upper()}")
    asked = len(web.asked)
    # The digest says which bytes are meant: those are here.
    assert pull(workspace, f"{web.url}/m.gguf#sha256={digest.upper()}") == first
    assert len(web.asked) == asked
    with pytest.raises(PressroomError, match="SHA-256"):
        pull(workspace, f"{web.url}/m.gguf#sha256={'0' * 64}", name="other")
    with pytest.raises(SourceError):
        pull(workspace, f"{web.url}/m.gguf#sha256=123", name="other")
    assert list(workspace.path("tmp").iterdir()) == []


def test_credentials_are_used_and_not_kept(workspace: Workspace, web: Site) -> None:
    web.files["/m.gguf"] = File(gguf_bytes())
    web.files["/gone.gguf"] = File(b"no", status=404)
    address = web.url.replace("http://", "http://me:p%40ss:word@")
    version = pull(workspace, f"{address}/m.gguf?signature=secret")
    sent = base64.b64encode(b"me:p@ss:word").decode()
    assert [headers.get("authorization") for _, _, headers in web.asked] == [f"Basic {sent}"]
    kept = "\n".join(p.read_text(errors="replace") for p in workspace.dir.rglob("*") if p.is_file())
    for secret in ("p%40ss", "p@ss", "signature=secret"):
        assert secret not in str(version) and secret not in kept
    with pytest.raises(SourceError) as caught:
        pull(workspace, f"{address}/gone.gguf?signature=secret")
    assert "ss:word" not in str(caught.value.as_dict()) and "signature" not in str(caught.value.as_dict())


def test_credentials_do_not_follow_a_redirect(workspace: Workspace, web: Site) -> None:
    with site({"/m.gguf": File(gguf_bytes())}) as other:
        web.files["/m.gguf"] = File(status=302, headers={"Location": f"{other.url}/m.gguf"})
        pull(workspace, web.url.replace("http://", "http://me:secret@") + "/m.gguf")
        assert all("authorization" not in headers for _, _, headers in other.asked)


@pytest.mark.parametrize("place", ["http://example.invalid/m.gguf", "file:///etc/passwd", "ftp://127.0.0.1/m.gguf"])
def test_redirects_to_an_open_line_are_refused(workspace: Workspace, web: Site, place: str) -> None:
    web.files["/m.gguf"] = File(status=302, headers={"Location": place})
    with pytest.raises(SourceError):
        pull(workspace, f"{web.url}/m.gguf")
    assert nothing_kept(workspace)


@pytest.mark.parametrize(
    "source",
    [
        "http://example.invalid/m.gguf",
        "https://",
        "https:///m.gguf",
        "https://[::1/m.gguf",
        "https://example.invalid:port/m.gguf",
        "https://user:secret@example.invalid:port/m.gguf",
        "https://exa mple.invalid/m.gguf",
        "https://example.invalid/a\nb",
    ],
)
def test_addresses_that_are_none(workspace: Workspace, source: str) -> None:
    with pytest.raises(SourceError) as caught:
        pull(workspace, source)
    assert caught.value.hint and "secret" not in str(caught.value.as_dict())
    assert nothing_kept(workspace)


def test_names_that_climb(workspace: Workspace, web: Site) -> None:
    for n, path in enumerate(("/a/..%2f..%2fm.gguf", "/a/%2e%2e", "/")):
        web.files[path] = File(safetensors_bytes(seed=n))
        version = pull(workspace, web.url + path, name=f"m{n}")
        assert "/" not in version.files[0].path and ".." not in version.files[0].path


def test_errors_of_the_server_and_no_server(workspace: Workspace, web: Site) -> None:
    for status in (401, 404, 500, 503):
        web.files["/m.gguf"] = File(b"no", status=status)
        with pytest.raises(SourceError, match=str(status)):
            pull(workspace, f"{web.url}/m.gguf")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(NetworkError):
            pull(workspace, f"http://127.0.0.1:{closed.getsockname()[1]}/m.gguf")
    assert nothing_kept(workspace)


def test_a_server_that_fails_in_between(workspace: Workspace, web: Site) -> None:
    """Part of the file, an error, then the rest: once something came, an error is waited out."""
    file = File(BIG, cuts=[1000])
    web.files["/m.gguf"] = file

    def fail_once(event: Progress) -> None:
        if event.done == 1000:
            file.status = 503
            threading.Timer(0.05, lambda: setattr(file, "status", 200)).start()

    workspace.events.subscribe(Progress, fail_once)
    assert pull(workspace, f"{web.url}/m.gguf").size == len(BIG)
    assert web.sent == len(BIG)


def test_a_failed_server_is_asked_again_by_the_next_run(workspace: Workspace, web: Site) -> None:
    web.files["/m.gguf"] = File(BIG, status=500)
    with pytest.raises(NetworkError, match="500"):
        pull(workspace, f"{web.url}/m.gguf")
    web.files["/m.gguf"].status = 200
    assert pull(workspace, f"{web.url}/m.gguf").size == len(BIG)


def test_lengths_that_are_not_true(workspace: Workspace, web: Site) -> None:
    web.files["/m.gguf"] = File(BIG, claims=len(BIG) + 10, ranges=False)
    with pytest.raises(NetworkError):
        pull(workspace, f"{web.url}/m.gguf")
    web.files["/n.gguf"] = File(BIG, claims=len(BIG) - 10, ranges=False)
    with pytest.raises(PressroomError, match="not usable as weights"):
        pull(workspace, f"{web.url}/n.gguf")
    # As much is room enough for nobody: said before a byte is written.
    web.files["/o.gguf"] = File(BIG, claims=1 << 60, ranges=False)
    with pytest.raises(PressroomError, match="no room"):
        pull(workspace, f"{web.url}/o.gguf")


def test_redirects_are_followed_to_their_end(workspace: Workspace, web: Site) -> None:
    web.files["/a.gguf"] = File(status=302, headers={"Location": "/b.gguf"})
    web.files["/b.gguf"] = File(gguf_bytes())
    assert pull(workspace, f"{web.url}/a.gguf").source == f"{web.url}/a.gguf"
    web.files["/round.gguf"] = File(status=302, headers={"Location": "/round.gguf"})
    with pytest.raises(SourceError) as caught:
        pull(workspace, f"{web.url}/round.gguf")
    assert "\n" not in caught.value.message


@pytest.fixture
def secure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server that is reached by https, under a name that is not one of this machine's for Pressroom."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl, which makes a certificate, is not installed")
    try:
        socket.create_server(("127.1", 0)).close()
    except OSError:
        pytest.skip("127.1 is not this machine here")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(certificate)]
    command += ["-days", "2", "-subj", "/CN=127.1", "-addext", "subjectAltName=DNS:127.1"]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with site(tls=context) as running:
        running.url = running.url.replace("http://127.0.0.1", "https://127.1")
        yield running


def test_https(workspace: Workspace, secure: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    secure.files["/m.gguf"] = File(BIG, cuts=[1000])
    assert pull(workspace, f"{secure.url}/m.gguf").size == len(BIG)
    assert secure.ranges()[1:] == [f"bytes=1000-{len(BIG) - 1}"] and secure.sent == len(BIG)
    # A certificate that nobody vouches for is refused.
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(NetworkError, match="certificate"):
        pull(workspace, f"{secure.url}/m.gguf")


def test_nobody_sends_us_to_this_machine(workspace: Workspace, secure: Site, web: Site) -> None:
    web.files["/admin"] = File(gguf_bytes())
    secure.files["/m.gguf"] = File(status=302, headers={"Location": f"{web.url}/admin"})
    with pytest.raises(SourceError, match="this machine"):
        pull(workspace, f"{secure.url}/m.gguf")
    assert web.asked == [] and nothing_kept(workspace)


def test_the_words_of_a_server_do_nothing_to_a_terminal(workspace: Workspace) -> None:
    answer = b"HTTP/1.1 404 gone\x1b[2J\x9b\r\nContent-Length: 0\r\n\r\n"
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(SourceError, match="404 gone") as caught:
            pull(workspace, f"http://127.0.0.1:{server.getsockname()[1]}/m.gguf")
        thread.join()
    assert caught.value.message.isprintable()
