"""Token counts from the end of an answer, without parsing the answer; and what they are where it says nothing true."""

from __future__ import annotations

import re
from typing import NamedTuple

from pressroom.gateway.ledger.base import Counted

# As most engines say it, in one piece; whatever is said in another way is looked for key by key, which takes five times
# as long.
_USUAL = re.compile(
    rb'"usage":\s?\{(?:"prompt_tokens":\s?(\d{1,12}),\s?"completion_tokens":\s?(\d{1,12})'
    rb'|"completion_tokens":\s?(\d{1,12}),\s?"prompt_tokens":\s?(\d{1,12}))'
    rb',\s?"total_tokens":\s?\d{1,13}(?:,\s?"prompt_tokens_details":\s?\{"cached_tokens":\s?(\d{1,12})\})?\}'
)
# A number that goes on is none of tokens.
_PROMPT = re.compile(rb'"prompt_tokens"\s*:\s*(\d{1,12})(?![\d.eE])')
_COMPLETION = re.compile(rb'"completion_tokens"\s*:\s*(\d{1,12})(?![\d.eE])')
_SAID = re.compile(rb'"completion_tokens"\s*:\s*[^\sn]')
_KEPT = re.compile(rb'"cached_tokens"\s*:\s*(\d{1,12})(?![\d.eE])')
_CACHED = re.compile(rb'"cache_n"\s*:\s*(\d{1,12})(?![\d.eE])')
_READ = re.compile(rb'"prompt_n"\s*:\s*(\d{1,12})')
_WRITTEN = re.compile(rb'"predicted_n"\s*:\s*(\d{1,12})')
_CUT = re.compile(rb'"cut"\s*:\s*true')
_ESTIMATED = re.compile(rb'"estimated"\s*:\s*true')
_SPAN = 600
#: Tokens of an answer that nobody bounded: neither the request nor the context of the engine.
UNBOUNDED = 4_096
#: A template's own tokens: no known one writes more of its own around a conversation than this and what is in it.
TEMPLATE = 64


def token_counts(answer: bytes) -> tuple[int, int, int] | None:
    """Prompt and generated tokens that an answer, or the last frames of a stream, declares, and how many of the prompt
    were kept from before; None where it does not.

    Reads OpenAI's `usage`, else llama.cpp's `timings`. Inside a JSON string a quote is escaped, so text that was
    generated cannot be taken for either key.
    """
    at = answer.rfind(b'"usage":')
    if at >= 0:
        usual = _USUAL.match(answer, at)
        if usual is not None:
            first, second, written, read, kept = usual.groups()
            if first is None:
                first, second = read, written
            return int(first), int(second), 0 if kept is None else int(kept)
        found = answer[at : at + _SPAN]
        prompt, completion = _PROMPT.search(found), _COMPLETION.search(found)
        if prompt and (completion or not _SAID.search(found)):  # an embedding has no completion
            cached = _KEPT.search(found)
            return int(prompt[1]), int(completion[1]) if completion else 0, int(cached[1]) if cached else 0
    at = answer.rfind(b'"timings":')
    if at >= 0:
        found = answer[at : at + _SPAN]
        read, written, cached = _READ.search(found), _WRITTEN.search(found), _CACHED.search(found)
        if read and written:
            before = int(cached[1]) if cached else 0
            return int(read[1]) + before, int(written[1]), before
    return None


class Counts(NamedTuple):
    """Tokens of one engine's request, and where the numbers come from. `disputed`: the engine stated others, which
    cannot be true."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    counted: Counted = Counted.NONE
    disputed: bool = False


_TEXT = re.compile(rb'"(?:content|text|reasoning_content|arguments)":"((?:[^"\\]|\\.)+)"')
# English text has about four bytes a token, in every tokenizer of today; for where nobody counted.
_BYTES_A_TOKEN = 4
# Of pieces that are longer than any token: they hold several.
_BYTES_A_PIECE = 8
# What a vendor may state beyond what can be seen: its own words around a prompt, and thoughts that it keeps.
_HIDDEN = 65_536


def tokens_in(data: bytes) -> int:
    """How many tokens the text in the events of a stream has at least: engines send a piece for each, vendors sometimes
    large ones."""
    pieces = _TEXT.findall(data)
    return max(len(pieces), sum(map(len, pieces)) // _BYTES_A_PIECE)


def counts_of(
    answer: bytes,
    *,
    size: int,
    most: int,
    before: int | None,
    cut: bool = False,
    own: bool = False,
    embeds: bool = False,
) -> Counts:
    """What a request came to.

    `answer` is a whole answer, or the end of a stream, and then `before` how many tokens of text came before that;
    `size` are the bytes that were sent to the engine, `most` the tokens that it might answer with at most (0: no bound
    was given). `cut` says that the client left: then an engine may say how far it came. An engine of one's `own` is
    believed. What a vendor states is, as long as it can be true: text is not made of no tokens, and beyond what can be
    seen there may be hidden prompts and thoughts, but not without end. What `embeds` writes nothing.
    """
    stated = token_counts(answer)
    if stated is not None and own and not cut and not embeds:
        prompt, completion, cached = stated
        if prompt and completion:  # nearly always
            return Counts(prompt, completion, min(cached, prompt), Counted.STATED)
    if stated is None:
        if embeds:
            seen = 0
        elif before is not None:
            seen = before + tokens_in(answer)
        else:
            seen = len(answer) // _BYTES_A_TOKEN
        return Counts(max(1, size // _BYTES_A_TOKEN), min(seen, most) if most else seen, 0, Counted.COUNTED)
    prompt, completion, cached = stated
    if embeds:
        completion = 0
    if cut and _CUT.search(answer) is not None:
        # It may have been cut before anything was read or written.
        estimated = _ESTIMATED.search(answer) is not None
        return Counts(prompt, completion, min(cached, prompt), Counted.COUNTED if estimated else Counted.STATED)
    likely = own or (prompt <= size + TEMPLATE and completion <= (most or UNBOUNDED))
    if prompt and (completion or embeds) and likely:
        return Counts(prompt, completion, min(cached, prompt), Counted.STATED)
    seen = (before or 0) + tokens_in(answer)
    if not prompt:
        prompt = max(1, size // _BYTES_A_TOKEN)
    elif not own and prompt > size + TEMPLATE + _HIDDEN:
        prompt = size + TEMPLATE
    if not completion:
        completion = seen
    elif not own and completion > max(most, seen) + _HIDDEN:
        completion = max(most, seen)
    same = (prompt, completion) == (stated[0], 0 if embeds else stated[1])
    return Counts(prompt, completion, min(cached, prompt), Counted.STATED if same else Counted.COUNTED, not same)
