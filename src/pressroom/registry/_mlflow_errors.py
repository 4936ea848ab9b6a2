"""Pressroom's errors as MLflow's, so that MLflow's clients and its server's answers know what they mean."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2 as codes

from pressroom.kernel import AccessError, InUseError, LockedError, NotFoundError, PressroomError, StoreError
from pressroom.registry.base import PromotionError

P = ParamSpec("P")
T = TypeVar("T")

_CODES: tuple[tuple[type[PressroomError], int], ...] = (
    (NotFoundError, codes.RESOURCE_DOES_NOT_EXIST),
    (AccessError, codes.PERMISSION_DENIED),
    (PromotionError, codes.INVALID_PARAMETER_VALUE),
    (InUseError, codes.INVALID_STATE),
    (LockedError, codes.TEMPORARILY_UNAVAILABLE),
    (StoreError, codes.INTERNAL_ERROR),
)


def as_mlflow(error: PressroomError) -> MlflowException:
    code = next((code for kind, code in _CODES if isinstance(error, kind)), codes.INVALID_PARAMETER_VALUE)
    return MlflowException(f"{error.message}. {error.hint}" if error.hint else error.message, error_code=code)


def refused(message: str, code: int = codes.INVALID_PARAMETER_VALUE) -> MlflowException:
    return MlflowException(message, error_code=code)


def speaking_mlflow(method: Callable[P, T]) -> Callable[P, T]:
    """Let a method raise MLflow's errors."""

    @functools.wraps(method)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(*args, **kwargs)
        except PressroomError as error:
            raise as_mlflow(error) from error

    return wrapped
