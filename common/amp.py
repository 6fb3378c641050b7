"""Mixed precision: which type a device computes in."""
import torch


def amp_dtype(no_amp: bool, device: torch.device) -> torch.dtype | None:
    """bf16 on CPUs and on GPUs that have it, fp16 (`Step` then scales the loss) elsewhere, None for plain float32."""
    if no_amp:
        torch.backends.cudnn.allow_tf32 = False               # GPUs otherwise convolve with 10 bits of it
        return None
    fp16 = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.float16 if fp16 else torch.bfloat16


def autocast(dtype: torch.dtype | None, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype, enabled=dtype is not None)
