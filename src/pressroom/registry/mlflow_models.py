"""MLflow's model registry on Pressroom's: the plugin for `mlflow.set_registry_uri("pressroom://…")`.

A registered model is a name here and a model version is a version: both sides see what the other registered, with its
tags, description, run and aliases. Registering what is in the store already copies nothing. Aliases move under the
rules of `press promote` (the key is taken from PRESS_KEY), and what is aliased, deployed or a parent is not deleted.

Where the two differ, this side holds: equal files under one name are one version; a version holds no pickle; a name is
not changed; there are no stages.
"""

# Parts of MLflow are not annotated.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa
from mlflow.entities.model_registry import ModelVersion, ModelVersionTag, RegisteredModel, RegisteredModelTag
from mlflow.exceptions import MlflowException
from mlflow.prompt.constants import IS_PROMPT_TAG_KEY
from mlflow.prompt.registry_utils import add_prompt_filter_string
from mlflow.protos import databricks_pb2 as codes
from mlflow.store.artifact.utils.models import _parse_model_uri
from mlflow.store.entities.paged_list import PagedList
from mlflow.store.model_registry.abstract_store import AbstractStore
from mlflow.utils.search_utils import SearchModelUtils, SearchModelVersionUtils, SearchUtils

from pressroom.kernel import NotFoundError, PressroomError, is_name
from pressroom.kernel.settings import KEY_VARIABLE
from pressroom.registry import _mlflow_tables as tables
from pressroom.registry._mlflow_entities import STAGE, model_version, registered_models, rows_of_versions
from pressroom.registry._mlflow_errors import refused, speaking_mlflow
from pressroom.registry._mlflow_files import version_path
from pressroom.registry._mlflow_place import Place, opened
from pressroom.registry._mlflow_sources import files_of, refuse_pickles
from pressroom.registry.base import Version

_log = logging.getLogger(__name__)

WHY = "moved by a client of MLflow"
# Tags of a run, as pressroom.track writes them.
STARTED_FROM, MADE = "pressroom.started_from", "pressroom.version"
_MOST_RESULTS = 200_000


class PressroomModelRegistryStore(AbstractStore):
    """The registry of one workspace for MLflow's clients and its server."""

    @speaking_mlflow
    def __init__(self, store_uri: str | None = None, tracking_uri: str | None = None) -> None:
        super().__init__(store_uri, tracking_uri)
        self._tracking_uri = tracking_uri
        self._place: Place = opened(store_uri or "pressroom://")
        self._registry = self._place.registry
        self._database = self._place.workspace.database

    # Models: a name, and what MLflow says of it.

    @speaking_mlflow
    def create_registered_model(
        self,
        name: str,
        tags: Sequence[RegisteredModelTag] | None = None,
        description: str | None = None,
        deployment_job_id: str | None = None,
    ) -> RegisteredModel:
        if any(tag.key == IS_PROMPT_TAG_KEY for tag in tags or ()):
            raise refused("Pressroom's registry has models and no prompts: keep prompts in MLflow's own registry")
        if not isinstance(name, str) or not is_name(name) or "/" in name:
            raise refused(
                f"{name!r} cannot name a model: letters, digits, '.', '_' and '-', beginning with a letter or a digit"
            )
        now = time.time()
        with self._database.begin() as connection:
            if self._models(connection, name):
                raise refused(f"there is a model called {name!r} already", codes.RESOURCE_ALREADY_EXISTS)
            connection.execute(
                tables.models.insert().values(name=name, description=description or "", created=now, updated=now)
            )
            for tag in tags or ():
                _set_tag(connection, name, tag.key, tag.value)
        return self._model(name)

    @speaking_mlflow
    def update_registered_model(
        self, name: str, description: str | None, deployment_job_id: str | None = None
    ) -> RegisteredModel:
        with self._changing(name) as connection:
            same = tables.models.c.name == name
            connection.execute(tables.models.update().where(same).values(description=description or ""))
        return self._model(name)

    def rename_registered_model(self, name: str, new_name: str) -> RegisteredModel:
        raise refused(
            f"the name {name!r} is on record (history, references, deployments) and does not change: copy the versions "
            "to another name with copy_model_version, which copies no bytes, and delete these"
        )

    @speaking_mlflow
    def delete_registered_model(self, name: str) -> None:
        self._model(name)
        versions = self._versions(name)
        held = next((version for version in versions if version.aliases), None)
        if held is not None:
            raise refused(
                f"{name} cannot be removed: {name}:{held.aliases[0]} points to version {held.number}",
                codes.INVALID_STATE,
            )
        for version in reversed(versions):  # a child before its parent
            self._registry.delete(version.ref)
        with self._database.begin() as connection:
            for table in (tables.versions, tables.model_tags, tables.models):
                connection.execute(table.delete().where(table.c.name == name))

    @speaking_mlflow
    def search_registered_models(
        self,
        filter_string: str | None = None,
        max_results: int | None = None,
        order_by: Sequence[str] | None = None,
        page_token: str | None = None,
    ) -> PagedList[RegisteredModel]:
        with self._database.reading() as connection:
            found = registered_models(connection, self._registry.list())
        wanted = SearchModelUtils.filter(found, add_prompt_filter_string(filter_string, is_prompt=False))
        return _page(SearchModelUtils.sort(wanted, order_by), max_results, page_token)

    @speaking_mlflow
    def get_registered_model(self, name: str) -> RegisteredModel:
        return self._model(name)

    @speaking_mlflow
    def get_latest_versions(self, name: str, stages: Sequence[str] | None = None) -> list[ModelVersion]:
        self._model(name)
        if stages and STAGE.lower() not in {stage.lower() for stage in stages}:
            return []
        return [self._entity(version) for version in self._versions(name)[-1:]]

    @speaking_mlflow
    def set_registered_model_tag(self, name: str, tag: RegisteredModelTag) -> None:
        with self._changing(name) as connection:
            _set_tag(connection, name, tag.key, tag.value)

    @speaking_mlflow
    def delete_registered_model_tag(self, name: str, key: str) -> None:
        with self._changing(name) as connection:
            same = (tables.model_tags.c.name == name) & (tables.model_tags.c.tag == key)
            connection.execute(tables.model_tags.delete().where(same))

    # Versions.

    @speaking_mlflow
    def create_model_version(
        self,
        name: str,
        source: str,
        run_id: str | None = None,
        tags: Sequence[ModelVersionTag] | None = None,
        run_link: str | None = None,
        description: str | None = None,
        local_model_path: str | None = None,
        model_id: str | None = None,
    ) -> ModelVersion:
        self._model(name)
        copied, storage, run_id = self._resolved(source, run_id, model_id)
        if copied is None:
            files = files_of(self._place, storage, local=local_model_path, tracking_uri=self._tracking_uri)
            refuse_pickles(self._place, files)
            parent = self._parent(run_id)
            made = self._registry.register(
                name,
                files,
                kind="fine-tune" if parent else "base",
                parent=parent,
                source=f"mlflow:{source}",
                metadata={"format": "mlflow"},
                tags={tag.key: str(tag.value) for tag in tags or ()},
                description=description or "",
                run=run_id or "",
            )
        else:
            made = self._registry.register(
                name,
                copied.files,
                kind=copied.kind,
                parent=copied.parent,
                source=copied.source,
                metadata=copied.metadata,
                tags={tag.key: str(tag.value) for tag in tags or ()},
                description=description or "",
                run=run_id or copied.run,
                figures=copied.sheet,
            )
        with self._database.begin() as connection:
            same = (tables.versions.c.name == name) & (tables.versions.c.number == made.number)
            connection.execute(tables.versions.delete().where(same))
            connection.execute(
                tables.versions.insert().values(
                    name=name, number=made.number, source=source, run_link=run_link or "", model_id=model_id or ""
                )
            )
        if run_id:
            self._tell_run(run_id, made)
        return self._entity(made)

    @speaking_mlflow
    def update_model_version(self, name: str, version: int | str, description: str | None = None) -> ModelVersion:
        found = self._version(name, version)
        return self._entity(self._registry.annotate(found.ref, description=description or ""))

    def transition_model_version_stage(
        self, name: str, version: int | str, stage: str, archive_existing_versions: bool
    ) -> ModelVersion:
        raise refused(
            f"there are no stages here: set an alias instead, set_registered_model_alias({name!r}, {stage.lower()!r}, "
            f"{version})"
        )

    @speaking_mlflow
    def delete_model_version(self, name: str, version: int | str) -> None:
        self._registry.delete(self._version(name, version).ref)

    @speaking_mlflow
    def get_model_version(self, name: str, version: int | str) -> ModelVersion:
        return self._entity(self._version(name, version))

    @speaking_mlflow
    def get_model_version_download_uri(self, name: str, version: int | str) -> str:
        return self._place.uri(version_path(self._version(name, version)))

    @speaking_mlflow
    def search_model_versions(
        self,
        filter_string: str | None = None,
        max_results: int | None = None,
        order_by: Sequence[str] | None = None,
        page_token: str | None = None,
    ) -> PagedList[ModelVersion]:
        with self._database.reading() as connection:
            rows = rows_of_versions(connection)
        found = [model_version(version, rows) for version in self._registry.list()]
        wanted = SearchModelVersionUtils.filter(found, add_prompt_filter_string(filter_string, is_prompt=False))
        order = order_by or ["last_updated_timestamp DESC", "name ASC", "version_number DESC"]
        return _page(SearchModelVersionUtils.sort(wanted, order), max_results, page_token)

    @speaking_mlflow
    def set_model_version_tag(self, name: str, version: int | str, tag: ModelVersionTag) -> None:
        self._registry.annotate(self._version(name, version).ref, tags={tag.key: str(tag.value)})

    @speaking_mlflow
    def delete_model_version_tag(self, name: str, version: int | str, key: str) -> None:
        self._registry.annotate(self._version(name, version).ref, tags={key: None})

    # Aliases.

    @speaking_mlflow
    def set_registered_model_alias(self, name: str, alias: str, version: int | str) -> None:
        key = os.environ.get(KEY_VARIABLE) or None
        self._registry.promote(self._version(name, version).ref, alias, why=WHY, key=key)

    @speaking_mlflow
    def delete_registered_model_alias(self, name: str, alias: str) -> None:
        self._registry.demote(name, alias, why=WHY, key=os.environ.get(KEY_VARIABLE) or None)

    @speaking_mlflow
    def get_model_version_by_alias(self, name: str, alias: str) -> ModelVersion:
        for version in self._versions(name):
            if alias in version.aliases:
                return self._entity(version)
        raise NotFoundError(f"{name} has no alias {alias!r}", hint=f"Set one with: press promote {name}:N {alias}")

    # What these are made of.

    @contextmanager
    def _changing(self, name: str) -> Iterator[sa.Connection]:
        """A transaction in which the model has a row of its own, which notes the time."""
        self._model(name)
        now = time.time()
        with self._database.begin() as connection:
            same = tables.models.c.name == name
            if not connection.execute(tables.models.update().where(same).values(updated=now)).rowcount:
                connection.execute(tables.models.insert().values(name=name, description="", created=now, updated=now))
            yield connection

    def _models(self, connection: sa.Connection, name: str) -> list[RegisteredModel]:
        return registered_models(connection, self._versions(name), name)

    def _model(self, name: str) -> RegisteredModel:
        with self._database.reading() as connection:
            found = self._models(connection, name)
        if not found:
            raise NotFoundError(f"there is no model called {name!r}", hint="search_registered_models lists them.")
        return found[0]

    def _versions(self, name: str) -> Sequence[Version]:
        try:
            return self._registry.list(name)
        except NotFoundError:
            return ()

    def _version(self, name: str, version: int | str) -> Version:
        """By its number: an alias is no version to MLflow."""
        for found in self._versions(name):
            if str(found.number) == str(version):
                return found
        raise NotFoundError(f"there is no version {version} of a model {name!r}", hint="`press list` shows them.")

    def _entity(self, version: Version) -> ModelVersion:
        with self._database.reading() as connection:
            rows = rows_of_versions(connection, version.name)
        return model_version(version, rows)

    def _resolved(
        self, source: str, run_id: str | None, model_id: str | None
    ) -> tuple[Version | None, str, str | None]:
        """The version that is copied, or where the files are; and the run that made them."""
        if urlsplit(source).scheme == "models":
            parsed = _parse_model_uri(source)
            if parsed.model_id is None:
                found = self._version(parsed.name or "", parsed.version or "")
                return found, "", run_id or found.run or None
            model_id = parsed.model_id
        if model_id is None:
            return None, source, run_id
        logged = self._tracking().get_logged_model(model_id)
        storage = logged.artifact_location if urlsplit(source).scheme == "models" else source
        return None, storage, run_id or logged.source_run_id

    def _parent(self, run_id: str | None) -> str | None:
        """The digest of the version that the run started from, where the run says so and it is here."""
        if not run_id:
            return None
        try:
            said = self._tracking().get_run(run_id).data.tags.get(STARTED_FROM)
            return self._registry.get(said).digest if said else None
        except (MlflowException, PressroomError) as error:
            _log.warning("what run %s started from is not known here: %s", run_id, error)
            return None

    def _tell_run(self, run_id: str, version: Version) -> None:
        """The run says which version it made, too. The version is registered whether or not it can be told."""
        try:
            self._tracking().set_tag(run_id, MADE, str(version.ref))
        except MlflowException as error:
            _log.warning("run %s could not be told that it made %s: %s", run_id, version.ref, error)

    def _tracking(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self._tracking_uri)


def _set_tag(connection: sa.Connection, name: str, key: str, value: Any) -> None:
    same = (tables.model_tags.c.name == name) & (tables.model_tags.c.tag == key)
    text = "" if value is None else str(value)
    if not connection.execute(tables.model_tags.update().where(same).values(value=text)).rowcount:
        connection.execute(tables.model_tags.insert().values(name=name, tag=key, value=text))


def _page(found: Sequence[Any], most: int | None, token: str | None) -> PagedList[Any]:
    if not isinstance(most, int) or not 1 <= most <= _MOST_RESULTS:
        raise refused(f"max_results is {most!r}: expected 1 to {_MOST_RESULTS}")
    start = SearchUtils.parse_start_offset_from_page_token(token)
    end = start + most
    return PagedList([*found[start:end]], SearchUtils.create_page_token(end) if end < len(found) else None)
