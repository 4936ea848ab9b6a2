"""Opening the gateway's address."""

from __future__ import annotations

import os
import socket

import pytest

from pressroom.gateway.binding import bind, url_of
from pressroom.kernel import DeployError, PortInUseError


def test_any_free_port() -> None:
    with bind("127.0.0.1", 0) as bound:
        assert url_of(bound) == f"http://127.0.0.1:{bound.getsockname()[1]}"


def test_a_port_in_use_names_its_holder_and_the_way_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(PortInUseError) as refused:
            bind("127.0.0.1", port)
    assert str(port) in refused.value.message and str(os.getpid()) in refused.value.message
    assert "--port" in refused.value.hint and "PRESSROOM_GATEWAY_PORT" in refused.value.hint
    assert refused.value.facts == {"host": "127.0.0.1", "port": port}


def test_a_port_can_be_used_again_at_once() -> None:
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            accepted, _ = first.accept()
            accepted.close()
            assert client.recv(1) == b""
    with bind("127.0.0.1", port) as again:
        assert again.getsockname()[1] == port


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host", "a" * 70 + ".example"])
def test_an_address_that_is_not_of_this_machine(host: str) -> None:
    with pytest.raises(DeployError) as refused:
        bind(host, 0)
    assert not isinstance(refused.value, PortInUseError)
    assert "gateway.host" in refused.value.hint


def test_the_url_of_every_address() -> None:
    with bind("0.0.0.0", 0) as bound:
        assert url_of(bound).startswith("http://127.0.0.1:")
    if socket.has_ipv6:
        try:
            with bind("::1", 0) as bound:
                assert url_of(bound).startswith("http://[::1]:")
        except DeployError:
            pytest.skip("no IPv6 on this machine")
