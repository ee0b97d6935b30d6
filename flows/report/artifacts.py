"""What Prefect shows of a training: its curve, its metrics as a table, pictures of validations.

Pictures are Markdown artifacts with the picture inside, as a data URI: both of Prefect 3.8's user interfaces
show those. Its image artifacts want a URL that a browser can reach, which a folder is not, and print the URL
beneath the picture, which a data URI is too long for.
"""

from __future__ import annotations

import base64
import contextvars
import io
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

import httpx
from PIL import Image

_EVERY = 1.0  # seconds between two requests at the least
_EVERY_RETRY = 30.0  # seconds until a server that did not answer is asked again
_LAST_WORDS = 5.0  # seconds that the end of a run waits for a server
_WIDEST = 1400  # pixels: what is shown is stored in Prefect's database

Data = str | list[dict[str, Any]]


class TrainingArtifacts:
    """Artifacts of one run, each made once and updated from then on; a context manager, used inside a run.

    All methods return at once: a thread talks to the server, at most once a second, and of each artifact only
    the latest state waits. A server that is gone costs artifacts, never the run; it is asked again later.

    Parameters
    ----------
    name
        Part of the artifacts' keys, such as the model's name: lower-case letters, digits and dashes remain.
    """

    def __init__(self, name: str) -> None:
        self._suffix = "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower()).strip("-")
        self._made: dict[str, UUID] = {}
        self._waiting: dict[str, Callable[[], tuple[Data, str]]] = {}
        self._changed = threading.Condition()
        self._stopping = False
        # The thread speaks for the task or flow run that it was started in.
        run = contextvars.copy_context().run
        self._thread = threading.Thread(target=run, args=(self._run,), name="artifacts", daemon=True)
        self._thread.start()

    def __enter__(self) -> TrainingArtifacts:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def show_curve(self, png: bytes, text: str) -> None:
        """The training curve (`records.curve_png`); `text` is one line of Markdown, such as the best."""
        self._show("curve", lambda: (f"{text}\n\n![training curve]({_data_uri(png)})", text))

    def show_metrics(self, rows: Sequence[Mapping[str, Any]], text: str) -> None:
        """One line per validation (`TrainingRow.to_dict`)."""
        cells = [{name: _cell(value) for name, value in row.items()} for row in rows]
        self._show("metrics", lambda: (cells, text))

    def show_pictures(self, png: bytes, text: str) -> None:
        """Validation pictures (`picture_png`)."""
        self._show("validation", lambda: (f"{text}\n\n![validation]({_data_uri(png)})", text))

    def stop(self) -> None:
        """Wait, but not for long, until the latest states are shown; harmless when done twice."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout=_LAST_WORDS)

    def _show(self, kind: str, content: Callable[[], tuple[Data, str]]) -> None:
        with self._changed:
            self._waiting[kind] = content
            self._changed.notify()

    def _run(self) -> None:
        retry_at = 0.0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting) or self._stopping)
                if not self._waiting:
                    return
                kind = next(iter(self._waiting))
                content = self._waiting.pop(kind)
            if time.monotonic() < retry_at:
                continue
            try:
                self._publish(kind, *content())
            except httpx.HTTPError:
                retry_at = time.monotonic() + _EVERY_RETRY
            with self._changed:
                self._changed.wait_for(lambda: self._stopping, timeout=_EVERY)

    def _publish(self, kind: str, data: Data, description: str) -> None:
        from prefect.artifacts import create_markdown_artifact, create_table_artifact
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.actions import ArtifactUpdate

        if kind in self._made:
            with get_client(sync_client=True) as client:
                # The server keeps a table as text, as Prefect's own function sends it.
                stored = data if isinstance(data, str) else json.dumps(data)
                client.update_artifact(self._made[kind], ArtifactUpdate(data=stored, description=description))
            return
        key = f"{kind}-{self._suffix}".strip("-")
        made: Any
        if isinstance(data, str):
            made = create_markdown_artifact(data, key=key, description=description)
        else:
            made = create_table_artifact(data, key=key, description=description)
        self._made[kind] = made


def _data_uri(png: bytes) -> str:
    """The picture, made smaller where it is wide; a JPEG where that is smaller by much."""
    with Image.open(io.BytesIO(png)) as opened:
        picture = opened.convert("RGB")
    if picture.width > _WIDEST:
        picture = picture.resize(
            (_WIDEST, round(picture.height * _WIDEST / picture.width)), Image.Resampling.LANCZOS
        )
        data = io.BytesIO()
        picture.save(data, format="PNG", optimize=True)
        png = data.getvalue()
    compact = io.BytesIO()
    picture.save(compact, format="JPEG", quality=85)
    kind, content = ("jpeg", compact.getvalue()) if 2 * compact.tell() < len(png) else ("png", png)
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _cell(value: Any) -> Any:
    return "" if value is None else round(value, 5) if isinstance(value, float) else value
