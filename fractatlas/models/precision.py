"""Choose the precision of a training from the hardware."""

import torch


def choose_precision(accelerator: str) -> tuple[str, str]:
    """Return the precision that ``trainer.precision=auto`` selects on this machine, and the reason.

    bfloat16 is native on CUDA devices of compute capability 8.0 and above, and on processors with AVX512-BF16 or AMX.
    Elsewhere it is emulated, or its speed was not measured, and float32 is selected.

    Args:
        accelerator: as in Lightning's ``Trainer``: ``auto, cpu, gpu, cuda`` or ``mps``.

    Returns:
        ``bf16-mixed`` or ``32-true``, and a phrase that names the hardware.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        capability = min(torch.cuda.get_device_capability(device) for device in range(torch.cuda.device_count()))
        native, hardware = capability >= (8, 0), f"a GPU of compute capability {capability[0]}.{capability[1]}"
    elif accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        native, hardware = False, "an Apple GPU"
    else:
        # torch.cpu.get_capabilities is public, but newer than the oldest supported version of torch.
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        hardware = f"a processor {'with' if native else 'without'} AVX512-BF16 or AMX"
    if native:
        return "bf16-mixed", f"{hardware} computes bfloat16 natively"
    return "32-true", f"{hardware} is not known to compute bfloat16 faster than float32"
