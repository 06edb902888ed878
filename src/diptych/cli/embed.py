"""The verb `embed`: the features of any images, in Parquet files or one file of another form."""

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

    source: Positional[str]
    """The encoder: a run folder whose training has ended, an encoder file, or any weights that
    --weights of `diptych pretrain` takes."""
    path: Positional[str]
    """Images, as for `diptych pretrain`; of those with a held-out part, the others."""
    out: Annotated[Path, arg(aliases=["-o"])]
    """A folder, the same for all shards; or one file that ends in .parquet, .npy or .csv."""
    encoder: str | None = None
    """Of weights from elsewhere: the network that they are of, as torchvision or timm call it;
    found from them where their names and shapes show it."""
    side: int | None = None
    """Of weights from elsewhere: height and width in pixels of the images that it shall see."""
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
    from diptych.embeddings.embed import embed_images
    from diptych.embeddings.embed_progress import PrintedProgress
    from diptych.embeddings.shards import own_shards
    from diptych.models.start import open_encoder
    from diptych.runtime.devices import Runtime

    flags, here = parse(EmbedFlags, embed, arguments), read_world()
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
