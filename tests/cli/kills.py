"""A labelling that is killed at random moments and started again, by other numbers of processes."""

import random
import signal
import time
from pathlib import Path

from command_line import finished, start_ranks, wait_for


def killed_again_and_again(
    options: tuple[object, ...], out: Path, kills: int, most_ranks: int, most_items: int, seed: int = 0
) -> dict[str, int]:
    """Starts `label` on up to `most_ranks` processes and kills one, `kills` times; what is finished in the end.

    The others of them are ended as torchrun does, a moment later. Nothing that was finished may be lost or done again.
    """
    moments = random.Random(seed)
    before: dict[str, int] = {}
    for attempt in range(kills):
        ranks = moments.randint(1, most_ranks)
        commands = start_ranks(ranks, *options, "--out", out, folder=out.parent / "printed" / str(attempt))
        if attempt % 3:  # else while it starts
            wait_for(out, len(before) + moments.randint(1, most_items))
        time.sleep(moments.uniform(0, 0.02))
        victim = commands.pop(moments.randrange(ranks))
        victim.send(signal.SIGKILL)
        time.sleep(moments.uniform(0, 0.05))
        for other in commands:
            other.send(signal.SIGTERM)
            other.end()
        assert victim.end().code == -signal.SIGKILL
        after = finished(out)
        assert before.items() <= after.items(), "a finished item was lost or done again"
        before = after
    return before
