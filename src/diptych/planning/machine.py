"""The machine that a run is planned for: what it does in a second, and what it holds.

The figures of accelerators are their makers' data sheets, but for the share of the peak that a
training step sustains. That is an assumption, after NVIDIA's published training of ResNet-50 on
eight A100 (DeepLearningExamples, PyTorch/Classification/ConvNets: 15,977 images a second in mixed
precision, 7,365 in tf32; times 24.5 Gflop an image that is 0.16 and 0.14 of the dense peaks).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final

from diptych.errors import ConfigError

SUSTAINED_SHARE: Final = 0.15
GIGA: Final = 1e9
_FLOPS: Final = ("flops_per_second", "bf16_flops_per_second", "fp16_flops_per_second")


@dataclass(frozen=True)
class Machine:
    """One process of a run, and its way to the others and to the images.

    Attributes:
        name: for tables.
        flops_per_second: that a training step sustains, in fp32.
        bf16_flops_per_second: the same under autocast to bf16.
        fp16_flops_per_second: the same under autocast to fp16.
        memory_bytes: of the device that the process has for itself.
        host_bytes: main memory that the process has for itself; 0 where that is the device's.
        memory_bytes_per_second: of the device's memory.
        network_bytes_per_second: that a process can send to another, over the slowest link.
        network_seconds: that a message takes beside its bytes.
        read_bytes_per_second: of encoded images, for a process.
        link_bytes_per_second: from the device's memory to main memory, or back.
        disk_bytes_per_second: that the first process sums and writes a checkpoint with.
        views_per_second: of 224 x 224 pixels, decoding included, that the process's cores make.
        spent_seconds: of a step beside what is planned for: Python, metrics.
        base_bytes: that a process holds with nothing loaded but the libraries.
        heap_share: bytes that lie free in the C library's heap, or are the libraries' own work
            space, for each that a step needs at its fullest moment.
    """

    name: str
    flops_per_second: float
    bf16_flops_per_second: float
    fp16_flops_per_second: float
    memory_bytes: float
    host_bytes: float
    memory_bytes_per_second: float
    network_bytes_per_second: float = 12.5e9
    network_seconds: float = 20e-6
    read_bytes_per_second: float = 0.5e9
    link_bytes_per_second: float = 10e9
    disk_bytes_per_second: float = 0.5e9
    views_per_second: float = 12_000.0
    spent_seconds: float = 0.002
    base_bytes: float = 1.0e9
    heap_share: float = 0.0

    @property
    def is_one_memory(self) -> bool:
        """Whether networks and images share the same memory, as on a CPU."""
        return self.host_bytes == 0

    def sustained(self, precision: str) -> float:
        """Flop/s in a precision of ``training.precision``."""
        rates = {"bf16": self.bf16_flops_per_second, "fp16": self.fp16_flops_per_second}
        return rates.get(precision, self.flops_per_second)


def _accelerator(
    name: str,
    *,
    bf16_peak: float,
    fp32_peak: float,
    memory: float,
    bandwidth: float,
    link: float,
    fp16_peak: float | None = None,
) -> Machine:
    """A device of a data sheet: peaks in teraflop/s, gigabytes, gigabytes/s; fp16 like bf16."""
    fp16 = bf16_peak if fp16_peak is None else fp16_peak
    return Machine(
        name=name,
        flops_per_second=SUSTAINED_SHARE * fp32_peak * 1e12,
        bf16_flops_per_second=SUSTAINED_SHARE * bf16_peak * 1e12,
        fp16_flops_per_second=SUSTAINED_SHARE * fp16 * 1e12,
        memory_bytes=memory * GIGA,
        host_bytes=128 * GIGA,  # of a server with 8 devices, a terabyte and 64 cores or more
        memory_bytes_per_second=bandwidth * GIGA,
        link_bytes_per_second=link * GIGA,
    )


# One core of an EPYC (Zen 4) with AVX-512, as `diptych plan --measure` found a small ResNet on it;
# a core's share of a machine with four gigabytes for each.
_CPU: Final = Machine(
    name="cpu",
    flops_per_second=85e9,
    bf16_flops_per_second=85e9,
    fp16_flops_per_second=85e9,
    memory_bytes=4 * GIGA,
    host_bytes=0,
    memory_bytes_per_second=10e9,
    network_bytes_per_second=1.25e9,  # ten gigabits
    network_seconds=100e-6,
    views_per_second=1584.0,  # benchmarks/views.py: two of 792 images, decoded from JPEG files
    base_bytes=1.0e9,
    heap_share=0.6,  # benchmarks/cost_model.py --calibrate: 0.59
)

MACHINES: Final[Mapping[str, Machine]] = {
    "cpu": _CPU,
    # NVIDIA, "T4 Tensor Core GPU" data sheet: 65 teraflop/s fp16, no bf16 units, 8.1 fp32, 16 GB,
    # 320 GB/s, PCIe 3.
    "t4": _accelerator(
        "t4", bf16_peak=8.1, fp16_peak=65, fp32_peak=8.1, memory=16, bandwidth=320, link=16
    ),
    # NVIDIA, "L4 Tensor Core GPU" data sheet: 121 bf16 and 60 tf32 without sparsity, 24 GB, 300
    # GB/s, PCIe 4.
    "l4": _accelerator("l4", bf16_peak=121, fp32_peak=60, memory=24, bandwidth=300, link=32),
    # NVIDIA, "A100 Tensor Core GPU" data sheet (SXM, 80 GB): 312 bf16, 156 tf32, 2,039 GB/s,
    # PCIe 4.
    "a100": _accelerator("a100", bf16_peak=312, fp32_peak=156, memory=80, bandwidth=2039, link=32),
    # NVIDIA, "H100 Tensor Core GPU" data sheet (SXM): 989 bf16 and 494 tf32 without sparsity, 80
    # GB, 3,350 GB/s, PCIe 5.
    "h100": _accelerator("h100", bf16_peak=989, fp32_peak=494, memory=80, bandwidth=3350, link=64),
}
"""By name. Between machines of accelerators: one port of 100 gigabits for each device, as in a
server with eight devices and eight such ports; many have 400. To main memory: sixteen lanes
of PCIe, one way."""


@dataclass(frozen=True)
class MachineConfig:
    """What is known of the machine; what is not given is taken from `--on`."""

    teraflops_per_second: float | None = None
    """Floating-point operations, in 10^12 a second, that a training step sustains in the run's
    precision."""
    memory_gigabytes: float | None = None
    """Memory of the device of one process."""
    host_gigabytes: float | None = None
    """Main memory of one process, where the device has its own."""
    memory_gigabytes_per_second: float | None = None
    """Bandwidth of the device's memory."""
    network_gigabytes_per_second: float | None = None
    """What one process can send to another over the slowest link."""
    network_microseconds: float | None = None
    """What a message between processes takes beside its bytes."""
    read_gigabytes_per_second: float | None = None
    """Encoded images that one process can read."""
    link_gigabytes_per_second: float | None = None
    """From the device's memory to main memory, or back."""
    disk_gigabytes_per_second: float | None = None
    """What a checkpoint is written with."""
    views_per_second: float | None = None
    """Views of 224 pixels that the cores of one process make, decoding included."""

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if value is not None and not value > 0:
                raise ConfigError(f"machine.{one.name} must be positive; got {value!r}.")


def machine_named(name: str, given: MachineConfig | None = None, *, cores: int = 1) -> Machine:
    """A machine by its name, with what is known better in its place.

    Args:
        name: one of ``MACHINES``.
        given: what is known better.
        cores: of the CPU that a process has, where it runs on one.

    Raises:
        ConfigError: there is no machine of that name, or it has no memory beside its own.
    """
    if name not in MACHINES:
        raise ConfigError(f"there is no machine {name!r}; wanted one of {', '.join(MACHINES)}.")
    if MACHINES[name].is_one_memory and given is not None and given.host_gigabytes is not None:
        raise ConfigError(
            f"machine.host_gigabytes is main memory beside that of a device, and {name!r} has one "
            f"memory: give machine.memory_gigabytes; got {given.host_gigabytes!r}."
        )
    # Cores first: what is given is already of all of them.
    machine, values = _of_cores(MACHINES[name], cores), dict[str, Any]()
    for key, value in asdict(given or MachineConfig()).items():
        # The names of the settings carry their units, and by these words become those of a machine.
        scale = GIGA if "gigabytes" in key else 1e-6 if "microseconds" in key else 1.0
        attribute = key.replace("gigabytes", "bytes").replace("microseconds", "seconds")
        if value is not None and key == "teraflops_per_second":
            values |= dict.fromkeys(_FLOPS, value * 1e12)
        elif value is not None:
            values[attribute] = value * scale
    return replace(machine, **values)


def _of_cores(machine: Machine, cores: int) -> Machine:
    """So many cores instead of one, each with its share of memory."""
    if not machine.is_one_memory:
        return machine
    names = (*_FLOPS, "memory_bytes", "views_per_second", "memory_bytes_per_second")
    more = {name: cores * getattr(machine, name) for name in names}
    return replace(machine, **more)
