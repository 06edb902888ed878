"""Killed at random moments while a checkpoint is written: the newest is good, or the one before.

As a script it saves without end into the folder that it is given.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from diptych.checkpoints.save_and_load import list_checkpoints, load_newest
from diptych.checkpoints.saver import Saver
from diptych.checkpoints.state import RunState
from diptych.config.run import CheckpointConfig
from diptych.runs.folder import Identity

KILLS = 24

RUN = Identity("0" * 32, "runs/test")


def save_without_end(folder: Path, begun_after: int) -> None:
    """Saves all the time, while the state says in every number which step it is of."""
    method: Any = nn.Linear(700, 700)
    state = RunState(method, torch.optim.SGD(method.parameters()), step=begun_after)
    parent = os.getppid()
    with Saver(folder, RUN, CheckpointConfig(every_seconds=0.0), print) as saver:
        while os.getppid() == parent:  # nobody is left to kill it otherwise
            state.step += 1
            with torch.no_grad():
                for parameter in method.parameters():
                    parameter.fill_(state.step)
            if saver.is_due():
                saver.begin(state)
            assert saver.error is None


def kill_again_and_again(folder: Path) -> None:
    """Forks, kills, and looks what is there; prints how often a write was cut off."""
    moments, cut_off, step, kept = random.Random(11), 0, 0, 0
    for _ in range(KILLS):
        child = os.fork()
        if child == 0:
            save_without_end(folder, step)
            os._exit(1)
        left = set(folder.glob(".*.aside"))  # by the one before
        while set(folder.glob(".*.aside")) <= left:  # until it writes
            time.sleep(0.001)
        time.sleep(moments.uniform(0.0, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        cut_off += any(folder.glob(".*.aside"))
        found = load_newest(folder, RUN, sys.exit)  # none is damaged
        if found is None:
            assert step == 0, "all are gone"
            continue
        tensors, scalars = found
        assert scalars["step"] >= step, "an older one than before"
        step = scalars["step"]
        for name in ("method/weight", "method/bias"):
            assert bool((tensors[name] == step).all()), "of several steps"
        # One more each time that it is killed before the oldest is removed.
        before, kept = kept, len(list_checkpoints(folder))
        assert 1 <= kept <= max(3, before + 1)
    print(cut_off, step)


@pytest.mark.slow
def test_killed_while_it_writes(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path / "checkpoints")],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    cut_off, step = map(int, done.stdout.split())
    assert cut_off >= KILLS // 8, "the kills came when nothing was written"
    assert step > 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    kill_again_and_again(Path(sys.argv[1]))
