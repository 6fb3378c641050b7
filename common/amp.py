"""Mixed precision: which type a device computes in."""
import torch


def amp_dtype(no_amp: bool, device: torch.device) -> torch.dtype | None:
    """bf16 on GPUs and CPUs that have it; else fp16 on GPUs (`Step` then scales the loss) and None, plain float32, on CPUs."""
    if no_amp:
        torch.backends.cudnn.allow_tf32 = False               # GPUs otherwise convolve with 10 bits of it
        return None
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if multiplies_bf16() else None


def multiplies_bf16() -> bool:
    """Whether this CPU has instructions for bf16, and torch the library that uses them (oneDNN).

    Elsewhere they are emulated: on an AMD EPYC with AVX2 alone, one thread, a ResNet-20 then trains on 18 images/s, and in
    float32 on 202.
    """
    has = torch.cpu.get_capabilities()
    return torch.backends.mkldnn.is_available() and any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def arithmetic(dtype: torch.dtype | None) -> str:
    """Its name in config.json and reports."""
    return {torch.bfloat16: "bf16", torch.float16: "fp16", None: "float32"}[dtype]


def autocast(dtype: torch.dtype | None, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype, enabled=dtype is not None)
