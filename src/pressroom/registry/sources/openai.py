"""`openai:MODEL[@URL]`: a model behind OpenAI's API, at OpenAI or at whoever speaks it (https://HOST/v1)."""

from __future__ import annotations

from pressroom.registry.sources._remote import RemoteSource


class Backend(RemoteSource):
    """Any server with OpenAI's endpoints below the address."""

    form = "openai:MODEL[@URL]"
    protocol = "openai"
    url = "https://api.openai.com/v1"
