"""The verbs `embed`, the features of any images; and `launch`, that or `pretrain` in processes."""

import inspect
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

from rich.console import Console
from tyro.conf import Positional, arg

from diptych.cli.flags import DeviceOptions, explicit_settings, parse
from diptych.cli.pretrain import PretrainFlags, pretrain
from diptych.config.downstream import EmbedSettings
from diptych.errors import ConfigError
from diptych.runtime.world import read_world


@dataclass(frozen=True)
class EmbedFlags:
    """What `diptych embed` takes."""

    source: Positional[str]
    """A run folder whose training has ended, an encoder file, or weights. Any weights that
    --weights of `diptych pretrain` takes."""
    path: Positional[str]
    """Images, as for `diptych pretrain`; of those with a held-out part, the others."""
    out: Annotated[Path, arg(aliases=["-o"])]
    """A folder, or one file that ends in .parquet, .npy or .csv. The folder is the same for all
    shards."""
    encoder: str | None = None
    """The network that weights from elsewhere are of, as torchvision or timm call it; found from
    them where their names and shapes show it."""
    side: int | None = None
    """Height and width in pixels of the images that a network of weights from elsewhere sees."""
    shard: str | None = None
    """Make one shard only, i/N, counted from 0: for a task of a job array."""
    shards: int | None = None
    """Split the whole into this many, of which each process takes its share. One for each process
    of torchrun when not given."""
    settings: Annotated[EmbedSettings, arg(name="")] = field(default_factory=EmbedSettings)
    runtime: Annotated[DeviceOptions, arg(name="")] = field(default_factory=DeviceOptions)
    quiet: bool = False
    """Show nothing but errors."""


def embed(arguments: Sequence[str]) -> None:
    """Write the features of any images to a folder of Parquet files in shards, or to one file.

    Given again, images whose checksum is there keep their vectors: only new ones are embedded, and
    those of images that are gone are dropped. Several processes divide the shards of a folder.

    Examples:
      diptych embed runs/photos photos/ -o features/
      diptych embed pretrained photos/ --encoder resnet18 -o features.npy
      diptych embed runs/photos photos/ -o features/ --shard 3/16
      diptych launch --nproc-per-node 8 -- embed runs/photos photos/ -o features/ --shards 64
    """
    flags, here = parse(EmbedFlags, embed, arguments), read_world()

    from diptych.embeddings.embed import embed_images
    from diptych.embeddings.embed_progress import PrintedProgress
    from diptych.embeddings.shards import own_shards
    from diptych.models.start import open_encoder
    from diptych.runtime.devices import Runtime

    shards = own_shards(flags.shard, flags.shards, here)
    lines = PrintedProgress(Console(quiet=flags.quiet, markup=False))
    opened = open_encoder(flags.source, encoder=flags.encoder, side_pixels=flags.side)
    for sentence in opened.sentences:
        lines.say(sentence)
    with Runtime(
        **asdict(flags.runtime),
        batch_size=flags.settings.batch_size,
        processes=here.local_count,
    ) as runtime:
        for done in embed_images(
            flags.source, opened, flags.path, flags.out, shards, flags.settings, runtime, lines
        ):
            lines.done(done)


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
    flags = parse(PretrainFlags, pretrain, given)

    from diptych.pretraining import check_before_start
    from diptych.runtime.launcher import process_count

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
    flags = parse(EmbedFlags, embed, given)

    from diptych.embeddings.embed import check_before_start
    from diptych.embeddings.shards import own_shards
    from diptych.runtime.launcher import process_count
    from diptych.runtime.world import World

    shards = own_shards(flags.shard, flags.shards, World(count=process_count(options) or 1))
    check_before_start(
        flags.source,
        flags.path,
        flags.out,
        shards,
        encoder=flags.encoder,
        side_pixels=flags.side,
    )
