"""The verb `embed`: the features of any images, in Parquet files."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

from rich.console import Console
from tyro.conf import Positional, arg

from diptych.cli.flags import DeviceOptions, parse
from diptych.config.downstream import EmbedSettings
from diptych.runtime.world import read_world


@dataclass(frozen=True)
class EmbedFlags:
    """What `diptych embed` takes."""

    run: Positional[Path]
    """A run folder whose training has ended, or its encoder.safetensors."""
    path: Positional[str]
    """Images, as for `diptych pretrain`; of those with a held-out part, the others."""
    out: Annotated[Path, arg(aliases=["-o"])]
    """The folder of the embeddings, the same for all shards."""
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
    """Write the features of any images to a folder of Parquet files, in shards.

    Finished shards are skipped when the command is given again. Several processes divide the
    shards.

    Examples:
      diptych embed runs/photos photos/ -o features/
      diptych embed runs/photos photos/ -o features/ --shard 3/16
      diptych launch --nproc-per-node 8 -- embed runs/photos photos/ -o features/ --shards 64
    """
    from diptych.embeddings.embed import PrintedShardProgress, embed_shards
    from diptych.embeddings.shards import own_shards
    from diptych.runtime.devices import Runtime

    flags, here = parse(EmbedFlags, embed, arguments), read_world()
    shards = own_shards(flags.shard, flags.shards, here)
    lines = PrintedShardProgress(Console(quiet=flags.quiet, markup=False))
    with Runtime(
        **asdict(flags.runtime),
        batch_size=flags.settings.batch_size,
        processes=here.local_count,
    ) as runtime:
        for done in embed_shards(
            flags.run, flags.path, flags.out, shards, flags.settings, runtime, lines
        ):
            lines.done(done)
