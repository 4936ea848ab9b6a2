"""Models and versions of the registry as MLflow's entities."""

# Parts of MLflow are not annotated.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import sqlalchemy as sa
from mlflow.entities.model_registry import ModelVersion, ModelVersionTag, RegisteredModel
from mlflow.entities.model_registry.registered_model_alias import RegisteredModelAlias
from mlflow.entities.model_registry.registered_model_tag import RegisteredModelTag

from pressroom.registry import _mlflow_tables as tables
from pressroom.registry.base import Version

# Stages are MLflow's aliases of old: everything is in this one.
STAGE = "None"


def milliseconds(at: float) -> int:
    return int(at * 1000)


def rows_of_versions(
    connection: sa.Connection, name: str | None = None
) -> dict[tuple[str, int], sa.Row[tuple[object]]]:
    query = sa.select(tables.versions)
    rows = connection.execute(query if name is None else query.where(tables.versions.c.name == name))
    return {(row.name, row.number): row for row in rows}


def model_version(version: Version, rows: Mapping[tuple[str, int], sa.Row[tuple[object]]]) -> ModelVersion:
    row = rows.get((version.name, version.number))
    return ModelVersion(
        name=version.name,
        # As MLflow's own database has it: a number, so that searches compare it as one.
        version=version.number,  # type: ignore[arg-type]
        creation_timestamp=milliseconds(version.created),
        last_updated_timestamp=milliseconds(version.created),
        description=version.description or None,
        current_stage=STAGE,
        source=row.source if row is not None else version.source,
        run_id=version.run or None,
        run_link=(row.run_link or None) if row is not None else None,
        tags=[ModelVersionTag(tag, value) for tag, value in version.tags.items()],
        aliases=list(version.aliases),
        model_id=(row.model_id or None) if row is not None else None,
    )


def registered_models(
    connection: sa.Connection, versions: Sequence[Version], name: str | None = None
) -> list[RegisteredModel]:
    """Models that MLflow made and names that have versions, in the order of their names."""

    def of(table: sa.Table) -> Iterable[sa.Row[tuple[object]]]:
        query = sa.select(table)
        return connection.execute(query if name is None else query.where(table.c.name == name))

    rows = rows_of_versions(connection, name)
    said = {row.name: row for row in of(tables.models)}
    tags: dict[str, list[RegisteredModelTag]] = {}
    for tag in of(tables.model_tags):
        tags.setdefault(tag.name, []).append(RegisteredModelTag(tag.tag, tag.value))
    by_name: dict[str, list[Version]] = {}
    for version in versions:
        by_name.setdefault(version.name, []).append(version)
    found = []
    for each in sorted({*said, *by_name}):
        own = by_name.get(each, [])
        row = said.get(each)
        times = [*((row.created, row.updated) if row is not None else ()), *(version.created for version in own)]
        found.append(
            RegisteredModel(
                name=each,
                creation_timestamp=milliseconds(min(times)),
                last_updated_timestamp=milliseconds(max(times)),
                description=(row.description or None) if row is not None else None,
                latest_versions=[model_version(own[-1], rows)] if own else [],
                tags=tags.get(each, []),
                aliases=[RegisteredModelAlias(alias, str(v.number)) for v in own for alias in v.aliases],
            )
        )
    return found
