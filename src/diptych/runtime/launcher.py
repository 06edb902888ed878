"""`diptych launch`: torchrun with the options under which its restarts succeed.

torchrun starts the processes of a run, watches them and restarts all of them when one dies. In
addition, where a process ends with an error that the user must fix, nothing is restarted, and the
launcher prints the error once.
"""

import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from diptych.errors import EXIT_USER, ConfigError
from diptych.escaping import readable_lines
from diptych.runtime.devices import available_threads, divided
from diptych.runtime.world import LAUNCHER_PRINTS_ERRORS, STORE_PER_RESTART

if TYPE_CHECKING:
    from argparse import Namespace

    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

RESTARTS: Final = 3
SHUTDOWN_SECONDS: Final = 120  # in which processes may write a checkpoint before they are killed
_LOGGERS: Final = tuple(
    f"torch.distributed.elastic.multiprocessing.{name}"
    for name in ("api", "errors.error_handler", "subprocess_handler.subprocess_handler")
)


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
    os.environ.setdefault(STORE_PER_RESTART, "1")  # read by torchrun when it makes its store
    os.environ[LAUNCHER_PRINTS_ERRORS] = "1"
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousClosedError
    from torch.distributed.run import main

    more = prepare(options)
    try:
        with _user_errors_end_the_job():
            main([*options, *more, "--module", "diptych", *command])
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    except ChildFailedError as failed:
        return _print_failure(failed)
    except RendezvousClosedError:
        print("diptych: the job was ended on another machine, which says why.", file=sys.stderr)
        return 1
    return 0


def process_count(options: Sequence[str]) -> int | None:
    """How many processes will share the work; None where machines may come and go."""
    asked = _parsed(options)
    fewest, most = _machines(asked)
    return most * _processes_here(asked) if fewest == most else None


@contextmanager
def _user_errors_end_the_job() -> Iterator[None]:
    """Lets torchrun start nothing again that ended with ``EXIT_USER``, and frame none of it."""
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.launcher import api

    # torchrun has no hook for this; it looks up the class by its name when it starts.
    class Agent(LocalElasticAgent):
        def _monitor_workers(self, worker_group: Any) -> Any:
            found = super()._monitor_workers(worker_group)
            if any(one.exitcode == EXIT_USER for one in found.failures.values()):
                self._remaining_restarts = 0
            return found

    loggers = [logging.getLogger(name) for name in _LOGGERS]
    api.LocalElasticAgent = Agent  # type: ignore[attr-defined]
    for one in loggers:
        one.addFilter(_is_news)
    try:
        yield
    finally:
        api.LocalElasticAgent = LocalElasticAgent  # type: ignore[attr-defined]
        for one in loggers:
            one.removeFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line of torchrun's log is of something that the launcher does not print itself."""
    if record.name.endswith("error_handler"):  # on a file for a launcher above this one
        return False
    given = record.args if isinstance(record.args, tuple) else ()
    return "closing signal" not in str(record.msg) and given[:1] != (EXIT_USER,)


def _print_failure(failed: "ChildFailedError") -> int:
    """Prints why processes failed, and returns the exit code."""
    users = [one for one in failed.failures.values() if one.exitcode == EXIT_USER]
    for one in sorted(users, key=lambda failure: failure.timestamp):
        message: Any = one.message
        if isinstance(message, dict):  # else the process has printed it: wrong usage
            print(f"diptych: {readable_lines(message['message'])}", file=sys.stderr)
            break
    if users:
        return EXIT_USER
    print(failed, file=sys.stderr)
    code = failed.get_first_failure()[1].exitcode
    # Below zero it is the number of the signal that killed the process.
    return code if code > 0 else 128 - code


def prepare(options: Sequence[str]) -> list[str]:
    """Sets safe values in the environment, where the user has set none.

    torchrun reads an option that is not given from a variable, ``PET_`` and its name. So what is
    set there gives way to options, and to such variables that are set already, as the operators of
    Kubernetes do.

    Args:
        options: of torchrun, as given; wrong ones end the process with torchrun's own message.

    Returns:
        Options that are missing.

    Raises:
        ConfigError: several machines, and no place where they meet; or numbers that are none.
    """
    os.environ.setdefault("PET_MAX_RESTARTS", str(RESTARTS))
    if "TORCH_ELASTIC_SHUTDOWN_TIMEOUT" not in os.environ:
        os.environ.setdefault("PET_SHUTDOWN_TIMEOUT", str(SHUTDOWN_SECONDS))
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # as under nohup: torchrun would not
        os.environ.setdefault("PET_SIGNALS_TO_HANDLE", "SIGTERM,SIGINT,SIGQUIT")
    asked = _parsed(options)
    threads = divided(available_threads(), _processes_here(asked))
    # torchrun sets 1 for several processes where nothing is set, however many cores there are.
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    if asked.rdzv_endpoint:  # torchrun's own way, static, lets no machine come back
        os.environ.setdefault("PET_RDZV_BACKEND", "c10d")
    chosen = asked.rdzv_endpoint or asked.rdzv_backend not in ("static", "c10d")
    if asked.standalone or chosen or asked.master_port is not None:
        return []
    if _machines(asked)[1] > 1:
        raise ConfigError(
            f"--nnodes {asked.nnodes} says that there are several machines, but not where they "
            "meet: give --rdzv-endpoint HOST:PORT, the same on each, HOST being one of them that "
            "all others reach."
        )
    return ["--standalone"]


def _processes_here(asked: "Namespace") -> int:
    """How many processes torchrun's options ask for on this machine."""
    from torch.distributed.run import determine_local_world_size

    try:
        count = determine_local_world_size(asked.nproc_per_node)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"--nproc-per-node {asked.nproc_per_node}: {error} Wanted a number of processes, or "
            "gpu, cpu or auto."
        ) from error
    if count < 1:
        raise ConfigError(f"--nproc-per-node must be 1 or more; got {asked.nproc_per_node}.")
    return count


def _machines(asked: "Namespace") -> tuple[int, int]:
    """The fewest and the most machines that torchrun's options ask for."""
    from torch.distributed.run import parse_min_max_nnodes

    try:
        fewest, most = parse_min_max_nnodes(asked.nnodes)
    except (ValueError, RuntimeError):
        fewest, most = 0, 0
    if not 1 <= fewest <= most:
        raise ConfigError(
            f"--nnodes is a number of machines, or the fewest and the most, as 2:4; got "
            f"{asked.nnodes}."
        )
    return fewest, most


def _parsed(options: Sequence[str]) -> "Namespace":
    from torch.distributed.run import get_args_parser

    parser = get_args_parser()
    parser.prog = "diptych launch"
    return parser.parse_args([*options, "diptych"])
