"""Every path of a device checked, and ResNet-50 at 224 pixels measured on it; see gpu.sh.

Each result is written as soon as it is there, so that a later failure or the end of the time loses
nothing. Checks say `right`, `wrong`, `not decided` (two runs of one kind differ already), `failed`
(with the error) or `not run` (and why).

    python benchmarks/gpu.py RESULTS           # on the GPU
    python benchmarks/gpu.py --toy RESULTS     # on the CPU, small
"""

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

NEEDED: Final = {
    "torch": "torch",
    "torchvision": "torchvision",
    "numpy": "numpy",
    "numba": "numba",
    "PIL": "pillow",
    "safetensors": "safetensors",
    "simplejpeg": "simplejpeg",
    "rich": "rich",
    "jaxtyping": "jaxtyping",
    "filelock": "filelock",
    "defusedxml": "defusedxml",
    "tensorboard": "tensorboard",
    "scipy": "scipy",
    "imagecodecs": "imagecodecs",
    "tifffile": "tifffile",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
}
"""Modules that pretraining imports, and the packages that have them.

The last two hold the photographs that the images are made from.
"""

VIEW_TOLERANCE: Final = 2e-3  # of pixels in units of their spread
LOSS_TOLERANCE: Final = {"fp32": 5e-3, "bf16": 0.05, "fp16": 0.05}


@dataclass
class Bench:
    """What the checks share.

    Attributes:
        device: `cuda` or `cpu`.
        toy: a small size.
        folder: of the results.
        deadline: when the last measurement may begin, by `time.monotonic`.
        results: by name, as they come.
    """

    device: str
    toy: bool
    folder: Path
    deadline: float
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def scratch(self) -> Path:
        """For images and runs; removed at the end."""
        return self.folder / "scratch"

    def do(self, name: str, work: Callable[["Bench"], dict[str, Any]]) -> None:
        """Runs one check and writes what it found, whatever that is."""
        begun = time.monotonic()
        if begun > self.deadline:
            found: dict[str, Any] = {"state": "not run", "why": "no time was left"}
        else:
            try:
                found = work(self)
            except NotApplicable as why:
                found = {"state": "not run", "why": str(why)}
            except Exception as error:  # whatever it is, the other checks go on
                trace = traceback.format_exc().splitlines()[-12:]
                found = {"state": "failed", "error": repr(error), "trace": trace}
        found["seconds"] = round(time.monotonic() - begun, 2)
        self.results[name] = found
        self.write()
        shown = {key: value for key, value in found.items() if key != "trace"}
        print(f"{name}: {json.dumps(shown)}", flush=True)

    def write(self) -> None:
        """All results so far."""
        part = self.folder / "gpu.json.part"
        part.write_text(json.dumps(self.results, indent=1) + "\n")
        part.replace(self.folder / "gpu.json")


class NotApplicable(Exception):
    """A check has no meaning here; the text says why."""


def missing() -> list[str]:
    """Packages that are not there."""
    return [package for name, package in NEEDED.items() if not importlib.util.find_spec(name)]


def verdict(right: bool, **more: Any) -> dict[str, Any]:
    """The result of a check."""
    return {"state": "right" if right else "wrong", **more}


# --- correctness ------------------------------------------------------------------------------


def machine(bench: Bench) -> dict[str, Any]:
    """What this is measured on."""
    import platform

    import torch

    found: dict[str, Any] = {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "system": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "missing": missing(),
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {"device": properties.name, "gigabytes": properties.total_memory / 1e9}
    return verdict(torch.cuda.is_available() or bench.toy, **found)


def views(bench: Bench) -> dict[str, Any]:
    """Views made on the device against those of the CPU's loops, every policy of a paper."""
    import numpy as np
    import torch

    from diptych.config.data import ViewsConfig
    from diptych.config.policies import PRESETS, parse_policy
    from diptych.images.pixels import PixelBatch
    from diptych.views.cpu import make_views
    from diptych.views.device import make_views_on
    from diptych.views.draw import draw_views

    rng, worst = np.random.default_rng(0), {}
    sides = rng.integers(40, 90, (16, 2))
    pixels = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in sides]
    images = PixelBatch.of(pixels)
    for name, texts in PRESETS.items():
        policies = [parse_policy(text) for text in texts if text is not None]
        config = ViewsConfig(side_pixels=32, policy=str(texts[0]))
        drawn = draw_views(
            policies,
            side_pixels=32,
            seed=0,
            epoch=0,
            indices=np.arange(len(images)),
            heights=images.heights,
            widths=images.widths,
        )
        ours = torch.from_numpy(make_views(images, drawn, config)).permute(0, 1, 4, 2, 3)
        other = make_views_on(images, drawn, config, torch.device(bench.device)).cpu()
        worst[name] = float((ours - other).abs().max())
    return verdict(max(worst.values()) <= VIEW_TOLERANCE, largest_difference=worst)


def pretrain(bench: Bench, name: str, recipe: str, **settings: Any) -> Path:
    """A small run of eight steps, on the device; its folder."""
    import diptych

    out = bench.scratch / name
    shutil.rmtree(out, ignore_errors=True)
    given: dict[str, Any] = {
        "epochs": 2,
        "batch_size": 32,
        # Slow enough that a difference of rounding stays one over the eight steps.
        "optimizer.learning_rate": 0.005,
        "training.device": bench.device,
        "probe.log_every_steps": 1,
        "probe.images": 16,
        "checkpoint.every_seconds": 0.0,
        "checkpoint.keep": 100,
    }
    return diptych.pretrain(
        small_images(bench), recipe=recipe, scale="tiny", out=out, quiet=True, **(given | settings)
    )


def small_images(bench: Bench) -> Path:
    """128 JPEG files of 64 pixels."""
    return filled(bench.scratch / "small", (64, 64), 128)


def filled(folder: Path, size: tuple[int, int], count: int) -> Path:
    """A folder with so many JPEG files, which is there as a whole or not at all."""
    from opening import fill

    if not folder.exists():
        # Under its own name only once it is full: the next check would learn from what a failed
        # one left.
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        fill(part, size, count)
        part.rename(folder)
    return folder


def losses(run: Path) -> list[float]:
    """Of every step."""
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def same_losses(
    bench: Bench, recipe: str, tolerance: float, against: dict[str, Any], **settings: Any
) -> dict[str, Any]:
    """Whether a run with some settings has the losses of one without."""
    plain = losses(pretrain(bench, "plain", recipe, **against))
    other = losses(pretrain(bench, "other", recipe, **(against | settings)))
    largest = max(abs(a - b) for a, b in zip(plain, other, strict=True))
    return verdict(largest <= tolerance, largest_difference=largest, losses=[plain, other])


def on_device(recipe: str) -> Callable[[Bench], dict[str, Any]]:
    """Losses on the device against those on the CPU, from the same weights, images and views."""

    def check(bench: Bench) -> dict[str, Any]:
        cpu = {"training.device": "cpu"}
        on = {"training.device": bench.device, "views.applier": "device"}
        return same_losses(bench, recipe, 0.02, cpu, **on)

    return check


def precision(kind: str) -> Callable[[Bench], dict[str, Any]]:
    """Losses in half precision against those in fp32."""

    def check(bench: Bench) -> dict[str, Any]:
        setting = {"training.precision": kind}
        return same_losses(bench, "simclr", LOSS_TOLERANCE[kind], {}, **setting)

    return check


def compiled(bench: Bench) -> dict[str, Any]:
    """Losses of compiled networks against eager ones."""
    return same_losses(bench, "simclr", LOSS_TOLERANCE["fp32"], {}, **{"training.compile": True})


def recomputed(bench: Bench) -> dict[str, Any]:
    """Losses where stages are computed again in the backward pass."""
    setting = {"training.recompute": "stages"}
    return same_losses(bench, "simclr", LOSS_TOLERANCE["fp32"], {}, **setting)


def offloaded(bench: Bench) -> dict[str, Any]:
    """Losses where activations wait in the CPU's memory."""
    if bench.device == "cpu":
        raise NotApplicable("activations are offloaded from accelerators only")
    setting = {"training.offload_activations": True}
    return same_losses(bench, "simclr", LOSS_TOLERANCE["fp32"], {}, **setting)


def chunked(bench: Bench) -> dict[str, Any]:
    """Losses of cached gradients against those of whole batches, with a norm that allows it."""
    norm = {"norm.kind": "group"}
    return same_losses(bench, "simclr", LOSS_TOLERANCE["fp32"], norm, **{"training.chunk_size": 8})


def resumed(recipe: str) -> Callable[[Bench], dict[str, Any]]:
    """Whether a run that goes on from its middle ends with the bits of one that was not stopped.

    Where a device gives other bits each time, a second whole run differs too, and nothing is known
    of resuming.
    """

    def check(bench: Bench) -> dict[str, Any]:
        import diptych

        whole = pretrain(bench, "whole", recipe)
        again = pretrain(bench, "again", recipe)
        split = bench.scratch / "split"
        shutil.rmtree(split, ignore_errors=True)
        shutil.copytree(whole, split)
        steps = sorted((split / "checkpoints").glob("step-*"))
        for late in steps[len(steps) // 2 :]:
            shutil.rmtree(late)
        (split / "encoder.safetensors").unlink()
        diptych.pretrain(out=split, resume=True, quiet=True)
        repeat, goes_on = differing(whole, again), differing(whole, split)
        found = {"differs_when_repeated": repeat, "differs_when_resumed": goes_on}
        if repeat and goes_on:
            return {"state": "not decided", **found}
        return verdict(not goes_on, **found)

    return check


def differing(one: Path, other: Path) -> list[str]:
    """Tensors of the last checkpoints whose bits differ."""
    import torch
    from safetensors.torch import load_file

    last = [sorted((run / "checkpoints").glob("step-*"))[-1] for run in (one, other)]
    first, second = (load_file(folder / "tensors.safetensors") for folder in last)
    return sorted(
        name
        for name in first.keys() | second.keys()
        if name not in first or name not in second or not torch.equal(first[name], second[name])
    )


# --- speed and memory -------------------------------------------------------------------------


def photographs(bench: Bench) -> Path:
    """JPEG files of 500 x 375, as those of ImageNet: 4,096 names of 500 different ones."""
    return filled(bench.scratch / "photographs", (500, 375), 64 if bench.toy else 4096)


def speed(recipe: str, **settings: Any) -> Callable[[Bench], dict[str, Any]]:
    """Images per second of whole steps from JPEG files, and of the bare network."""

    def measure(bench: Bench) -> dict[str, Any]:
        import torch

        batch, side = (8, 64) if bench.toy else (256, 224)
        given: dict[str, Any] = {
            "encoder.name": "resnet18" if bench.toy else "resnet50",
            "views.side_pixels": side,
            "method.dictionary.queue.size": 64 if bench.toy else 65536,
            "batch_size": batch,
            "epochs": 1 if bench.toy else 4,
            "training.device": bench.device,
            "probe.log_every_steps": 2,
            "probe.images": 16,
            "probe.health_every_epochs": 1000,
            "checkpoint.every_seconds": 1e9,
            "images.cache": "none",
        }
        if recipe == "simclr":
            del given["method.dictionary.queue.size"]
        if bench.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        rates, waits, run = _run_whole(bench, recipe, given | settings)
        found = {"images_per_second": statistics.median(rates), "data_wait_ms": waits}
        if bench.device == "cuda":
            found["peak_gigabytes"] = torch.cuda.max_memory_allocated() / 1e9
        bare = bare_rate(bench, run, 2 if bench.toy else 20)
        share = found["images_per_second"] / bare
        return {"state": "measured", **found, "bare_images_per_second": bare, "share": share}

    return measure


def _run_whole(
    bench: Bench, recipe: str, settings: dict[str, Any]
) -> tuple[list[float], float, Path]:
    """Images per second and milliseconds that a step waited for data, without the first lines."""
    import diptych

    out = bench.scratch / "speed"
    shutil.rmtree(out, ignore_errors=True)
    scale = "tiny" if bench.toy else "paper"
    run = diptych.pretrain(
        photographs(bench), recipe=recipe, scale=scale, out=out, quiet=True, **settings
    )
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    late = lines[len(lines) // 3 :]  # what compiles and warms up is no step's
    rates = [line["views_per_second"] / 2 for line in late]
    return rates, statistics.median(line["milliseconds/data_wait"] for line in late), run


def bare_rate(bench: Bench, run: Path, steps: int) -> float:
    """Images per second of the run's networks alone, forward and backward on ready tensors."""
    import torch

    from diptych.config.files import load_run_config
    from diptych.methods.contrastive import build_contrastive

    config = load_run_config(run / "config.toml")
    device = torch.device(bench.device)
    method = build_contrastive(config).train().to(device).to(memory_format=torch.channels_last)
    batch, side = config.training.batch_size, config.views.side_pixels
    both = torch.randn(2 * batch, 3, side, side, device=device)
    both = both.contiguous(memory_format=torch.channels_last)
    first, second = both.chunk(2)
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    kind = kinds.get(config.training.precision, torch.bfloat16)
    half = config.training.precision in kinds

    def step() -> None:
        method.network.zero_grad(set_to_none=True)
        with torch.autocast(bench.device, dtype=kind, enabled=half):
            if method.momentum_encoder is None:
                found = method.network(both)
            else:
                with torch.no_grad():
                    method.momentum_encoder(second)
                found = method.network(first)
        found.float().sum().backward()

    times = [_timed(step, device) for _ in range(steps + 3)][3:]
    return batch / statistics.median(times)


def _timed(step: Callable[[], None], device: Any) -> float:
    import torch

    begun = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


CHECKS: Final[Sequence[tuple[str, Callable[[Bench], dict[str, Any]]]]] = (
    ("machine", machine),
    ("views on the device", views),
    ("simclr on the device", on_device("simclr")),
    ("moco_v2 on the device", on_device("moco_v2")),
    ("bf16", precision("bf16")),
    ("fp16", precision("fp16")),
    ("recompute", recomputed),
    ("offload", offloaded),
    ("cached gradients", chunked),
    ("resume, simclr", resumed("simclr")),
    ("resume, moco_v2", resumed("moco_v2")),
    ("compile", compiled),
    ("speed, simclr, bf16", speed("simclr", **{"training.precision": "bf16"})),
    ("speed, moco_v2, bf16", speed("moco_v2", **{"training.precision": "bf16"})),
    ("speed, simclr, fp32", speed("simclr")),
    ("speed, moco_v2, fp32", speed("moco_v2")),
    (
        "speed, simclr, bf16, compiled",
        speed("simclr", **{"training.precision": "bf16", "training.compile": True}),
    ),
)
"""In order: what must be right, then what is fast, the costliest last."""


def main() -> None:
    """All checks, as far as the time goes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="?", help="a folder; gpu.json is written there")
    parser.add_argument("--toy", action="store_true", help="small, on the CPU")
    parser.add_argument("--seconds", type=float, default=390.0, help="begin no check after these")
    parser.add_argument("--missing", action="store_true", help="only name packages not there")
    given = parser.parse_args()
    if given.missing:
        print(" ".join(missing()))
        return
    if given.results is None:
        parser.error("give a folder for the results")
    if "torch" in missing():
        sys.exit("torch is missing: nothing can be measured.")
    # As the command line does, before torch is imported.
    from diptych.runtime.devices import shorten_spinning

    shorten_spinning()
    given.results.mkdir(parents=True, exist_ok=True)
    device = "cpu" if given.toy else "cuda"
    bench = Bench(device, given.toy, given.results, time.monotonic() + given.seconds)
    for name, check in CHECKS:
        bench.do(name, check)
    shutil.rmtree(bench.scratch, ignore_errors=True)
    states = [found["state"] for found in bench.results.values()]
    print({state: states.count(state) for state in dict.fromkeys(states)})
    sys.exit(1 if {"wrong", "failed"} & set(states) else 0)


if __name__ == "__main__":
    main()
