"""Learning rates as pure functions of the config and the step."""

import math

from diptych.config.method import KeyEncoderConfig
from diptych.config.run import OptimizerConfig, ScheduleConfig


def peak_learning_rate(config: OptimizerConfig, batch_size: int) -> float:
    """The highest rate of a run (SimCLR, appendix B.1; Goyal et al. 2017).

    ``linear``: learning_rate x batch / 256. ``square_root``: learning_rate x sqrt(batch).
    ``none``: learning_rate.

    Example:
        >>> peak_learning_rate(OptimizerConfig(learning_rate=0.3), 4096)
        4.8
    """
    if config.scaling == "linear":
        return config.learning_rate * batch_size / 256
    if config.scaling == "square_root":
        return config.learning_rate * math.sqrt(batch_size)
    return config.learning_rate


def learning_rate(
    config: ScheduleConfig, *, peak: float, step: int, steps_per_epoch: int, total_steps: int
) -> float:
    """The rate of one step: a line up to the peak, then down as the config says.

    Args:
        config: length of the warm-up, and what comes after.
        peak: see ``peak_learning_rate``.
        step: counted from 0.
        steps_per_epoch: turns the warm-up's epochs into steps.
        total_steps: of the run.

    Returns:
        The rate. The warm-up's last step has the peak; a cosine's last step is still above zero.
    """
    warmup_steps = min(round(config.warmup_epochs * steps_per_epoch), total_steps // 2)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if config.kind == "step":
        passed = sum(step >= round(drop * total_steps) for drop in config.step.drops)
        return float(peak * config.step.factor**passed)
    if config.kind == "constant":
        return peak
    return peak * _falling((step - warmup_steps) / (total_steps - warmup_steps))


def encoder_momentum(config: KeyEncoderConfig, *, step: int, total_steps: int) -> float:
    """What the momentum encoder keeps at a step (MoCo v3, section 4; BYOL, appendix A).

    ``cosine``: 1 - (1 - m) (cos(pi step / total) + 1) / 2, which ends at 1.
    """
    if config.momentum_schedule == "constant":
        return config.momentum
    return 1.0 - (1.0 - config.momentum) * _falling(step / total_steps)


def _falling(progress: float) -> float:
    """Half a cosine from 1 to 0."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))
