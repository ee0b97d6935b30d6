"""`unet-flows`: each command a thin way into a flow or a core function. Imports nothing heavy by itself."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import typer

from flows.cli.app import app
from flows.suggestions import did_you_mean, quoted
from flows.supervise import INTERRUPTED, InterruptionError, supervised
from unet_core.errors import InputError, UnetFlowsError

# They register their commands, and --help lists these in the order of registration.
# ruff: isort: off
from flows.cli import making  # noqa: F401
from flows.cli import watching  # noqa: F401
from flows.cli import looking  # noqa: F401
from flows.cli import asking  # noqa: F401
from flows.cli import exchanging  # noqa: F401
from flows.cli import deploying  # noqa: F401
from flows.cli import joining  # noqa: F401
# ruff: isort: on

__all__ = ["app", "main", "run"]

# The terminal shows our progress and our errors; Prefect's log lines go to its API and UI.
os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")


def main() -> None:
    """The console script. Exit codes: 0 done, 1 partial or failed, 2 bad input, 130 interrupted."""
    sys.exit(supervised(run))


def run() -> int:
    """Run the command in `sys.argv` in this process; returns its exit code."""
    try:
        code = _run()
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough; typer ends a command so, too, without a word
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def _run() -> int:
    try:
        code = app(standalone_mode=False)
    except typer.TyperException as error:
        return _fail(InputError(_said(error), fix="unet-flows --help, or COMMAND --help"))
    except InterruptionError as error:
        return _interrupted(str(error))
    except UnetFlowsError as error:
        return _fail(error)
    if code == INTERRUPTED:  # typer turns KeyboardInterrupt into this
        return _interrupted("interrupted")
    return code if isinstance(code, int) else 0


def _said(error: typer.TyperException) -> str:
    """What typer says, with the choice that a misspelt value is nearest to."""
    text = error.format_message().replace("Value error, ", "")
    if " is not one of " not in text:
        return text
    given, choices = (quoted(part) for part in text.split(" is not one of "))
    return text.rstrip(".") + did_you_mean(given[-1], choices)


def _fail(error: UnetFlowsError) -> int:
    document: dict[str, Any] = getattr(error, "document", None) or {"command": _command(), "status": "failed"}
    if "--json" in sys.argv:
        print(json.dumps({**document, "error": error.as_dict()}, indent=1))
    elif "stages" in document:
        from flows.summary.runs import print_run

        print_run(document)
    elif "volumes" in document:
        from flows.summary.watching import print_watch

        print_watch(document)
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code


def _interrupted(told: str) -> int:
    if "--json" in sys.argv:
        print(json.dumps({"command": _command(), "status": "interrupted"}, indent=1))
    print(told, file=sys.stderr)
    return INTERRUPTED


def _command() -> str:
    return sys.argv[1] if len(sys.argv) > 1 else ""
