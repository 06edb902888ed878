"""Vectors of a folder, and the images nearest to one of them.

    python examples/embed_and_search.py runs/photos photos/ vectors.parquet --row 0

The source is a run, an encoder file or weights of another library. Vectors of length one make the
dot product the cosine, so NumPy is all that a search of some thousand images needs.
"""

import argparse

import numpy as np

import diptych


def main() -> None:
    """Embeds what is not embedded yet, and prints the nearest images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="run folder, encoder file or other weights")
    parser.add_argument("images", help="anything that `diptych pretrain` takes")
    parser.add_argument("out", help="the file of vectors: .parquet, .npy or .csv")
    parser.add_argument("--row", type=int, default=0, help="which image to search for")
    parser.add_argument("--k", type=int, default=5, help="how many to print")
    given = parser.parse_args()
    vectors = diptych.read_vectors(diptych.embed(given.source, given.images, given.out))
    unit = vectors.features / np.linalg.norm(vectors.features, axis=1, keepdims=True)
    cosines = unit @ unit[given.row]
    order = np.argsort(-cosines, kind="stable")
    print(f"nearest to {vectors.names[given.row]}:")
    # Not the first away: a copy of the image is as near as itself.
    for row in order[order != given.row % len(unit)][: given.k]:
        print(f"  {cosines[row]:.4f}  {vectors.names[row]}")


if __name__ == "__main__":
    main()
