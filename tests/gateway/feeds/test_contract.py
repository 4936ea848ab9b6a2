"""The contract on real brokers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pressroom.gateway.feeds import Address, parse_address
from pressroom.testing.feed_contract import FeedContract

from .servers import Kafka, Nats


class TestNats(FeedContract):
    scheme = "nats"
    bad_name = "two..dots"
    too_many = 1_100_000

    @pytest.fixture
    def fresh(self, nats_server: Nats) -> Callable[[], Address]:
        return lambda: parse_address(nats_server.fresh("contract"))


@pytest.mark.slow  # each group takes five seconds to form: the broker waits for more members
class TestKafka(FeedContract):
    scheme = "kafka"
    bad_name = "with/slash"
    ack_wait_s = 3.0

    @pytest.fixture
    def fresh(self, kafka_server: Kafka) -> Callable[[], Address]:
        return lambda: parse_address(kafka_server.fresh("contract"))
