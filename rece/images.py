"""Images: prompts or prompt embeddings in, uint8 arrays (n, height, width, 3) out, each with a seed of its own."""

import inspect
import numbers
from collections.abc import Sequence
from contextlib import contextmanager

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from tqdm import tqdm


def generate(
    pipe: DiffusionPipeline,
    prompts: Sequence[str] | None = None,
    seeds: Sequence[int] = (),
    *,
    embeds: Tensor | None = None,
    steps: int = 50,
    guidance: float = 7.5,
    height: int | None = None,
    width: int | None = None,
    batch_size: int = 16,
    bf16: bool | str = False,
    progress: bool = True,
) -> np.ndarray:
    """Draw one image per prompt and seed: uint8 (n, height, width, 3), by default at the size the model was made for.

    prompts: n texts; or embeds: (n, positions, d), any float dtype and device, fed to the UNet in place of encoded
    prompts. The negative prompt is always "". steps, guidance: of the pipeline's own scheduler. height, width: in
    pixels, multiples of 8 (of more for some models), both or neither; what is asked for is drawn, PixArt's resizing
    from the nearest of its own shapes is off. bf16: run under bfloat16 autocast (images change a little); "auto" does
    where the device has it, see `bfloat16`. A safety checker is not consulted. The bar shows if generation takes
    longer than a second.

    Each image's noise comes from its own CPU generator, and every call of the pipeline holds exactly batch_size images
    (the last batch is filled up by repeats, which are thrown away). So the order of the prompts, how many there are,
    and how they are split between machines change nothing: on the CPU not a bit, if batch_size is even (an odd one is
    split unevenly between threads). Another batch_size or thread count changes rounding: about 1e-6 of the range in
    float32, so that now and then a pixel moves by one level.

    Raises ValueError or TypeError naming the parameter, before anything is drawn, and ValueError if an image is not
    finite or not of the size that was asked for.
    """
    if (prompts is None) == (embeds is None):
        raise ValueError("give either prompts or embeds, and not both")
    if prompts is not None and (isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts)):
        raise TypeError("prompts must be a list of texts")
    if embeds is not None:
        if not isinstance(embeds, Tensor) or embeds.ndim != 3 or not embeds.is_floating_point():
            raise TypeError("embeds must be a float tensor of shape (n, positions, d)")
        if not torch.isfinite(embeds).all():
            raise ValueError("embeds holds values that are not finite")
        if getattr(pipe, "text_encoder_2", None) is not None:
            raise ValueError("embeds is not supported for pipelines that also read a pooled embedding: give prompts")
    n = len(prompts if embeds is None else embeds)
    if n == 0 or len(seeds) != n:
        raise ValueError(f"seeds must be one number per image: {len(seeds)} seeds for {n} prompts")
    if steps < 1 or batch_size < 1:
        raise ValueError(f"steps and batch_size must be 1 or more, not {steps} and {batch_size}")
    binned = "use_resolution_binning" in inspect.signature(pipe.__call__).parameters
    bare = {"use_resolution_binning": False} if binned else {}
    if (height is None) != (width is None):
        raise ValueError("height and width: give both or neither, a pipeline replaces both if one is missing")
    size = {} if height is None else {"height": height, "width": width}
    for name, pixels in size.items():
        if not isinstance(pixels, numbers.Integral) or pixels < 8 or pixels % 8:
            raise ValueError(f"{name} must be a multiple of 8 pixels, not {pixels!r}")

    images, device = [], pipe._execution_device
    bar = tqdm(total=n, desc="generate", delay=1, leave=False, disable=not progress)
    with _bare(pipe), torch.autocast(device.type, torch.bfloat16, enabled=bfloat16(device, bf16)):
        for start in range(0, n, batch_size):
            rows = [min(row, n - 1) for row in range(start, start + batch_size)]
            text = {"prompt": [prompts[row] for row in rows]} if embeds is None else {"prompt_embeds": embeds[rows]}
            batch = pipe(
                **text,
                **size,
                **bare,
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=[torch.Generator("cpu").manual_seed(int(seeds[row])) for row in rows],
                output_type="np",
            ).images[: n - start]
            if not np.isfinite(batch).all():
                raise ValueError("the pipeline drew values that are not finite: reload it or use another dtype")
            drawn = dict(zip(("height", "width"), batch.shape[1:3], strict=True))
            if size.items() - drawn.items():
                raise ValueError(f"height and width: the pipeline drew {drawn}, not {size}: ask for another size")
            images.append((batch * 255).round().astype(np.uint8))
            bar.update(len(batch))
    bar.close()
    return np.concatenate(images)


def bfloat16(device: torch.device, bf16: bool | str) -> bool:
    """Whether to compute in bfloat16: bf16 itself, or if it is "auto", whether the device does so by itself.

    Where it does not, bfloat16 is slower than float32. Raises ValueError for another bf16.
    """
    if bf16 not in (True, False, "auto"):
        raise ValueError(f'bf16 must be true, false or "auto", not {bf16!r}')
    if bf16 != "auto":
        return bf16
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@contextmanager
def _bare(pipe: DiffusionPipeline):
    """The pipeline without its own progress bar and safety checker.

    Set past `__setattr__`, which would also change the config that `save_pretrained` writes.
    """
    before = dict(vars(pipe))
    vars(pipe)["_progress_bar_config"] = {"disable": True}
    if "safety_checker" in before:
        vars(pipe)["safety_checker"] = None
    try:
        yield
    finally:
        for name in ("_progress_bar_config", "safety_checker"):
            if name in before:
                vars(pipe)[name] = before[name]
            else:
                vars(pipe).pop(name, None)


def check(images: np.ndarray, name: str = "images") -> None:
    """Raise ValueError naming the argument if these are not images; none at all are."""
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        form = f"{getattr(images, 'dtype', type(images).__name__)} {getattr(images, 'shape', '')}"
        raise ValueError(f"{name} must be uint8 arrays of shape (n, height, width, 3), not {form}")
