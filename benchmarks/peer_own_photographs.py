"""The same minutes for lightly-train and for diptych, on one folder of photographs.

lightly-train's licence is the AGPL, so it stays in an environment of its own:

    python benchmarks/peer_own_photographs.py SET --python PYTHON
    python benchmarks/peer_own_photographs.py SET --python PYTHON --weights FILE --encoder NAME

SET has `train/CLASS` and `test/CLASS`. lightly-train runs its `simclr` with the settings that it
has by itself (views of 224 pixels, batch 128), on ResNet-18 or on the network of the weights, for
as many epochs as fit: one and two epochs are timed first, which is not counted. Its `distillation`
needs the weights of a DINOv2 teacher: name a file with `--teacher`. What it exports is measured as
a frozen encoder on the same images as ours, by the same kNN and linear classifier.
"""

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from command_line_runs import diptych
from measuring import Figure, add_arguments, publish
from peers.environments import runner_environment

MINUTES, MINUTES_QUICK = 10.0, 1.0
SIDE = 224
# Run by the other environment: out, images, network, epochs, method, weights or "", teacher or "".
_PEER = """
import sys
import lightly_train

out, images, name, epochs, method, weights, teacher = sys.argv[1:]
model = "torchvision/resnet18"
if weights:
    import timm
    from safetensors.torch import load_file
    model = timm.create_model(name, pretrained=False)
    print(model.load_state_dict(load_file(weights), strict=False))
arguments = {"method_args": {"teacher_weights": teacher}} if teacher else {}
lightly_train.pretrain(
    out=out, data=images, model=model, method=method, epochs=int(epochs), overwrite=True,
    accelerator="cpu", devices=1, num_workers=2, **arguments,
)
"""


def peer(python: str, out: Path, epochs: int, *arguments: str) -> float:
    """A run of the other library; its seconds."""
    images, name, method, weights, teacher = arguments
    command = [python, "-c", _PEER, str(out), images, name, str(epochs), method, weights, teacher]
    begun = time.monotonic()
    silent = subprocess.DEVNULL
    variables = runner_environment()  # without usage events
    subprocess.run(command, check=True, stdout=silent, stderr=silent, env=variables)
    return time.monotonic() - begun


def fitting_epochs(python: str, scratch: Path, seconds: float, arguments: Sequence[str]) -> int:
    """Epochs that end with the time, by the time of one and of two."""
    one, two = (peer(python, scratch / "timed", epochs, *arguments) for epochs in (1, 2))
    return max(1, int((seconds - one) / max(1e-3, two - one)) + 1)


def main() -> None:
    """Both libraries, one after the other."""
    parser = add_arguments(__doc__)
    parser.add_argument("images", type=Path, help="a folder with train/CLASS and test/CLASS")
    parser.add_argument("--python", required=True, help="of the environment with lightly-train")
    parser.add_argument("--method", default="simclr", choices=("simclr", "distillation"))
    parser.add_argument("--weights", help="as `pretrain --weights` takes them, for both")
    parser.add_argument("--encoder", default="resnet18", help="of the weights, a name of timm")
    parser.add_argument("--teacher", default="", help="weights of the teacher of distillation")
    parser.add_argument("--minutes", type=float)
    parser.add_argument(
        "--ours", type=Path, help="a run of so many minutes that is there, by own_photographs.py"
    )
    flags = parser.parse_args()
    minutes = flags.minutes or (MINUTES_QUICK if flags.quick else MINUTES)
    begin = ["--weights", flags.weights, "--encoder", flags.encoder] if flags.weights else []
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        ours = scratch / "ours"
        if flags.ours is not None:
            shutil.copytree(flags.ours, ours)
        else:
            command = diptych("pretrain", str(flags.images), "--minutes", str(minutes), *begin)
            subprocess.run([*command, "--out", str(ours), "--quiet"], check=True)
        weights = str(ours / "start.safetensors") if begin else ""
        given = [str(flags.images / "train"), flags.encoder, flags.method, weights, flags.teacher]
        epochs = fitting_epochs(flags.python, scratch, 60 * minutes, given)
        seconds = peer(flags.python, scratch / "theirs", epochs, *given)
        print(f"lightly-train: {epochs} epochs in {seconds / 60:.1f} minutes")
        exported = scratch / "theirs" / "exported_models" / "exported_last.pt"
        theirs = scratch / "theirs.safetensors"
        named = ["--encoder", flags.encoder, "--side", str(SIDE), "--out", str(theirs)]
        subprocess.run(diptych("import", str(exported), *named), check=True)
        subprocess.run(diptych("evaluate", str(ours), "--against", str(theirs)), check=True)
        found: dict[str, Any] = json.loads((ours / "evaluation.json").read_text())
    publish(
        [
            Figure(
                f"{probe}: ours less theirs", found[probe]["trained"] - found[probe][str(theirs)], 0
            )
            for probe in ("knn", "linear")
        ],
        f"{flags.images.name}, {minutes:g} minutes each",
        flags.json,
    )


if __name__ == "__main__":
    main()
