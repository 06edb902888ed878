"""How old the keys of a queue are at each step, as the queue itself has them."""

from typing import Any, Final

import numpy as np
import torch
from _style import BLUE, RED, panels

from diptych import KeyQueue

SIZE: Final = 12
BATCH: Final = 3
STEPS: Final = 14


def draw() -> Any:
    """Left: each row of a queue, step by step. Right: chance level of the loss as it fills."""
    figure, (rows, chance) = panels(2, height=2.9, widths=(3, 2))
    queue, ages = KeyQueue(SIZE, 1), np.full((SIZE, STEPS), np.nan)
    filled = []
    for step in range(STEPS):
        filled.append(queue.filled)
        queue.enqueue(torch.full((BATCH, 1), float(step)))  # a key that says when it came
        held = queue.negatives[:, 0].numpy()
        ages[: len(held), step] = step - held
    mesh = rows.pcolormesh(ages, cmap="viridis_r", edgecolors="white", lw=1.5)
    rows.set(title=f"a queue of {SIZE}, batches of {BATCH}", xlabel="step", ylabel="row")
    rows.spines[:].set_visible(False)
    figure.colorbar(mesh, ax=rows, label="age of the key, steps", ticks=range(SIZE // BATCH))
    chance.plot(np.log1p(filled), color=BLUE, marker="o", ms=4)
    chance.axhline(np.log1p(SIZE), color=RED, lw=1, ls="--")
    chance.text(STEPS - 1, np.log1p(SIZE) - 0.06, "log(1 + 12)", color=RED, ha="right", va="top")
    chance.set(title="loss if all keys look the same", xlabel="step", ylabel="nats", ylim=(0, None))
    return figure
