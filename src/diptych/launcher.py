"""Starts a command in several processes by torch's own launcher, so that restarts work.

torchrun starts the processes of a run, watches them and starts all of them again when one dies.
What it needs for that to succeed is set here; nothing of it is our own.
"""

import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from diptych.errors import ConfigError
from diptych.hardware import available_threads, divided
from diptych.launch import CURE

if TYPE_CHECKING:
    from argparse import Namespace

RESTARTS: Final = 3
SHUTDOWN_SECONDS: Final = 120  # in which processes that were told to stop may write a checkpoint


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divides arguments at ``--``: torchrun's options before it, a command behind it.

    Raises:
        ConfigError: there is no ``--``, or nothing behind it.

    Example:
        >>> split_arguments(["--nproc-per-node", "2", "--", "pretrain", "photos/"])
        (['--nproc-per-node', '2'], ['pretrain', 'photos/'])
    """
    given = list(arguments)
    here = given.index("--") if "--" in given else len(given)
    options, command = given[:here], given[here + 1 :]
    if not command:
        raise ConfigError(
            "diptych launch takes torchrun's options, then --, then a verb with its arguments: "
            "diptych launch --nproc-per-node 2 -- pretrain photos/ --out runs/photos"
        )
    return options, command


def start(options: Sequence[str], command: Sequence[str]) -> int:
    """Runs a command of diptych in as many processes as torchrun's options say.

    Signals that come to this process are passed on by torchrun, which then waits until all
    processes have stopped.

    Args:
        options: of torchrun.
        command: a verb and its arguments.

    Returns:
        0 when all processes ended well; 128 + n when signal n stopped this process, or killed the
        first that failed; else the exit code of the first that failed.

    Raises:
        ConfigError: several machines, and no place where they meet.
    """
    os.environ.setdefault(CURE, "1")  # read by torchrun when it makes its store
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    more = prepare(options)
    try:
        main([*options, *more, "--module", "diptych", *command])
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    except ChildFailedError as failed:
        print(failed, file=sys.stderr)
        code = failed.get_first_failure()[1].exitcode
        return code if code > 0 else 128 - code
    return 0


def prepare(options: Sequence[str]) -> list[str]:
    """Sets what is safe, in the environment, where the user has said nothing.

    torchrun reads an option that is not given from a variable, ``PET_`` and its name. So what is
    set there gives way to options, and to such variables that are set already, as the operators of
    Kubernetes do.

    Args:
        options: of torchrun, as given; wrong ones end the process with torchrun's own message.

    Returns:
        Options that are missing.

    Raises:
        ConfigError: several machines, and no place where they meet.
    """
    from torch.distributed.run import determine_local_world_size, parse_min_max_nnodes

    os.environ.setdefault("PET_MAX_RESTARTS", str(RESTARTS))
    if "TORCH_ELASTIC_SHUTDOWN_TIMEOUT" not in os.environ:
        os.environ.setdefault("PET_SHUTDOWN_TIMEOUT", str(SHUTDOWN_SECONDS))
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # as under nohup: torchrun would not
        os.environ.setdefault("PET_SIGNALS_TO_HANDLE", "SIGTERM,SIGINT,SIGQUIT")
    asked = _parsed(options)
    local = determine_local_world_size(asked.nproc_per_node)
    os.environ.setdefault("OMP_NUM_THREADS", str(divided(available_threads(), local)))
    if asked.rdzv_endpoint:  # torchrun's own way, static, lets no machine come back
        os.environ.setdefault("PET_RDZV_BACKEND", "c10d")
    chosen = asked.rdzv_endpoint or asked.rdzv_backend not in ("static", "c10d")
    if asked.standalone or chosen or asked.master_port is not None:
        return []
    if parse_min_max_nnodes(asked.nnodes)[1] > 1:
        raise ConfigError(
            f"--nnodes {asked.nnodes} says that there are several machines, but not where they "
            "meet: give --rdzv-endpoint HOST:PORT, the same on each, HOST being one of them that "
            "all others reach."
        )
    return ["--standalone"]


def _parsed(options: Sequence[str]) -> "Namespace":
    from torch.distributed.run import get_args_parser

    parser = get_args_parser()
    parser.prog = "diptych launch"
    return parser.parse_args([*options, "diptych"])
