import pytest
import torch

from fractatlas.models.precision import choose_precision


@pytest.fixture
def hardware(monkeypatch):
    """Return a function that simulates the hardware."""

    def simulate(processor=(), gpus=(), apple=False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: "avx512_bf16" in processor)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: "amx" in processor)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpus))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: gpus[device])
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: apple)

    return simulate


@pytest.mark.parametrize(
    ("machine", "accelerator", "precision", "reason"),
    [
        ({}, "cpu", "32-true", "a processor without AVX512-BF16 or AMX"),
        ({"processor": ["avx512_bf16"]}, "auto", "bf16-mixed", "a processor with AVX512-BF16 or AMX"),
        ({"processor": ["amx"]}, "cpu", "bf16-mixed", "a processor with AVX512-BF16 or AMX"),
        ({"gpus": [(9, 0)]}, "auto", "bf16-mixed", "a GPU of compute capability 9.0"),
        ({"gpus": [(9, 0), (7, 5)]}, "gpu", "32-true", "a GPU of compute capability 7.5"),
        ({"gpus": [(8, 0)]}, "cpu", "32-true", "a processor without AVX512-BF16 or AMX"),
        ({"apple": True, "processor": ["amx"]}, "auto", "32-true", "an Apple GPU"),
    ],
)
def test_bfloat16_is_chosen_where_the_hardware_computes_it(hardware, machine, accelerator, precision, reason):
    hardware(**machine)
    chosen, stated = choose_precision(accelerator)
    assert chosen == precision
    assert stated.startswith(reason)
