"""Where a version's price is from: its deployment, what people set, what vendors publish."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from pressroom.cost import PICO_A_TOKEN, Price, PriceError, Prices, names_of_version, what_to_do
from pressroom.cost import today as now
from pressroom.kernel import Workspace
from pressroom.registry.pulling import pull

OPENAI = {"format": "remote", "header": {"protocol": "openai", "url": "https://api.openai.com/v1", "model": "gpt-4o"}}
OWN = {"format": "gguf", "architecture": "llama"}


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    with Workspace.open(tmp_path) as opened:
        yield opened


@pytest.fixture
def prices(workspace: Workspace) -> Prices:
    return Prices(workspace)


def at(url: str, model: str = "gpt-4o") -> dict[str, Any]:
    return {"format": "remote", "header": {"protocol": "openai", "url": url, "model": model}}


def usd(price: Price | None) -> tuple[float, float]:
    assert price is not None
    return price.prompt / PICO_A_TOKEN, price.completion / PICO_A_TOKEN


def test_published_prices_of_a_day(prices: Prices) -> None:
    price = prices.of(OPENAI, day=date(2026, 10, 1))
    assert usd(price) == (2.5, 10.0)
    assert price is not None and price.cached == 1_250_000 and price.request_nano == 0
    assert price.source.startswith("genai-prices ") and price.source.endswith(": openai/gpt-4o")
    assert usd(prices.find("openai/gpt-4o", day=date(2026, 10, 1))) == (2.5, 10.0)
    assert usd(prices.of(at("https://api.openai.com/v1", "gpt-4o-mini"))) == (0.15, 0.6)
    assert usd(prices.of(at("https://api.anthropic.com/v1", "claude-3-5-haiku-latest"))) == (0.8, 4.0)
    assert usd(prices.of(at("https://api.groq.com/openai/v1", "llama-3.3-70b-versatile"))) == (0.59, 0.79)


def test_a_published_price_that_was_changed_holds_from_its_day(prices: Prices) -> None:
    model = "openrouter/meta-llama/llama-3.3-70b-instruct"
    before, after = (prices.find(model, day=date(2026, 11, day)) for day in (2, 3))
    assert usd(before) == (0.1, 0.32) and usd(after) == (0.45, 0.9)
    assert before is not None and before.since == "2026-10-19"
    assert after is not None and after.since == "2026-11-03"


def test_what_was_pulled_from_a_vendor_has_its_price(workspace: Workspace, prices: Prices) -> None:
    version = pull(workspace, "openai:gpt-4o", name="big")
    assert version.metadata == OPENAI and usd(prices.of(version.metadata)) == (2.5, 10.0)


def test_steps_for_long_prompts_and_dearer_hours_and_fees(prices: Prices) -> None:
    long = prices.find("google/gemini-2.5-pro")
    assert long is not None and usd(long) == (1.25, 10.0)
    assert [(tier.above, tier.prompt, tier.completion) for tier in long.tiers] == [(200_000, 2_500_000, 15_000_000)]
    assert long.nano(prompt=200_000, completion=0) == 250_000_000
    assert long.nano(prompt=200_001, completion=0) == 500_002_500
    # Half the price at night: what is set aside must be enough by day.
    assert usd(prices.find("deepseek/deepseek-chat")) == (0.27, 1.1)
    searching = prices.find("perplexity/sonar-pro")
    assert searching is not None and searching.request_nano == 14_000_000
    priority = prices.find("openai/gpt-4o", day=date(2026, 11, 1))
    assert priority is not None and usd(priority.at_service("priority")) == (4.25, 17.0)


def test_nobody_knows(prices: Prices) -> None:
    assert prices.of(at("https://llm.example.org/v1")) is None
    assert prices.of(at("https://api.openai.com/v1", "not-one-of-theirs")) is None
    # A host that only begins like a vendor's is not the vendor's.
    assert prices.of(at("https://api.openai.com.example.org/v1")) is None
    assert prices.of(at("http://127.0.0.1:8000/v1")) is None
    assert "press cost price set llm.example.org/gpt-4o" in what_to_do(at("https://llm.example.org/v1"))
    assert "VENDOR/" in what_to_do({"format": "remote"}) and prices.of({"format": "remote", "header": None}) is None
    # Not paid by the token.
    assert prices.find("openai/tts-1") is None


def test_ones_own_is_free_unless_it_is_charged_for(prices: Prices) -> None:
    free = prices.of(OWN, name="smollm2")
    assert free is not None and free.free
    prices.set("own/smollm2", Price.parse({"prompt": "0.01", "completion": "0.02"}))
    assert usd(prices.of(OWN, name="smollm2")) == (0.01, 0.02)
    assert prices.of(OWN, name="other") == free
    prices.set("own/*", Price.parse({"prompt": 1, "completion": 1}))
    assert usd(prices.of(OWN, name="other")) == (1.0, 1.0) and usd(prices.of(OWN, name="smollm2")) == (0.01, 0.02)


def test_the_deployment_then_people_then_the_vendor(prices: Prices) -> None:
    prices.set("openai/gpt-4o", Price.parse({"prompt": 2, "completion": 8}))
    assert usd(prices.of(OPENAI)) == (2.0, 8.0)
    assert usd(prices.of(OPENAI, {"prompt": 1, "completion": 4})) == (1.0, 4.0)
    assert usd(prices.of(OWN, {"prompt": 1, "completion": 4})) == (1.0, 4.0)
    prices.unset("openai/gpt-4o")
    assert usd(prices.of(OPENAI)) == (2.5, 10.0)
    with pytest.raises(PriceError):
        prices.of(OPENAI, {"prompt": 1})


def test_history_by_day(prices: Prices) -> None:
    first, second = date(2026, 1, 1), date(2026, 6, 1)
    prices.set("openai/gpt-4o", Price.parse({"prompt": 2, "completion": 2}), since=second)
    prices.set("openai/gpt-4o", Price.parse({"prompt": 1, "completion": 1}), since=first)
    assert usd(prices.of(OPENAI, day=first - timedelta(days=1))) == (2.5, 10.0)
    assert usd(prices.of(OPENAI, day=first)) == (1.0, 1.0)
    assert usd(prices.of(OPENAI, day=second - timedelta(days=1))) == (1.0, 1.0)
    assert usd(prices.of(OPENAI, day=second)) == (2.0, 2.0)
    # The last word on a day counts, and nothing that was said before is lost.
    prices.set("openai/gpt-4o", Price.parse({"prompt": 3, "completion": 3}), since=second)
    assert usd(prices.of(OPENAI, day=second)) == (3.0, 3.0)
    prices.unset("openai/gpt-4o", since=date(2026, 7, 1))
    assert usd(prices.of(OPENAI, day=date(2026, 6, 30))) == (3.0, 3.0)
    assert usd(prices.of(OPENAI, day=date(2026, 7, 1))) == (2.5, 10.0)
    assert [one.since.month for one in prices.history()] == [6, 1, 6, 7]
    assert prices.history()[-1].price is None
    future = now() + timedelta(days=1)
    prices.set("openai/gpt-4o", Price.parse({"prompt": 9, "completion": 9}), since=future)
    assert usd(prices.of(OPENAI)) == (2.5, 10.0) and usd(prices.of(OPENAI, day=future)) == (9.0, 9.0)


def test_a_vendor_goes_by_its_names(prices: Prices) -> None:
    prices.set("127.0.0.1:9999/*", Price.parse({"prompt": 1, "completion": 1}))
    prices.set("127.0.0.1/gpt-4o", Price.parse({"prompt": 2, "completion": 2}))
    assert usd(prices.of(at("http://127.0.0.1:9999/v1"))) == (2.0, 2.0)
    assert usd(prices.of(at("http://127.0.0.1:9999/v1", "other"))) == (1.0, 1.0)
    assert prices.of(at("http://127.0.0.1:9998/v1", "other")) is None
    prices.set("groq/llama", Price.parse({"prompt": 3, "completion": 3}))
    assert usd(prices.of(at("https://api.groq.com/openai/v1", "Llama"))) == (3.0, 3.0)
    prices.set("api.openai.com/new", Price.parse({"prompt": 4, "completion": 4}))
    assert usd(prices.find("OpenAI/NEW")) == (4.0, 4.0)
    assert names_of_version(at("https://api.openai.com:443/v1", "GPT-4o")) == (
        "api.openai.com:443/gpt-4o", "api.openai.com/gpt-4o", "openai/gpt-4o",
    )  # fmt: skip
    assert names_of_version(at("https://api.groq.com/openai/v1", "x")) == ("api.groq.com/x", "groq/x")
    assert names_of_version(OWN) == ()


@pytest.mark.parametrize(
    "asked", ["", "gpt-4o", "/gpt-4o", "openai/", "open ai/x", "a/b c", "a\n/b", "x" * 300 + "/y", "é/x"]
)
def test_what_names_no_model_is_refused(prices: Prices, asked: str) -> None:
    for ask in (prices.find, prices.unset, lambda name: prices.set(name, Price())):
        with pytest.raises(PriceError) as caught:
            ask(asked)
        assert "VENDOR/MODEL" in caught.value.hint
    assert prices.state()[0] == 0


def test_steps_are_published_and_not_set(prices: Prices) -> None:
    long = prices.find("google/gemini-2.5-pro")
    assert long is not None
    with pytest.raises(PriceError, match="steps"):
        prices.set("google/gemini-2.5-pro", long)


def test_state_says_when_to_ask_again(workspace: Workspace, prices: Prices) -> None:
    before = prices.state()
    assert prices.state() == before and before[1] == now().isoformat()
    Prices(workspace).set("openai/gpt-4o", Price.parse({"prompt": 1, "completion": 1}))
    changed = prices.state()
    assert changed != before
    prices.unset("openai/gpt-4o")
    assert prices.state() not in (before, changed)


def test_many_set_prices_at_once(workspace: Workspace) -> None:
    def set_some(number: int) -> None:
        mine = Prices(workspace)
        for price in range(5):
            mine.set(f"vendor{number}/m", Price(prompt=price))

    threads = [threading.Thread(target=set_some, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    prices = Prices(workspace)
    assert prices.state()[0] == len(prices.history()) == 20
    assert all(
        prices.find(f"vendor{number}/m") == Price(prompt=4, source="set", since=now().isoformat())
        for number in range(4)
    )


def test_what_is_known_is_listed_once(prices: Prices) -> None:
    prices.set("openai/gpt-4o", Price.parse({"prompt": 2, "completion": 8}))
    prices.set("llm.example.org/mine", Price.parse({"prompt": 1, "completion": 1}))
    prices.set("llm.example.org/gone", Price.parse({"prompt": 1, "completion": 1}))
    prices.unset("llm.example.org/gone")
    listed = list(prices.known())
    names = [f"{one.vendor}/{one.model}" for one in listed]
    assert names[:2] == ["openai/gpt-4o", "llm.example.org/mine"] and "llm.example.org/gone" not in names
    assert len(names) == len(set(names)) and len(names) > 1_000
    assert [f"{one.vendor}/{one.model}" for one in prices.known("EXAMPLE.org")] == ["llm.example.org/mine"]


def test_every_published_price_can_be_had_on_any_day(prices: Prices) -> None:
    for day in (date(2023, 1, 1), date(2025, 6, 1), now(), date(2030, 1, 1)):
        for one in prices.known(day=day):
            assert one.price.nano(prompt=1_000_000, completion=0) <= one.price.nano(prompt=2_000_000, completion=1_000)


def test_without_the_library_there_are_the_prices_that_were_set(tmp_path: Path) -> None:
    code = """
import importlib.metadata, json, sys
known = importlib.metadata.version
def version(name):
    if name == "genai-prices":
        raise importlib.metadata.PackageNotFoundError(name)
    return known(name)
importlib.metadata.version = version
from pressroom.cost import Price, Prices, what_to_do
from pressroom.kernel import Workspace
vendor = {"format": "remote", "header": {"url": "https://api.openai.com/v1", "model": "gpt-4o"}}
with Workspace.open() as workspace:
    prices = Prices(workspace)
    said = [prices.of(vendor) is None, what_to_do(vendor), len(list(prices.known()))]
    prices.set("openai/gpt-4o", Price.parse({"prompt": 1, "completion": 2}))
    said += [prices.of(vendor).completion, prices.find("openai/gpt-4o").prompt, "genai_prices" in sys.modules]
print(json.dumps(said))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    unknown, hint, listed, completion, prompt, loaded = json.loads(done.stdout)
    assert unknown and "pressroom[vendors]" in hint and listed == 0
    assert (completion, prompt, loaded) == (2_000_000, 1_000_000, False)


def test_the_library_is_loaded_for_vendors_only(tmp_path: Path) -> None:
    code = """
import sys
from pressroom.cost import Price, Prices
from pressroom.kernel import Workspace
with Workspace.open() as workspace:
    prices = Prices(workspace)
    prices.of({"format": "gguf"}, name="smollm2")
    prices.set("openai/gpt-4o", Price())
    prices.find("openai/gpt-4o")
    prices.state()
assert "genai_prices" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
