"""`press cost` on a ledger that the ledger wrote."""

from __future__ import annotations

import json
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from pressroom.cli.cost import cost
from pressroom.cost import Powered, PriceError
from pressroom.deploy import Deployments, RouteWish
from pressroom.gateway.ledger import Counted, Row, open_ledger
from pressroom.kernel import NotFoundError, PressroomError, Workspace
from pressroom.registry import Registry
from pressroom.registry.base import Figure
from pressroom.registry.pulling import pull

NANO = 10**9
_SVG = "{http://www.w3.org/2000/svg}"
Asking = Callable[..., Result]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    """A vendor's model `mini` and one's own `chat`, at 200 tokens a second; and a server that ran for ten hours."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus.txt").write_text("words")
    with Workspace.open(tmp_path) as opened:
        mini = pull(opened, "openai:gpt-4o-mini", name="mini")
        # What stands for weights here; nothing reads them.
        own = pull(opened, str(tmp_path / "corpus.txt"), name="smollm2", as_data=True)
        Registry(opened).add_figures(
            "smollm2",
            [Figure(name="tokens_per_second_1", value=50.0), Figure(name="tokens_per_second_16", value=200.0)],
        )
        deployments = Deployments(opened)
        deployments.put("mini", ref="mini:1", digest=mini.digest, engine="vendor")
        deployments.put("chat", ref="smollm2:1", digest=own.digest, engine="llamacpp")
        now = time.time()
        clocks = [now - 36_000, 0.0]
        powered = Powered(opened, clock=lambda: clocks[0], running=lambda: clocks[1])
        powered.beat()
        clocks = [now, 36_000.0]
        powered.beat()
        yield opened


@pytest.fixture
def asking(workspace: Workspace) -> Asking:
    def ask(*arguments: str) -> Result:
        return CliRunner().invoke(cost, arguments)

    return ask


def fill(workspace: Workspace) -> None:
    """Ten requests of each deployment: a thousand tokens asked and a hundred answered."""
    digests = {version.name: version.digest for version in Registry(workspace).list()}
    ledger = open_ledger(workspace)
    ledger.start()
    for number in range(20):
        vendor = number % 2
        row = Row(f"request-{number}", time.time() - 60 * number)
        row.model, row.ref = ("mini", "mini:1") if vendor else ("chat", "smollm2:1")
        row.digest = digests["mini" if vendor else "smollm2"]
        row.engine = "vendor" if vendor else "llamacpp"
        row.counted, row.status, row.total_s = Counted.STATED, 200, 2.0
        row.prompt_tokens, row.completion_tokens = 1_000, 100
        row.nano_usd = 210_000 if vendor else 0
        row.key, row.team = "alice", "web" if number < 10 else "ops"
        row.language = "en" if number < 10 else "tr"
        assert ledger.append(row)
    assert ledger.flush(30)
    assert ledger.stop()


def found(result: Result) -> Any:
    assert result.exception is None, result.output
    return json.loads(result.stdout)


def failure(result: Result) -> PressroomError:
    assert isinstance(result.exception, PressroomError), (result.output, result.exception)
    return result.exception


def commands(command: click.Command, path: str = "press cost") -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from commands(inner, f"{path} {name}")


@pytest.mark.parametrize(("path", "command"), list(commands(cost)))
def test_each_command_has_help_and_an_example(path: str, command: click.Command) -> None:
    assert command.help and f"Example: {path.removesuffix(' price')}" in (command.epilog or "")
    if path != "press cost price":
        assert {"--json", "--debug"} <= {option for parameter in command.params for option in parameter.opts}


def test_what_was_spent_and_what_tokens_cost(workspace: Workspace, asking: Asking) -> None:
    fill(workspace)
    report = found(asking("--since", "1d", "--machine-usd-per-hour", "0.5", "--json"))
    assert {one["name"]: one["nano_usd"] for one in report["groups"]} == {"mini": 2_100_000, "chat": 0}
    assert report["total"]["requests"] == 20 and report["total"]["tokens"] == 22_000
    # Ten hours at half a dollar, all of it for the one that worked.
    assert report["machine"]["nano_usd"] == pytest.approx(5 * NANO, rel=1e-6)
    assert {one["name"]: one["machine_nano_usd"] for one in report["groups"]} == {
        "mini": 0,
        "chat": report["machine"]["nano_usd"],
    }
    [own] = report["own"]
    assert own["nano_usd_per_million"] == -(-report["machine"]["nano_usd"] * 10**6 // 11_000)
    assert own["tokens_per_second"] == 200.0 and own["best_nano_usd_per_million_generated"] == 694_444_445
    [even] = report["break_even"]
    # 1,000 asked and 100 answered are 0.00021 USD: 0.190909 USD a million, and 365 USD a month.
    assert even["vendor"] == "mini" and even["nano_usd_per_million"] == 190_909_091
    assert even["tokens_per_month"] == -(-365 * NANO * 11_000 // 2_100_000)
    assert even["most_tokens_per_month"] == 200 * 730 * 3_600 * 11 and even["reached"] is True
    assert report["traffic"]["own"] is True and report["unpriced_requests"] == 0


@pytest.mark.parametrize("by", ["key", "team", "deployment", "language", "day", "branch", "model", "tag", "user"])
def test_groups_together_are_everything(workspace: Workspace, asking: Asking, by: str) -> None:
    fill(workspace)
    report = found(asking("--by", by, "--machine-usd-per-hour", "0.5", "--json"))
    for name in ("requests", "tokens", "nano_usd", "own_tokens", "vendor_tokens"):
        assert sum(one[name] for one in report["groups"]) == report["total"][name]
    assert sum(one["machine_nano_usd"] for one in report["groups"]) == report["machine"]["nano_usd"]
    # A day on which the server only ran is no group of requests.
    assert "together" in asking("--by", by).stdout or len([one for one in report["groups"] if one["requests"]]) == 1


def test_a_language_is_compared_with_english(workspace: Workspace, asking: Asking) -> None:
    ledger = open_ledger(workspace)
    ledger.start()
    for number, (language, tokens, cache) in enumerate(
        [("en", 100, ""), ("en", 300, ""), ("en", 0, "exact"), ("tr", 500, ""), ("", 50, "")]
    ):
        row = Row(f"request-{number}", time.time() - 1)
        row.engine, row.language, row.prompt_tokens, row.cache = "llamacpp", language, tokens, cache
        ledger.append(row)
    ledger.stop()
    groups = found(asking("--by", "language", "--json"))["groups"]
    assert {one["name"]: one["tokens_to_english"] for one in groups} == {"en": 1.0, "tr": 2.5, "": 0.25}


def test_people_get_tables(workspace: Workspace, asking: Asking) -> None:
    fill(workspace)
    said = asking("--machine-usd-per-hour", "0.5", "--by", "language").stdout
    assert "TO ENGLISH" in said and "1.00 ×" in said and "The server was on for 10.0 hours" in said
    assert "BREAK-EVEN WITH" in said and "the vendor is cheaper now" in said
    said = asking().stdout
    assert "machine_usd_per_hour" in said and "BREAK-EVEN" not in said
    (workspace.root / "pressroom.toml").write_text("[cost]\nmachine_usd_per_hour = 0.00001\n")
    assert "the own machine is cheaper now" in asking().stdout
    said = asking("--machine-usd-per-hour", "100000", "--against", "0.01/0.02").stdout
    assert "never: it takes " in said and "what one machine makes" in said
    assert "this vendor asks nothing" in asking("--machine-usd-per-hour", "1", "--against", "0/0").stdout


def test_a_workspace_that_never_answered(workspace: Workspace, asking: Asking) -> None:
    assert "No request is in the ledger" in asking("--svg").stdout
    drawing = ElementTree.parse("cost.svg").getroot()
    assert drawing.tag == f"{_SVG}svg"
    report = found(asking("--json", "--machine-usd-per-hour", "1"))
    assert report["groups"] == report["own"] == report["break_even"] == []
    assert "No request" in asking("replay", "--against", "1/2").stdout
    assert found(asking("reprice", "--model", "mini", "--since", "7d", "--json"))["requests"] == 0


def test_the_picture(workspace: Workspace, asking: Asking) -> None:
    fill(workspace)
    report = found(
        asking("--machine-usd-per-hour", "0.5", "--against", "mini", "--against", "2/8", "--svg", "a.svg", "--json")
    )
    assert report["svg"] == "a.svg"
    drawing = ElementTree.parse("a.svg").getroot()
    panels = drawing.findall(f"{_SVG}g")
    assert len(panels) == 2
    words = ["".join(text.itertext()) for text in drawing.iter(f"{_SVG}text")]
    assert {"mini", "chat", "own machine", "2/8", "now", "tokens a month"} <= set(words)
    # The machine and both vendors; 2/8 crosses the machine within the picture.
    lines = panels[1].findall(f"{_SVG}polyline")
    assert len(lines) == 3 and panels[1].findall(f"{_SVG}circle")
    for number in (n for line in lines for n in line.attrib["points"].replace(",", " ").split()):
        assert 0 <= float(number) <= 600


def test_prices_are_set_listed_and_taken_back(asking: Asking) -> None:
    def known() -> dict[str, Any]:
        [one] = [one for one in found(asking("prices", "--model", "openai/gpt-4o-mini", "--json"))
                 if one["vendor"] == "openai" and one["model"] == "gpt-4o-mini"]  # fmt: skip
        return dict(one)

    assert (known()["prompt"], known()["completion"]) == ("0.15", "0.6")
    set_ = ("price", "set", "openai/gpt-4o-mini", "--prompt", "0.2", "--completion", "0.8", "--cached", "0.1")
    assert found(asking(*set_, "--since", "2026-01-01", "--json"))["price"]["cached"] == "0.1"
    assert (known()["prompt"], known()["source"], known()["since"]) == ("0.2", "set", "2026-01-01")
    assert "0.2 USD for a million tokens asked" in asking(*set_).stdout
    assert found(asking("price", "unset", "openai/gpt-4o-mini", "--json"))["price"] is None
    assert known()["prompt"] == "0.15"
    assert "dearer for prompts above 200,000" in asking("prices", "--model", "google/gemini-2.5-pro").stdout
    assert "No price is known for 'nothing-like-it'" in asking("prices", "--model", "nothing-like-it").stdout
    assert "more: name some" in asking("prices").stdout


def test_replay(workspace: Workspace, asking: Asking) -> None:
    fill(workspace)
    replayed = found(asking("replay", "--against", "1/4", "--by", "team", "--json"))
    # 1,000 at 1 USD and 100 at 4 USD a million, twenty times.
    assert replayed["total"] == {
        "requests": 20,
        "tokens": 22_000,
        "nano_usd": 2_100_000,
        "replayed_nano_usd": 28_000_000,
        "difference_nano_usd": 25_900_000,
    }
    assert sum(one["replayed_nano_usd"] for one in replayed["groups"]) == 28_000_000
    only = found(asking("replay", "--against", "openai/gpt-4o-mini", "--deployment", "chat", "--json"))
    assert only["total"]["replayed_nano_usd"] == 2_100_000 and only["total"]["nano_usd"] == 0
    more = found(asking("replay", "--against", "prompt=1,completion=4", "--token-ratio", "1.5", "--json"))
    assert more["total"]["replayed_nano_usd"] == 42_000_000 and more["token_ratio"] == 1.5
    own = found(asking("replay", "--against", "chat", "--deployment", "mini", "--json"))
    assert own["against"]["own"] is True and own["machine_s"] == 5.0 and own["machine_nano_usd"] is None
    said = asking("replay", "--against", "smollm2:1").stdout
    assert "200 tokens/s" in said and "another tokenizer" in said


def test_a_wrong_price_is_repaired_once(workspace: Workspace, asking: Asking) -> None:
    fill(workspace)
    assert found(asking("reprice", "--model", "openai/gpt-4o-mini", "--since", "1d", "--json"))["wrong"] == 0
    asking("price", "set", "openai/gpt-4o-mini", "--prompt", "0.3", "--completion", "1.2", "--since", "2026-01-01")
    tried = found(asking("reprice", "--model", "mini", "--since", "1d", "--dry-run", "--json"))
    assert (tried["requests"], tried["wrong"], tried["difference"], tried["corrected"]) == (10, 10, 2_100_000, 0)
    assert "they would go from 0.0021 → 0.0042 USD" in asking(
        "reprice", "--model", "mini", "--since", "1d", "--dry-run"
    ).stdout.replace("0.00210", "0.0021").replace("0.00420", "0.0042")
    done = found(asking("reprice", "--model", "mini:1", "--since", "1d", "--json"))
    assert (done["corrected"], done["corrected_nano_usd"]) == (10, 2_100_000)
    assert found(asking("reprice", "--model", "mini", "--since", "1d", "--json"))["wrong"] == 0
    assert found(asking("--json"))["total"]["nano_usd"] == 4_200_000
    given = found(asking("reprice", "--model", "mini", "--since", "1d", "--price", "0/0", "--json"))
    assert given["corrected_nano_usd"] == -4_200_000
    assert found(asking("--json"))["total"]["nano_usd"] == 0


def test_what_the_deployment_says_its_price_is_counts(workspace: Workspace, asking: Asking) -> None:
    fill(workspace)
    done = found(asking("reprice", "--model", "chat", "--since", "1d", "--json"))
    assert (done["requests"], done["wrong"], done["unknown"]) == (10, 0, 0)
    asking("price", "set", "own/smollm2", "--prompt", "1", "--completion", "1", "--since", "2026-01-01")
    done = found(asking("reprice", "--model", "chat", "--since", "1d", "--json"))
    assert done["corrected_nano_usd"] == 10 * 1_100_000
    total = found(asking("--json"))["total"]
    assert total["own_nano_usd"] == 11_000_000 and total["vendor_nano_usd"] == 2_100_000
    assert "CHARGED USD" in asking().stdout


def test_a_price_written_at_a_route_counts_for_its_canary_too(workspace: Workspace, asking: Asking) -> None:
    own = Registry(workspace).get("smollm2").digest
    wish = {"ref": "smollm2:1", "digest": own, "engine": "llamacpp"}
    way = RouteWish(name="own", price={"prompt": 2, "completion": 4}, **wish)
    Deployments(workspace).put("chat", routes=[way], **wish)
    ledger = open_ledger(workspace)
    ledger.start()
    for number, branch in enumerate(["", way.name, f"{way.name}~new", "another"]):
        row = Row(f"of-{number}", time.time())
        row.model, row.branch, row.digest, row.engine, row.counted = "chat", branch, own, "llamacpp", Counted.STATED
        row.prompt_tokens = 1_000
        assert ledger.append(row)
    ledger.stop()
    done = found(asking("reprice", "--model", "chat", "--since", "1d", "--json"))
    assert (done["requests"], done["wrong"], done["corrected_nano_usd"]) == (4, 3, 3 * 2_000_000)


def test_tags_and_users_are_summed_and_many_share_a_line(workspace: Workspace, asking: Asking) -> None:
    ledger = open_ledger(workspace)
    ledger.start()
    for number in range(60):
        row = Row(f"of-{number}", time.time() - 1)
        row.model, row.engine, row.counted, row.prompt_tokens = "chat", "llamacpp", Counted.STATED, 1_000 - number
        row.user, row.tag = f"user-{number}", "night\x1b[2J" if number % 2 else "day"
        assert ledger.append(row)
    ledger.stop()
    groups = {one["name"]: one["requests"] for one in found(asking("--by", "tag", "--json"))["groups"]}
    assert sorted(groups.values()) == [30, 30] and "day" in groups
    assert "\x1b" not in asking("--by", "tag").stdout.replace("\x1b[1m", "").replace("\x1b[0m", "")
    asking("--by", "tag", "--svg", "tags.svg")
    words = ["".join(text.itertext()) for text in ElementTree.parse("tags.svg").getroot().iter(f"{_SVG}text")]
    assert "day" in words and "Spent by tagtokens" in words
    users = found(asking("--by", "user", "--json"))["groups"]
    assert len(users) == 60 and all(one["requests"] == 1 and not one["name"].startswith("user") for one in users)
    lines = asking("--by", "user").stdout.splitlines()
    [rest] = [line.split() for line in lines if "others" in line]
    assert rest[:3] == ["11", "others", "11"] and "together" in "".join(lines)
    assert "11 others" in asking("replay", "--against", "1/2", "--by", "user").stdout


def test_small_amounts_have_no_exponent(workspace: Workspace, asking: Asking) -> None:
    fill(workspace)
    said = asking("--machine-usd-per-hour", "0.00001", "--against", "0.00002/0").stdout
    assert "e-0" not in said and "at 0.00001 USD an hour: 0.0001 USD" in said


def test_a_price_for_a_name_that_nobody_has_is_doubted(workspace: Workspace, asking: Asking) -> None:
    def noted(name: str) -> str:
        return str(found(asking("price", "set", name, "--prompt", "1", "--completion", "1", "--json"))["note"])

    assert "openai/gpt-4o-mini" in noted("opena/gpt-4o-mini")
    assert "own/smollm2" in noted("own/smolm2")
    assert noted("opena/gpt-4o-mini") == "", "it was set before"
    for name in ("openai/gpt-4o-mini", "api.openai.com/gpt-4o-mini", "own/*", "openai/*"):
        assert noted(name) == ""
    assert "note:" in asking("price", "set", "nobody/*", "--prompt", "1", "--completion", "1").stderr
    error = failure(asking("price", "unset", "openai/gpt-4o-min"))
    assert isinstance(error, NotFoundError) and "openai/gpt-4o-mini" in error.hint
    assert found(asking("price", "unset", "nobody/*", "--json"))["price"] is None
    assert isinstance(failure(asking("price", "unset", "nobody/*")), NotFoundError)


def test_requests_that_nobody_knew_the_price_of_are_told(workspace: Workspace, asking: Asking) -> None:
    fill(workspace)
    asking("reprice", "--model", "mini", "--since", "1d", "--price", "0/0")
    assert "price nobody knew" not in asking().stderr  # somebody said that they cost nothing
    pull(workspace, "openai:unheard-of@https://llm.example.org/v1", name="other")
    digest = Registry(workspace).get("other").digest
    ledger = open_ledger(workspace)
    ledger.start()
    row = Row("unpriced", time.time())
    row.model, row.digest, row.engine, row.counted, row.prompt_tokens = "other", digest, "vendor", Counted.STATED, 7
    ledger.append(row)
    ledger.stop()
    assert found(asking("--json"))["unpriced_requests"] == 1
    told = asking().stderr
    assert "press cost price set llm.example.org/unheard-of " in told
    assert "press cost reprice --model llm.example.org/unheard-of" in told
    assert found(asking("reprice", "--model", "other", "--since", "1d", "--json"))["unknown"] == 1
    asking("price", "set", "llm.example.org/unheard-of", "--prompt", "1", "--completion", "1")
    assert (
        found(asking("reprice", "--model", "llm.example.org/unheard-of", "--since", "1d", "--json"))["corrected"] == 1
    )
    assert found(asking("--json"))["unpriced_requests"] == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["--since", "yesterday"],
        ["--since", "99999999d"],
        ["--since", "2026-13-01"],
        ["--since", "2026-01-02", "--until", "2026-01-01"],
        ["--by", "door"],
        ["--machine-usd-per-hour", "nan"],
        ["--machine-usd-per-hour", "-1"],
        ["--month-hours", "1000"],
        ["prices", "--day", "soon"],
        ["price", "set", "openai/x", "--prompt", "1"],
        ["price", "set", "openai/x", "--prompt", "1", "--completion", "1", "--since", "20260"],
        ["replay"],
        ["replay", "--against", "1/2", "--token-ratio", "0"],
        ["replay", "--against", "1/2", "--token-ratio", "1e3"],
        ["reprice", "--model", "mini"],
    ],
)
def test_wrong_usage_is_told(asking: Asking, arguments: list[str]) -> None:
    result = asking(*arguments)
    assert result.exit_code == 2 and "Error" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "kind", "says"),
    [
        (["price", "set", "openai/x", "--prompt", "nan", "--completion", "1"], PriceError, "nan"),
        (["price", "set", "x", "--prompt", "1", "--completion", "1"], PriceError, "'x'"),
        (["price", "set", "openai/x", "--prompt", "1", "--completion", "1", "--cached", "2"], PriceError, "cached"),
        (["replay", "--against", "nothing"], PriceError, "nothing"),
        (["replay", "--against", "1001/1"], PriceError, "1001"),
        (["replay", "--against", "promt=1,completion=2"], PriceError, "promt"),
        (["--against", "openai/no-such-model", "--machine-usd-per-hour", "1"], PriceError, "no-such-model"),
        (["reprice", "--model", "nobody", "--since", "1d"], NotFoundError, "nobody"),
        (["reprice", "--model", "mini", "--since", "1d", "--price", "cheap"], PriceError, "cheap"),
    ],
)
def test_bad_input_says_what_was_asked_and_what_to_do(
    workspace: Workspace, asking: Asking, arguments: list[str], kind: type[PressroomError], says: str
) -> None:
    fill(workspace)
    error = failure(asking(*arguments))
    assert type(error) is kind and says in error.message and error.hint


def test_a_drawing_that_cannot_be_written_is_told_before_anything_is_counted(asking: Asking) -> None:
    assert "no folder" in failure(asking("--svg", "nowhere/cost.svg")).message
