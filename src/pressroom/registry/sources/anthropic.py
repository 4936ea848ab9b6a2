"""`anthropic:MODEL[@URL]`: a model behind Anthropic's Messages API."""

from __future__ import annotations

from pressroom.registry.sources._remote import RemoteSource


class Backend(RemoteSource):
    """Anthropic, or a server with its endpoint `/v1/messages` below the address."""

    form = "anthropic:MODEL[@URL]"
    protocol = "anthropic"
    url = "https://api.anthropic.com/v1"

    def base(self, path: str) -> str:
        # Anthropic's own clients take the address without /v1, OpenAI's with it: both are understood.
        plain = path.rstrip("/")
        return plain if plain.endswith("/v1") else f"{plain}/v1"
