"""How many blocks travel together: tiny ones share a future, slow ones travel alone, the last are shared out.

A future costs about 2 ms and 11 kB in Dask. A batch carries a second or two of work, so that this vanishes
beside it, and no more, so that a worker's death, a stop or a progress bar never wait for long. Where a stage
reads ahead and writes behind across the blocks of a future (`Work.stream`), batches are longer: the
pipeline fills and drains once in each.

    blocks left    1000 ................ 100 ....... 8 . 1     of 1 ms each, 2 workers
    in a batch      125                   13         1   1     at most its share: nobody idles at the end
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import islice

from unet_core.geometry import ceil_div

MOST = 256  # blocks in a batch, however small
_AIM = 1.5  # seconds of a batch
_AIM_STREAMED = 20.0
_FIRST, _FIRST_STREAMED = 1, 16  # blocks, before anything is known of their time
_OVERTIME = 1.5  # times the aim, after which a batch begins no more of its blocks: they were misjudged
_SHARES = 4  # for each worker: two batches in the window, each half of what there is for it


class Batches:
    """Hands out the blocks that wait, without listing them, in batches of a size learned on the way."""

    def __init__(self, waiting: Iterable[int], count: int, *, streamed: bool) -> None:
        """`count` blocks come from `waiting`."""
        self._waiting = iter(waiting)
        self._returned: deque[int] = deque()
        self._left = count
        self._aim = _AIM_STREAMED if streamed else _AIM
        self._first = _FIRST_STREAMED if streamed else _FIRST
        self._per_block: float | None = None

    @property
    def limit(self) -> float:
        """Seconds after which a batch begins no more of its blocks, and gives them back untried."""
        return self._aim * _OVERTIME

    def learn(self, blocks: int, seconds: float) -> None:
        """A batch of so many blocks took so long."""
        if blocks > 0:
            now = seconds / blocks
            self._per_block = now if self._per_block is None else (self._per_block + now) / 2

    def take(self, workers: int) -> list[int]:
        """The next batch; empty where no block waits."""
        size = self._size(max(1, workers))
        batch = [self._returned.popleft() for _ in range(min(size, len(self._returned)))]
        batch += islice(self._waiting, size - len(batch))
        self._left -= len(batch)
        return batch

    def put_back(self, indices: Iterable[int]) -> None:
        """Blocks that were taken and not tried: they come next."""
        before = len(self._returned)
        self._returned.extend(indices)
        self._left += len(self._returned) - before

    def _size(self, workers: int) -> int:
        wanted = self._first if self._per_block is None else int(self._aim / max(self._per_block, 1e-9))
        return max(1, min(wanted, MOST, ceil_div(self._left, _SHARES * workers)))
