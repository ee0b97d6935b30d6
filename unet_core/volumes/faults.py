"""What goes wrong between us and a store: raw errors of obstore and the system told apart, and retried.

obstore tells missing objects and refused access by types, everything else by texts. S3's answers hold key
ids and strings to sign, so a message takes from them only the status, S3's code and S3's one sentence.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from obstore.exceptions import AlreadyExistsError, BaseError

from unet_core.errors import InputError, StoreError

T = TypeVar("T")

_AGAIN = "give the same command again when that is mended: it goes on where it stopped"
_ROOM = "make room, then give the same command again: it goes on where it stopped"
_CREDENTIALS = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN"
_RIGHTS = "get the right to read and write there, or other credentials (AWS_*)"
_PLACE = "check the bucket's name, AWS_ENDPOINT_URL and AWS_REGION"

# By the number of the operating system: obstore gives it as text, "(os error 28)".
_LOCAL = {
    errno.ENOSPC: ("the disk is full", _ROOM),
    errno.EDQUOT: ("the disk quota is used up", _ROOM),
    errno.EROFS: ("the file system is read-only", f"mount it for writing; {_AGAIN}"),
    errno.EACCES: ("permission denied", f"get the right to read and write there; {_AGAIN}"),
    errno.EPERM: ("permission denied", f"get the right to read and write there; {_AGAIN}"),
    errno.EMFILE: ("too many open files", f"raise the limit (ulimit -n); {_AGAIN}"),
    errno.EFBIG: ("the file is larger than this file system or process may write", _AGAIN),
    errno.EIO: ("the disk cannot be read or written", f"check the disk; {_AGAIN}"),
}
# By S3's code, which says more than the status.
_CODES = {
    "NoSuchBucket": ("this bucket does not exist", _PLACE),
    "RequestTimeTooSkewed": ("the store refuses this machine's time", "check the clock of this machine"),
    "SignatureDoesNotMatch": ("the store does not accept these credentials", _CREDENTIALS),
    "InvalidAccessKeyId": ("the store does not accept these credentials", _CREDENTIALS),
    "InvalidToken": ("the store does not accept these credentials", _CREDENTIALS),
    "ExpiredToken": ("these credentials have expired", f"get new ones; {_AGAIN}"),
}
_PASSING_CODES = {"RequestTimeout", "SlowDown", "OperationAborted", "ConditionalRequestConflict"}
_PASSING_STATUS = {408, 429, 500, 502, 503, 504}

# What S3 would have answered for a single object.
_STATUS = {"AccessDenied": 403, "InternalError": 500, "SlowDown": 503, "ServiceUnavailable": 503}


@dataclass(frozen=True)
class Fault:
    """A raw error as people read it. `passing`: the next try may succeed."""

    problem: str
    found: str
    fix: str
    passing: bool = False


def is_missing(error: Exception) -> bool:
    """Whether an object is not there, in a bucket or folder that is."""
    if isinstance(error, FileNotFoundError):
        return "<Code>NoSuchBucket</Code>" not in str(error)
    return _os_number(error) == errno.ENOTDIR


def is_there(error: Exception) -> bool:
    """Whether a conditional put says that the object exists, not that two requests met on their way."""
    fault = explain(error)
    return isinstance(error, AlreadyExistsError) and not (fault and fault.passing)


def explain(error: Exception) -> Fault | None:
    """What went wrong with the store; None for what is no fault of the store.

    Codecs raise OSError too (gzip, bz2), without a number. A range beyond an object's end means that the
    object is not what its reader was told: damage.
    """
    text = str(error)
    first = text.splitlines()[0] if text else type(error).__name__
    number = _os_number(error)
    if not isinstance(error, BaseError | OSError) or "Requested range was invalid" in first:
        return None
    if "169.254.169.254" in first:  # where obstore asks for credentials when the environment has none
        return Fault("no credentials for this store", "none in the environment", _CREDENTIALS)
    if answer := re.search(r"non-2xx status code: (\d+) ?([^:\n]*)", text):
        return _answered(int(answer[1]), answer[2], _between(text, "Code"), _between(text, "Message"))
    if failed := re.search(r"request failed for key .*: (.*) \(code: (\w+)\)", first):  # one of a batch
        return _answered(_STATUS.get(failed[2], 400), "in a batch", failed[2], failed[1])
    if "HTTP error" in first:
        return _unreachable(text)
    if "redirect" in first:
        return Fault("the store lies in another region", scrub(first), _PLACE)
    if number is not None:
        problem, fix = _LOCAL.get(number, ("the file system refuses this", _AGAIN))
        return Fault(problem, f"{os.strerror(number)} (os error {number})", fix)
    if isinstance(error, BaseError):
        return Fault("the store refuses this", scrub(first), _PLACE)
    return None


def _answered(status: int, reason: str, code: str, message: str) -> Fault | None:
    found = scrub(f"{status} {reason}" + (f", {code}: {message}" if code else ""))
    if status == 416:
        return None
    if code in _CODES:
        return Fault(_CODES[code][0], found, _CODES[code][1])
    if status == 507 or code in ("QuotaExceeded", "XMinioStorageFull"):
        return Fault("the store is full", found, _ROOM)
    if status in _PASSING_STATUS or code in _PASSING_CODES:
        return Fault("the store keeps failing", found, _AGAIN, passing=True)
    if status in (401, 403):
        return Fault("the store refuses access", found, _RIGHTS)
    return Fault("the store refuses this", found, _PLACE)


def _unreachable(text: str) -> Fault:
    causes = re.findall(r'(?:message|error): "([^"]+)"', text)
    cause = causes[-1] if causes else "the connection broke"
    if "TimedOut" in text or "kind: Timeout" in text:
        cause = "no answer in time"
    host = re.search(r"https?://(?:[^/\s@]*@)?([^/\s?,]+)", text)
    found = scrub(f"{host[1]}: {cause}" if host else cause)
    return Fault(
        "this store cannot be reached",
        found,
        f"check the network and AWS_ENDPOINT_URL; {_AGAIN}",
        passing=True,
    )


def _between(text: str, tag: str) -> str:
    found = re.search(f"<{tag}>([^<]*)</{tag}>", text)
    return found[1] if found else ""


def _os_number(error: Exception) -> int | None:
    if isinstance(error, OSError) and error.errno:
        return error.errno
    if not isinstance(error, BaseError | OSError):
        return None
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def scrub(text: str) -> str:
    """The first line of a text, short, without credentials and without the queries of URLs."""
    line = re.sub(r"\?[^\s,]*=[^\s,]*", "", text.splitlines()[0] if text else "")
    for name, value in os.environ.items():
        if len(value) > 3 and re.search(r"^(AWS|AZURE|GOOGLE)_.*(KEY|SECRET|TOKEN)", name):
            line = line.replace(value, "***")
    return line if len(line) <= 300 else f"{line[:297]}..."


@contextmanager
def reached(where: str) -> Iterator[None]:
    """Faults of a store as StoreError; what is no fault of the store passes unchanged."""
    try:
        yield
    except (BaseError, OSError) as error:
        raise _store_error(error, where) from None


@contextmanager
def before_work() -> Iterator[None]:
    """For what is looked at before work starts: a store that fails is an input that cannot be used.

    The StoreError stays as the cause, for who knows that work has started long since.
    """
    try:
        yield
    except StoreError as error:
        raise InputError(
            error.problem, where=error.where, expected=error.expected, found=error.found, fix=error.fix
        ) from error


def patience() -> float:
    """Seconds for which a remote store is tried again. UNET_FLOWS_RETRY_SECONDS; default: three minutes."""
    text = os.environ.get("UNET_FLOWS_RETRY_SECONDS", "180")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 24 * 3600:
        raise InputError("this is no number of seconds", where="UNET_FLOWS_RETRY_SECONDS", found=repr(text))
    return seconds


def pauses(seconds: float) -> Iterator[float]:
    """Waits between tries, growing and random; they end when `seconds` have passed since the first one."""
    end, longest = time.monotonic() + seconds, 0.1
    while (left := end - time.monotonic()) > 0:
        yield min(left, random.uniform(longest / 2, longest))
        longest = min(2 * longest, 5.0)


def persist(attempt: Callable[[], T], where: str, waits: Iterator[float]) -> T:
    """Do something with a store, again after passing faults for as long as there are waits.

    obstore repeats by itself what is safe to repeat, but neither conditional puts nor posts (deletes), nor
    what breaks in the body of a listing; and its ten tries are over in three seconds when a server is away.

    Raises
    ------
    StoreError
        A fault that does not pass, or not in time. What is no fault of the store keeps obstore's own error.
    """
    while True:
        try:
            return attempt()
        except (BaseError, OSError) as error:
            pause = next_pause(error, where, waits)
        time.sleep(pause)


async def persist_async(attempt: Callable[[], Awaitable[T]], where: str, waits: Iterator[float]) -> T:
    """`persist` on an event loop."""
    while True:
        try:
            return await attempt()
        except (BaseError, OSError) as error:
            pause = next_pause(error, where, waits)
        await asyncio.sleep(pause)


def next_pause(error: Exception, where: str, waits: Iterator[float]) -> float:
    """How long to wait before the next try; raises where there is none to be made."""
    fault = explain(error)
    if fault is not None and fault.passing and (pause := next(waits, None)) is not None:
        return pause
    raise _store_error(error, where) from None


def _store_error(error: Exception, where: str) -> Exception:
    fault = explain(error)
    if fault is None:
        return error
    return StoreError(fault.problem, where=where, found=fault.found, fix=fault.fix)
