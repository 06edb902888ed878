"""The verb `launch`: `pretrain` or `embed` in many processes."""

import inspect
from collections.abc import Sequence

from diptych.cli.embed import EmbedFlags, embed
from diptych.cli.flags import explicit_settings, parse
from diptych.cli.pretrain import PretrainFlags, pretrain
from diptych.errors import ConfigError


def launch(arguments: Sequence[str]) -> None:
    """Pretrain or embed in several processes started by torchrun, and restart them when one dies.

    Usage: diptych launch [TORCHRUN'S OPTIONS] -- pretrain|embed ARGUMENTS

    A process that dies makes torchrun start all of them again, three times at most. A run goes on
    from the last checkpoint: --out is needed, --resume is added; embed skips the shards that are
    finished. `torchrun --help` lists its options; docs/launching.md says what several machines and
    schedulers need. Exits as the verb does: 143 when SIGTERM stopped a run after it was saved.

    Examples:
      diptych launch --nproc-per-node 2 -- pretrain photos/ --out runs/photos
      diptych launch --nnodes 2 --rdzv-endpoint node1:29400 -- pretrain photos/ --out /shared/run
      diptych launch --nproc-per-node 8 -- embed runs/photos photos/ -o features/ --shards 64
    """
    from diptych.runtime.launcher import split_arguments, start

    if list(arguments) in (["-h"], ["--help"], ["--help-all"]):
        print(inspect.cleandoc(launch.__doc__ or ""))
        raise SystemExit(0)
    options, (verb, *given) = split_arguments(arguments)
    # What is wrong is said once, before any process starts.
    if verb == "pretrain":
        given += _check_pretrain(options, given)
    elif verb == "embed":
        _check_embed(options, given)
    else:
        raise ConfigError(
            f"diptych launch runs pretrain or embed in several processes; got {verb!r}."
        )
    code = start(options, [verb, *given])
    if code:
        raise SystemExit(code)


def _check_pretrain(options: Sequence[str], given: Sequence[str]) -> list[str]:
    """Refuses what no process could do; returns what is missing of the command."""
    from diptych.pretraining import check_before_start
    from diptych.runtime.launcher import process_count

    flags = parse(PretrainFlags, pretrain, given)
    if flags.out is None:
        raise ConfigError(
            "diptych launch needs pretrain's --out RUN: a restart goes on with the run there."
        )
    check_before_start(
        explicit_settings(flags, given),
        out=flags.out,
        config_file=flags.config,
        processes=process_count(options),
    )
    return [] if flags.resume else ["--resume"]


def _check_embed(options: Sequence[str], given: Sequence[str]) -> None:
    """The same of a command that embeds."""
    from diptych.embeddings.embed import check_before_start
    from diptych.embeddings.shards import own_shards
    from diptych.runtime.launcher import process_count
    from diptych.runtime.world import World

    flags = parse(EmbedFlags, embed, given)
    shards = own_shards(flags.shard, flags.shards, World(count=process_count(options) or 1))
    check_before_start(
        flags.source,
        flags.path,
        flags.out,
        shards,
        encoder=flags.encoder,
        side_pixels=flags.side,
    )
