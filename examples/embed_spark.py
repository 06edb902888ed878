"""Vectors of a Parquet table of images with Spark: a pandas UDF in every Python worker.

    python examples/embed_spark.py runs/photos images.parquet vectors/

The table has a column `image` of bytes; its other columns are kept. On a cluster (`spark-submit`),
table, encoder and output lie where all machines see them. docs/scale.md says when to use it.
"""

import argparse
import os
import sys

import pandas as pd
from pyspark.sql import SparkSession
from pyspark.sql.functions import pandas_udf

from diptych import Embedder


def main() -> None:
    """Reads images, writes vectors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="run folder, encoder file or other weights")
    parser.add_argument("table", help="Parquet file or folder of images")
    parser.add_argument("out", help="folder of Parquet files to write")
    given = parser.parse_args()
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # for workers on this machine
    spark = SparkSession.builder.getOrCreate()
    # One thread: Spark runs one Python worker for each core.
    embedder = Embedder(given.source, threads=1)

    @pandas_udf("array<float>")
    def vector(images: pd.Series) -> pd.Series:
        return pd.Series(list(embedder(images)))

    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", "256")
    table = spark.read.parquet(given.table)
    table.withColumn("feature", vector("image")).drop("image").write.parquet(given.out)
    spark.stop()


if __name__ == "__main__":
    main()
