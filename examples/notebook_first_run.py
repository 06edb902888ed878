# %% [markdown]
# # A first run, cell by cell
#
# From built-in photographs to an encoder, its figures, and the nearest neighbours of an image.
# It takes some two minutes on two cores. Nothing is downloaded. To use your own images, set
# `IMAGES` to a folder.

# %%
import os
from pathlib import Path

import numpy as np
import torch

import diptych

IMAGES = os.environ.get("DIPTYCH_IMAGES", "photographs")
RUN = Path("runs/notebook")
EPOCHS = int(os.environ.get("DIPTYCH_EPOCHS", "8"))

# %% [markdown]
# ## Train
#
# SimCLR with the smallest network. The folder holds settings, metrics, checkpoints and the encoder.

# %%
run = diptych.pretrain(IMAGES, recipe="simclr", scale="tiny", epochs=EPOCHS, out=RUN, quiet=True)
sorted(path.name for path in run.iterdir())

# %% [markdown]
# ## Measure
#
# By the 20 nearest neighbours and by a linear classifier, beside the untrained network and raw
# pixels. That needs labels; a folder of your own has them if it holds one for each class.

# %%
try:
    found = diptych.evaluate(run)
except diptych.DiptychError as error:
    print(f"Not measured: {error}")
else:
    for probe in ("knn", "linear"):
        print(probe, {encoder: f"{share:.1%}" for encoder, share in found[probe].items()})

# %% [markdown]
# ## Vectors
#
# One row for each image. Vectors of length one make the dot product the cosine.

# %%
encoder = diptych.load_encoder(run)
features = diptych.extract_features(encoder, IMAGES)
unit = torch.nn.functional.normalize(features, dim=1)
cosines = (unit @ unit[0]).numpy()
order = np.argsort(-cosines, kind="stable")
nearest = order[order != 0][:5]
print(features.shape, nearest, cosines[nearest].round(3))

# %% [markdown]
# ## The report
#
# One page that opens without a network.

# %%
diptych.write_report(run)
