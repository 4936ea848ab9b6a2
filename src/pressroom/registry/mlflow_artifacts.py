"""MLflow's artifacts in the store: the plugin for `pressroom:` URIs.

    mlflow.create_experiment("tuning", artifact_location="pressroom:///srv/models")

Whatever is logged to a run of that experiment, or as a model of it, goes into the store of the workspace /srv/models,
file by file as it is read: a tensor that is held already, in whatever file, is not kept again. The paths are rows in
the workspace's database. A folder that is logged appears whole or not at all.

Artifacts may be any files, pickles too: they are kept and given back, and nothing here opens them. What may be
registered as a version is stricter, see `mlflow_models`.
"""

# Parts of MLflow are not annotated.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import asyncio
import os
import queue
from collections.abc import AsyncIterable, Iterator
from pathlib import Path
from typing import BinaryIO

from mlflow.entities import FileInfo
from mlflow.store.artifact.artifact_repo import ArtifactRepository, StreamUploadMixin, verify_artifact_path

from pressroom.registry._mlflow_errors import refused, speaking_mlflow
from pressroom.registry._mlflow_files import Files, Put
from pressroom.registry._mlflow_place import opened

_CHUNK = 4 << 20


class PressroomArtifactRepository(ArtifactRepository, StreamUploadMixin):
    """The files below one URI."""

    @speaking_mlflow
    def __init__(self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> None:
        super().__init__(artifact_uri, tracking_uri, registry_uri)
        self._place = opened(artifact_uri)
        self._files = Files(self._place)

    @speaking_mlflow
    def log_artifact(self, local_file: str | os.PathLike[str], artifact_path: str | None = None) -> None:
        verify_artifact_path(artifact_path)
        file = Path(local_file)
        if file.is_dir():
            return self.log_artifacts(file, _joined(artifact_path, file.name))
        self._files.put({_joined(artifact_path, file.name): self._put_file(file)})

    @speaking_mlflow
    def log_artifacts(self, local_dir: str | os.PathLike[str], artifact_path: str | None = None) -> None:
        verify_artifact_path(artifact_path)
        top = Path(local_dir)
        puts: dict[str, Put] = {}
        for folder, folders, names in os.walk(top):
            folders.sort()
            for name in sorted(names):
                file = Path(folder, name)
                puts[_joined(artifact_path, file.relative_to(top).as_posix())] = self._put_file(file)
        if puts:
            self._files.put(puts)

    @speaking_mlflow
    def log_artifact_from_stream(
        self, stream: BinaryIO, artifact_file_name: str, artifact_path: str | None = None
    ) -> None:
        self._log_chunks(iter(lambda: stream.read(_CHUNK), b""), artifact_file_name, artifact_path)

    async def log_artifact_from_async_stream(
        self, chunks: AsyncIterable[bytes], artifact_file_name: str, artifact_path: str | None = None
    ) -> None:
        """The bytes go to a thread as they come; at most four pieces wait."""
        waiting: queue.Queue[bytes | BaseException | None] = queue.Queue(maxsize=4)

        def received() -> Iterator[bytes]:
            while (chunk := waiting.get()) is not None:
                if isinstance(chunk, BaseException):
                    raise chunk
                yield chunk

        log = speaking_mlflow(self._log_chunks)
        work = asyncio.create_task(asyncio.to_thread(log, received(), artifact_file_name, artifact_path))

        async def hand(chunk: bytes | BaseException | None) -> None:
            while not work.done():
                try:
                    return waiting.put_nowait(chunk)
                except queue.Full:
                    await asyncio.sleep(0.005)

        try:
            async for chunk in chunks:
                await hand(bytes(chunk))
                if work.done():
                    break
            await hand(None)
        except BaseException as error:  # also a client that leaves: the thread must not wait for ever
            await hand(ConnectionError(f"the upload was cut: {error!r}"))
            raise
        await work

    @speaking_mlflow
    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        folder = path.rstrip("/") if path else ""
        skipped = len(folder) + 1 if folder else 0
        found: dict[str, FileInfo] = {}
        for entry in self._files.list(folder):
            name, inside, _ = entry.path[skipped:].partition("/")
            whole = f"{folder}/{name}" if folder else name
            found[whole] = FileInfo(whole, bool(inside), None if inside else entry.size)
        return [found[name] for name in sorted(found)]

    @speaking_mlflow
    def _download_file(self, remote_file_path: str, local_path: str | os.PathLike[str]) -> None:
        self._files.copy(str(remote_file_path), Path(local_path))

    @speaking_mlflow
    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        self._files.delete(artifact_path or "")

    def _log_chunks(self, chunks: Iterator[bytes], artifact_file_name: str, artifact_path: str | None) -> None:
        verify_artifact_path(artifact_path)
        name = Path(artifact_file_name).name
        blob = self._place.registry.store.put(chunks)
        # The stream is gone: should the bytes be collected before their row is there, nobody can put them again.
        self._files.put({_joined(artifact_path, name): lambda: blob})

    def _put_file(self, file: Path) -> Put:
        # What a link points to is what is logged, as in MLflow's own repositories.
        real = file.resolve()
        if not real.is_file():
            raise refused(f"{file} is not a file")
        return lambda: self._place.registry.store.put_file(real)


def _joined(folder: str | None, name: str) -> str:
    return f"{folder}/{name}" if folder else name
