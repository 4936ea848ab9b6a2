"""Token counts from the end of an answer, without parsing the answer."""

from __future__ import annotations

import re

_PROMPT = re.compile(rb'"prompt_tokens"\s*:\s*(\d{1,12})')
_COMPLETION = re.compile(rb'"completion_tokens"\s*:\s*(\d{1,12})')
_CACHED = re.compile(rb'"cache_n"\s*:\s*(\d{1,12})')
_READ = re.compile(rb'"prompt_n"\s*:\s*(\d{1,12})')
_WRITTEN = re.compile(rb'"predicted_n"\s*:\s*(\d{1,12})')
_SPAN = 600


def token_counts(answer: bytes) -> tuple[int, int]:
    """Prompt and generated tokens that an answer, or the last frames of a stream, declares; zeros where it does not.

    Reads OpenAI's `usage`, else llama.cpp's `timings`. Inside a JSON string a quote is escaped, so text that was
    generated cannot be taken for either key.
    """
    at = answer.rfind(b'"usage":')
    if at >= 0:
        found = answer[at : at + _SPAN]
        prompt, completion = _PROMPT.search(found), _COMPLETION.search(found)
        if prompt and completion:
            return int(prompt[1]), int(completion[1])
    at = answer.rfind(b'"timings":')
    if at >= 0:
        found = answer[at : at + _SPAN]
        read, written, cached = _READ.search(found), _WRITTEN.search(found), _CACHED.search(found)
        if read and written:
            return int(read[1]) + (int(cached[1]) if cached else 0), int(written[1])
    return 0, 0
