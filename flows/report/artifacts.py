"""What Prefect shows of a run: of a training its curve, its metrics as a table, pictures of validations;
of a watch its volumes; of what has ended a report.

Pictures are Markdown artifacts with the picture inside, as a data URI: both of Prefect 3.8's user interfaces
show those. Its image artifacts want a URL that a browser can reach, which a folder is not, and print the URL
beneath the picture, which a data URI is too long for.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self
from uuid import UUID

from PIL import Image

from flows.publishing import Publisher

_MOST_ROWS = 1000
_OF_VOLUME = ("volume", "state", "reason", "seconds")
_WIDEST = 1400  # pixels: what is shown is stored in Prefect's database

Data = str | list[dict[str, Any]]
Content = Callable[[], tuple[Data, str]]  # made in the thread: pictures are encoded anew


class _Artifacts:
    """Artifacts of one run, each made once and updated from then on; a context manager, used inside a run.

    All methods return at once: a `Publisher` talks to the server.

    Parameters
    ----------
    name
        Part of the artifacts' keys, such as the model's name: lower-case letters, digits and dashes remain.
    """

    def __init__(self, name: str) -> None:
        self._suffix = "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower()).strip("-")
        self._made: dict[str, UUID] = {}
        self._publisher = Publisher(self._publish)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Wait, but not for long, until the latest states are shown; harmless when done twice."""
        self._publisher.stop()

    def _show_table(self, kind: str, cells: list[dict[str, Any]], text: str) -> None:
        self._publisher.show(kind, lambda: (cells, text))

    def _publish(self, kind: str, content: Content) -> None:
        from prefect.artifacts import create_markdown_artifact, create_table_artifact
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.actions import ArtifactUpdate

        data, description = content()
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


class TrainingArtifacts(_Artifacts):
    """Of a training."""

    def show_curve(self, png: bytes, text: str) -> None:
        """The training curve (`records.curve_png`); `text` is one line of Markdown, such as the best."""
        self._publisher.show("curve", lambda: (f"{text}\n\n![training curve]({data_uri(png)})", text))

    def show_metrics(self, rows: Sequence[Mapping[str, Any]], text: str) -> None:
        """One line per validation (`TrainingRow.to_dict`)."""
        cells = [{name: _cell(value) for name, value in row.items()} for row in rows]
        self._show_table("metrics", cells, text)

    def show_pictures(self, png: bytes, text: str) -> None:
        """Validation pictures (`picture_png`)."""
        self._publisher.show("validation", lambda: (f"{text}\n\n![validation]({data_uri(png)})", text))


class ClosingArtifacts(_Artifacts):
    """Of a run that has ended."""

    def show_report(self, markdown: str, text: str) -> None:
        self._publisher.show("report", lambda: (markdown, text))

    def show_failures(self, failures: Sequence[Mapping[str, Any]], text: str) -> None:
        """One line per block that failed."""
        self._show_table("failures", [dict(failure) for failure in failures], text)


class WatchArtifacts(_Artifacts):
    """Of a watch."""

    def show_volumes(self, volumes: Sequence[Mapping[str, Any]], text: str) -> None:
        """One line per volume, as a watch's document has them."""
        cells = [{name: _cell(volume[name]) for name in _OF_VOLUME} for volume in volumes[:_MOST_ROWS]]
        left_out = f" (the first {_MOST_ROWS:,} of {len(volumes):,})" if len(volumes) > _MOST_ROWS else ""
        self._show_table("volumes", cells, text + left_out)


def data_uri(png: bytes) -> str:
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
