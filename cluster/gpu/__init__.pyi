from .collectives import collective_samples, collective_seconds, gpu_time
from .forward import GpuModel
from .link import KINDS, LINK_PRESETS, TOKEN_BYTES, LinkLedger, WorldLink, load_link
from .pool import Answer, GpuPool, PassModel, common_prefix, ray_pool
from .roofline import ACTIVATION_BYTES, OUTER_KERNELS, GpuGroup, KernelJitter, check_pass
from .spec import DTYPE_BYTES, GPU_PRESETS, field_source, load_gpu_spec

__all__ = [
    "ACTIVATION_BYTES",
    "DTYPE_BYTES",
    "GPU_PRESETS",
    "KINDS",
    "LINK_PRESETS",
    "OUTER_KERNELS",
    "TOKEN_BYTES",
    "Answer",
    "GpuGroup",
    "GpuModel",
    "GpuPool",
    "KernelJitter",
    "LinkLedger",
    "PassModel",
    "WorldLink",
    "check_pass",
    "collective_samples",
    "collective_seconds",
    "common_prefix",
    "field_source",
    "gpu_time",
    "load_gpu_spec",
    "load_link",
    "ray_pool",
]
