"""Have a worker compute something before the blocks begin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from distributed import CancelledError, Client, KilledWorker

from unet_core.errors import RunError, UnetFlowsError

T = TypeVar("T")


def ask(client: Client, function: Callable[..., T], *arguments: Any) -> T:
    """What one worker answers.

    Raises
    ------
    UnetFlowsError
        What the function raised, or that the workers cannot run it.
    """
    try:
        answer = client.submit(_answer, function, *arguments, pure=False).result()
    except (KilledWorker, CancelledError) as error:
        raise RunError(
            "the workers died before the first block",
            found=f"{type(error).__name__}: {function.__name__}",
            fix="look at their logs: often they have too little memory",
        ) from None
    if isinstance(answer, UnetFlowsError):
        raise answer
    result: T = answer
    return result


def _answer(function: Callable[..., Any], *arguments: Any) -> Any:
    """An error as a value: raised, it would take along its causes, and not all of them can travel."""
    try:
        return function(*arguments)
    except UnetFlowsError as error:
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)
