"""The errors people meet. Every one says what, where, expected, found and what to do next.

`InputError` is raised before any work starts and ends a command with exit code 2; it is also a
`ValueError`. `RunError` means that work was started and did not end complete: exit code 1.
"""

from __future__ import annotations

from typing import Any


class UnetFlowsError(Exception):
    """Base of every error this project raises on purpose. `exit_code` is what a shell sees."""

    exit_code = 1

    def __init__(
        self,
        problem: str,
        *,
        where: object = None,
        expected: object = None,
        found: object = None,
        fix: str | None = None,
    ) -> None:
        self.problem = problem
        self.where = None if where is None else str(where)
        self.expected = None if expected is None else str(expected)
        self.found = None if found is None else str(found)
        self.fix = fix
        super().__init__(self.message())

    def message(self) -> str:
        """The error as a person reads it: one labelled fact per line."""
        facts = (
            ("where", self.where),
            ("expected", self.expected),
            ("found", self.found),
            ("to do", self.fix),
        )
        # A fact may be another error's message: its lines stand under its first one.
        indent = "\n" + 12 * " "
        lines = (f"  {name + ':':<10}{value}".replace("\n", indent) for name, value in facts if value)
        return "\n".join([self.problem, *lines])

    def as_dict(self) -> dict[str, str | None]:
        """The error as data, for `--json` documents and run records."""
        return {
            "kind": type(self).__name__,
            "problem": self.problem,
            "where": self.where,
            "expected": self.expected,
            "found": self.found,
            "to_do": self.fix,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors travel from Dask workers to the flow: an exception with keyword-only
        # arguments needs its own recipe for being rebuilt there.
        return _rebuild, (type(self), self.problem, self.where, self.expected, self.found, self.fix)


def _rebuild(
    kind: type[UnetFlowsError],
    problem: str,
    where: str | None,
    expected: str | None,
    found: str | None,
    fix: str | None,
) -> UnetFlowsError:
    return kind(problem, where=where, expected=expected, found=found, fix=fix)


class InputError(UnetFlowsError, ValueError):
    """What was asked for cannot be done as asked; nothing was started, nothing was written."""

    exit_code = 2


class HeldError(InputError):
    """Another run is at work on this output: nothing is wrong with what was asked, somebody else does it."""


class NoRoomError(InputError):
    """The disk is too small for this output: nothing is wrong with what was asked, but for the place."""


class RunError(UnetFlowsError):
    """Work was started and is not complete: some blocks failed or are missing."""


class DataError(RunError):
    """Stored data that a running block met is not usable (NaN, a corrupt chunk); the block fails by name."""


class LostLeaseError(RunError):
    """Another run owns the output now; what this one still does would not count, so it stops."""


class UnfitWorkerError(RunError):
    """This worker would compute other bits than the run was begun with; another one must do the block."""


class StoreError(RunError):
    """A store did not do what it must (full, read-only, unreachable, refused): no block's fault.

    The whole run stops on it, and can go on later.
    """
