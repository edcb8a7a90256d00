"""What GPUs can do, by their makers' data sheets.

Memory is what nvidia-smi reports, with ECC on. Peaks are dense, without sparsity; fp32 is that of
the ordinary cores, which torch uses for float32 products unless TF32 is switched on. ``link`` is
what a GPU sends to the others of its node in one direction (NVLink, else PCIe), ``network`` to
other nodes with one adapter a GPU of the usual reference machine.

H100: NVIDIA H100 data sheet (SXM5), DGX H100. H200: data sheet (SXM), HGX H200. A100: A100 data
sheet (SXM4, 40 and 80 GB), DGX A100. L40S: data sheet (PCIe 4). A10G: AWS EC2 G5, NVIDIA A10 data
sheet. B200: DGX B200 data sheet, a GPU's share.
"""

from __future__ import annotations

from dataclasses import dataclass

from genus.errors import ConfigError


@dataclass(frozen=True)
class GPU:
    """One kind of GPU."""

    name: str
    memory_gib: float
    bf16_tflops: float
    fp32_tflops: float
    bandwidth_gbs: float
    """Of its memory, 10^9 bytes a second."""
    link_gbs: float
    network_gbs: float

    @property
    def usable(self) -> float:
        """Bytes for tensors: without CUDA's own (about 1 GiB) and a margin of 5 % for gaps that
        the allocator leaves."""
        return (self.memory_gib - 1.0) * 2**30 * 0.95


GPUS = {
    "a10g": GPU("A10G", 22.5, 70.0, 31.2, 600.0, 32.0, 6.25),
    "l40s": GPU("L40S", 45.0, 362.0, 91.6, 864.0, 32.0, 25.0),
    "a100-40": GPU("A100 40 GB", 39.6, 312.0, 19.5, 1555.0, 300.0, 25.0),
    "a100-80": GPU("A100 80 GB", 79.3, 312.0, 19.5, 2039.0, 300.0, 25.0),
    "h100": GPU("H100", 79.6, 989.0, 67.0, 3350.0, 450.0, 50.0),
    "h200": GPU("H200", 139.8, 989.0, 67.0, 4800.0, 450.0, 50.0),
    "b200": GPU("B200", 178.0, 2250.0, 75.0, 8000.0, 900.0, 50.0),
}


@dataclass(frozen=True)
class Efficiency:
    """Shares of the peaks that eager PyTorch reaches, and what it adds."""

    products: float = 0.62
    """Of matrix products and attention in large blocks."""
    convolutions: float = 0.45
    memory: float = 0.80
    links: float = 0.75
    launch: float = 6e-6
    """Seconds of the host for one operation, which bounds small networks."""


EFFICIENCY = Efficiency()


def gpu_named(name: str) -> GPU:
    """ConfigError where it is not in the table."""
    try:
        return GPUS[name.lower()]
    except KeyError:
        raise ConfigError(f"--gpu {name}: there are {', '.join(GPUS)}, and cpu") from None
