"""Rules by content: which branches may see a request, and which should be asked first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pressroom.gateway.policy._texts import Text
from pressroom.gateway.problems import Problem

if TYPE_CHECKING:
    from pressroom.gateway.policy._plan import Plan
    from pressroom.gateway.policy.base import Asking, When
    from pressroom.text import Finding

DEFAULT_RULE = "the default rule"
PERSONAL_DATA, SECRET, UNREADABLE = "personal_data", "secret", "unreadable"


# Characters that are looked through in one go; longer texts piece by piece, with other work of the event loop between.
_AT_ONCE = 32_768
# Each costs some 40 us; what was said before is taken as one text.
_LANGUAGES_OF = 64

Find = Callable[[str], "list[Finding]"]


@dataclass(frozen=True, slots=True)
class Detectors:
    """Who finds what is personal or secret in a text, and its language (a code of ISO 639; `und`: not clear)."""

    personal_data: Find
    secret: Find
    language: Callable[[str], str]


def own_detectors() -> Detectors:
    """Those of `pressroom.text`."""
    from pressroom.text import language_of, personal_data, secrets_in

    return Detectors(personal_data, secrets_in, language_of)


class Judged:
    """What the rules say of one request: `allowed` are the branches that may see it (None: all), by the rules `by`;
    `prefer` those to be asked first."""

    __slots__ = ("allowed", "by", "prefer")

    def __init__(self) -> None:
        self.allowed: frozenset[str] | None = None
        self.by: list[str] = []
        self.prefer: tuple[str, ...] = ()

    def refusal(self, found: list[str]) -> Problem:
        """No branch may see it."""
        rules = " and ".join(self.by)
        what = {PERSONAL_DATA: "personal data", SECRET: "a secret", UNREADABLE: "text that cannot be checked"}
        has = " and ".join(what[name] for name in found if name in what)
        because = f"it has {has}, and " if has else ""
        message = f"No model here may be sent this request: {because}{rules} of this deployment leaves none for it."
        return Problem(400, message, code="content_not_allowed")


class Reading:
    """What is found in one request; each thing is looked for when a rule asks, and once."""

    __slots__ = ("_asking", "_detectors", "_found", "_languages", "_text")

    def __init__(self, asking: Asking, detectors: Detectors) -> None:
        self._asking = asking
        self._detectors = detectors
        self._text: Text | None = None
        self._found: dict[str, bool] = {}
        self._languages: set[str] | None = None

    @property
    def text(self) -> Text:
        if self._text is None:
            self._text = Text(self._asking.fields, self._asking.endpoint)
            if self._text.unreadable:
                self._note(UNREADABLE)
        return self._text

    def has(self, name: str) -> bool:
        """Whether it has personal data or a secret."""
        found = self._found.get(name)
        if found is None:
            found = bool(self._find(name)(self.text.whole))
            self._settle(name, found)
        return found

    @property
    def long(self) -> bool:
        """Whether `has` would hold up everybody else; then `pieces` come first."""
        return len(self.text.whole) > _AT_ONCE

    def pieces(self, names: Iterable[str]) -> Iterator[None]:
        """Looks for these in one piece of the text after another."""
        from pressroom.text import in_pieces

        for name in names:
            found = False
            for findings in in_pieces(self._find(name), self.text.whole, size=_AT_ONCE):
                if findings:
                    found = True
                    break
                yield
            self._settle(name, found)

    def _find(self, name: str) -> Find:
        return self._detectors.personal_data if name == PERSONAL_DATA else self._detectors.secret

    def _settle(self, name: str, found: bool) -> None:
        self._found[name] = found
        if found:
            self._note(name)

    def _note(self, name: str) -> None:
        verdicts = self._asking.row.verdicts
        if name not in verdicts:  # a request of several prompts is several of these
            verdicts.append(name)

    @property
    def languages(self) -> set[str]:
        if self._languages is None:
            said = self.text.said
            texts = ["\n".join(said[:-_LANGUAGES_OF]), *said[-_LANGUAGES_OF:]]
            self._languages = {self._detectors.language(text) for text in texts if text}
        return self._languages

    def meets(self, when: When, *, strictly: bool) -> bool:
        """Whether all of `when` holds. `strictly`, what cannot be read counts as having what is looked for."""
        caller = self._asking.caller
        if when.tag and self._asking.tag not in when.tag:
            return False
        if when.key and caller.key not in when.key:
            return False
        if when.team and caller.team not in when.team:
            return False
        if not when.reads:
            return True
        if when.longer_than is not None and self.text.characters <= when.longer_than:
            return False
        hidden = strictly and self.text.unreadable
        if when.secret and not self.has(SECRET) and not hidden:
            return False
        if when.personal_data and not self.has(PERSONAL_DATA) and not hidden:
            return False
        return not when.language or hidden or not self.languages.isdisjoint(when.language)


def judged(plan: Plan, asking: Asking, reading: Reading) -> Judged:
    """What the rules say of `asking`; the findings go into its row."""
    verdict = Judged()
    policy = plan.policy
    if plan.guarded:
        # Both are looked for, so that the row has both.
        private = [reading.has(SECRET), reading.has(PERSONAL_DATA), reading.text.unreadable]
        if any(private):
            verdict.allowed = plan.own
            verdict.by.append(DEFAULT_RULE)
    for rule in policy.rules:
        if rule.only and reading.meets(rule.when, strictly=True):
            only = plan.named(rule.only)
            verdict.allowed = only if verdict.allowed is None else verdict.allowed & only
            verdict.by.append(rule.name)
        if rule.prefer and not verdict.prefer and reading.meets(rule.when, strictly=False):
            verdict.prefer = rule.prefer
    if verdict.allowed is not None and verdict.allowed <= plan.own:
        asking.own_only = True
    return verdict
