"""Many processes, one experiment: each draws a shard of the pictures.

Pictures are passed on in files, so processes exchange lists of work and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from typing import Any

import torch.distributed as dist

from asddim_lib.errors import check


@dataclass(frozen=True)
class Shard:
    """Every `count`-th piece of work, from `number` on.

    With `together`, all the shards run now, as one process group.
    """

    number: int = 0
    count: int = 1
    together: bool = False

    @property
    def judges(self) -> bool:
        """Whether this process judges all pictures: the first of a group, or the only one."""
        return self.count == 1 or (self.together and self.number == 0)

    @property
    def speaks(self) -> bool:
        """Whether this process prints: in a group, only the first one."""
        return self.number == 0 or not self.together

    def share(self, work: Sequence[Any]) -> Sequence[Any]:
        """This process's part of a list of work that is the same in all processes."""
        return work[self.number :: self.count]

    def deal(self, work: list[Any]) -> list[Any]:
        """Gathers the remaining work (sortable) of all processes, and redistributes it in turn."""
        if not self.together:
            return work
        shares: list[Any] = [None] * self.count
        dist.all_gather_object(shares, work)
        return list(self.share(sorted(chain.from_iterable(shares))))

    def part(self) -> None:
        """Waits for every process of the group, and ends the group.

        Judging is for one process, and torchmetrics would sum over a group.
        """
        if self.together:
            dist.barrier()
            dist.destroy_process_group()

    def device(self, name: str) -> str:
        """The device of this process, where the user asks for `name`: each has a GPU of its own."""
        own = self.together and name == "cuda"
        return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if own else name


#: All the work, in one process.
ALONE = Shard()


@contextmanager
def joined(text: str = "") -> Iterator[Shard]:
    """The shard that `text` names, such as 0/4.

    Without a text, it is this process's place in the group that torchrun or accelerate launch
    made, or else all the work. Raises WrongUse for a text that names no shard, or one in a group.
    """
    count = int(os.environ.get("WORLD_SIZE", 1))
    if text:
        number, _, of = text.partition("/")
        right = number.isdecimal() and of.isdecimal() and int(number) < int(of)
        check(right, "shard", text, "give NUMBER/COUNT, numbered from 0, such as 0/4")
        what = f"{text} in a group of {count} processes"
        check(count == 1, "shard", what, "leave it out: the group shares the work")
        yield Shard(int(number), int(of))
    elif count == 1:
        yield ALONE
    else:
        # On CPUs: only lists of batches pass. A wait lasts as long as the others draw.
        dist.init_process_group("gloo", timeout=timedelta(days=30))
        try:
            yield Shard(dist.get_rank(), count, together=True)
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
