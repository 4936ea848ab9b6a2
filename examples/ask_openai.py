"""Ask a running gateway through the official OpenAI client, and print the answer as it comes.

Usage: python examples/ask_openai.py ["A question"]     OPENAI_BASE_URL and MODEL say where and whom to ask.
"""

from __future__ import annotations

import os
import sys

from openai import OpenAI


def main() -> None:
    question = " ".join(sys.argv[1:]) or "What does a printing press do?"
    with OpenAI(base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8080/v1"), api_key="none") as client:
        stream = client.chat.completions.create(
            model=os.environ.get("MODEL", "smollm2"),
            messages=[{"role": "user", "content": question}],
            max_tokens=100,
            stream=True,
            stream_options={"include_usage": True},
        )
        for chunk in stream:
            if chunk.choices:
                print(chunk.choices[0].delta.content or "", end="", flush=True)
            if chunk.usage:  # the last chunk, which has no choices
                print(f"\n({chunk.usage.prompt_tokens} tokens in, {chunk.usage.completion_tokens} out)")


if __name__ == "__main__":
    main()
