"""Vectors of a Parquet table of images with Ray Data: each actor loads the encoder once.

    python examples/embed_ray.py runs/photos images.parquet vectors/

The table has a column `image` (bytes, or a struct with bytes); its other columns are kept. On a
cluster, table, encoder and output lie where all machines see them. docs/scale.md says when to use
it.
"""

import argparse

import ray

from diptych import Embedder


def main() -> None:
    """Reads images, writes vectors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="run folder, encoder file or other weights")
    parser.add_argument("table", help="Parquet file or folder of images")
    parser.add_argument("out", help="folder of Parquet files to write")
    parser.add_argument("--actors", type=int, default=1, help="processes that embed")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each")
    given = parser.parse_args()
    vectors = ray.data.read_parquet(given.table).map_batches(
        Embedder,
        fn_constructor_kwargs={"source": given.source, "threads": given.threads},
        batch_size=256,
        concurrency=given.actors,
        num_cpus=given.threads,
    )
    vectors.write_parquet(given.out)


if __name__ == "__main__":
    main()
