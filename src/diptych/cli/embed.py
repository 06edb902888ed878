"""The verb that uses a run: `embed`."""

from collections.abc import Sequence

from diptych.runtime.world import read_world


def embed(arguments: Sequence[str]) -> None:
    """Write the features of any images to a folder of Parquet files, in shards.

    A shard is there whole or not at all; those that are there are skipped when started again. Of
    several processes each makes its share.

    Examples:
      diptych embed runs/photos photos/ -o features/
      diptych embed runs/photos photos/ -o features/ --shard 3/16
      diptych launch --nproc-per-node 8 -- embed runs/photos photos/ -o features/ --shards 64
    """
    from rich.console import Console

    from diptych.cli.flags import EmbedFlags, parse
    from diptych.embeddings.embed import embed_shards
    from diptych.embeddings.sharding import own_shards
    from diptych.embeddings.work import ShardLines
    from diptych.runtime.runtime import Runtime

    flags, here = parse(EmbedFlags, embed, arguments), read_world()
    shards = own_shards(flags.shard, flags.shards, here)
    lines = ShardLines(Console(quiet=flags.quiet, markup=False))
    with Runtime(threads=flags.threads) as runtime:
        for done in embed_shards(
            flags.run, flags.path, flags.out, shards, flags.settings(), runtime, lines
        ):
            lines.done(done)
