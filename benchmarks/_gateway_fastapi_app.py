"""Runs in the environment of the peer `fastapi_httpx`: checks the request's shape and passes it on, streamed or not."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict


class Message(BaseModel):
    role: str
    content: str


class ChatRequest(BaseModel):
    model_config = ConfigDict(extra="allow")

    model: str
    messages: list[Message]
    stream: bool = False


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with httpx.AsyncClient(base_url=os.environ["UPSTREAM"], timeout=600) as client:
        app.state.client = client
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/health")
async def health() -> dict[str, str]:
    return {"status": "ok"}


@app.post("/v1/chat/completions")
async def chat(asked: ChatRequest) -> Response:
    client: httpx.AsyncClient = app.state.client
    if not asked.stream:
        answer = await client.post("/v1/chat/completions", json=asked.model_dump())
        return Response(answer.content, answer.status_code, media_type="application/json")

    async def pieces() -> AsyncIterator[bytes]:
        async with client.stream("POST", "/v1/chat/completions", json=asked.model_dump()) as streamed:
            async for piece in streamed.aiter_raw():
                yield piece

    return StreamingResponse(pieces(), media_type="text/event-stream")
