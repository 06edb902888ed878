"""Where the studies meet two protocols that are made elsewhere: the only places to connect them.

Until they are connected they measure nothing, and the pages say so.
"""

from concurrent.futures import Executor

from diptych.configs import RunConfig
from diptych.evaluation.probes import Labelled
from diptych.run_folder import RunFolder


def transformation_accuracies(
    folder: RunFolder, config: RunConfig, labelled: Labelled, executor: Executor
) -> dict[str, float]:
    """Of the invariance study: accuracy of probes that predict the applied transformation.

    Args:
        folder: of the run: its encoder and head.
        config: of the run.
        labelled: images to fit probes on and to measure them on.
        executor: its threads make views.

    Returns:
        Shares named ``TASK_LAYER``, as ``color_h`` and ``color_g``, for each of
        ``invariance.TASKS`` before (h) and after (g) the head.
    """
    del folder, config, labelled, executor  # evaluation.transformations.transformation_probes
    return {}


def supervised_accuracy(
    config: RunConfig, labelled: Labelled, executor: Executor
) -> dict[str, float]:
    """Of the size study: accuracy of a supervised run with the same network and budget.

    Args:
        config: of the unlabelled run: encoder, epochs, batch and seed are its.
        labelled: images to learn from and to measure on.
        executor: its threads make views.

    Returns:
        A share named ``supervised``.
    """
    del config, labelled, executor  # evaluation.supervised
    return {}
