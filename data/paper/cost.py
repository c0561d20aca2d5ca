"""`python data/paper/cost.py`: the counted work of drawing images, and the published experiments in GPU hours.

Work is floating-point operations, two per multiply-add, of matrix products, convolutions and attention, counted by
running the real architectures on PyTorch's meta device: shapes without numbers, so neither weights nor memory are
needed. Activations, norms and the scheduler are not counted; they are a few per cent. Hours need a rate at which a GPU
does this work, and that is an assumption of whoever asks: a share of its peak.
"""

import argparse
from functools import cache

import pandas as pd
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from rece.solver import positive

POSITIONS, LATENT = 77, 8  # tokens of a prompt; pixels along an edge per latent
CROSS = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
# kind of model: pixels along an edge; UNet; text encoders (width, layers, heads, projected width or None).
# Sources: the published config.json files of v1-4, 2-1 (2-1-base is the same at size=512) and xl-base-1.0.
MODELS = {
    "sd14": (512, dict(cross_attention_dim=768, attention_head_dim=8), [(768, 12, 12, None)]),
    "sd21": (
        768,
        dict(cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True),
        [(1024, 23, 16, None)],
    ),
    "sdxl": (
        1024,
        dict(
            cross_attention_dim=2048,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", CROSS[0], CROSS[0]),
            up_block_types=(CROSS[1], CROSS[1], "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        ),
        [(768, 12, 12, None), (1280, 32, 20, 1280)],
    ),
}
VAE = dict(
    block_out_channels=(128, 256, 512, 512),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=2,
    latent_channels=4,
)

# Dense half-precision FLOP/s by NVIDIA's data sheets, of the SXM form where there are several.
PEAKS = {"V100": 125e12, "A100": 312e12, "RTX 4090": 165e12, "H100": 989e12, "H200": 989e12}

# The paper's experiments: images of the original, and of one method's erasers. Every Imagenette class has an eraser of
# its own, and each draws all ten classes; the two erased artists draw a set of five artists each.
EXPERIMENTS = {
    "nudity, red-team set": (142, 142),
    "nudity, I2P": (4703, 4703),
    "unsafe, I2P": (4703, 4703),
    "artists, 2 x 5 x 20": (200, 200),
    "Imagenette, 10 x 500": (5000, 10 * 5000),
    "COCO-30k": (30_000, 30_000),
}
METHODS = 2  # UCE and RECE

BACKWARD = 2  # forwards that a backward costs at most; 1.1 if the weights are frozen
# Full budgets as published, for a prompt that withstands all of them: prompts; updates of a backward pass, and UNet
# forwards of the original beside each; images to check success, and steps of each; prompts encoded without a UNet.
ATTACKS = {
    "UnlearnDiffAtk": dict(prompts=142, updates=40 * 50, beside=0, images=51, steps=50, encoded=0),
    "P4D, in its loop": dict(prompts=142, updates=40 * 50, beside=1, images=51, steps=50, encoded=0),
    "P4D-N or -K, official": dict(prompts=142, updates=3000, beside=1, images=60 + 3, steps=25, encoded=0),
    "Ring-A-Bell": dict(prompts=95, updates=0, beside=0, images=1, steps=50, encoded=200 * 3000),
    "MMA-Diffusion": dict(prompts=1000, updates=0, beside=0, images=1, steps=50, encoded=1000 * (512 + 1 + BACKWARD)),
}
ONCE = ("Ring-A-Bell", "MMA-Diffusion")  # search through the text encoder alone: one search serves every model


def build(kind: str) -> dict[str, list[torch.nn.Module]]:
    """The parts of a model on the meta device, without numbers: {"text": text encoders, "unet": [UNet], "vae": [VAE]}.

    kind: one of MODELS. Raises ValueError for another.
    """
    _, unet, encoders = _model(kind)
    configs = [
        CLIPTextConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            projection_dim=projected or 512,
        )
        for width, layers, heads, projected in encoders
    ]
    with torch.device("meta"):
        text = [
            (CLIPTextModelWithProjection if encoder[-1] else CLIPTextModel)(config)
            for config, encoder in zip(configs, encoders, strict=True)
        ]
        return {"text": text, "unet": [UNet2DConditionModel(**unet)], "vae": [AutoencoderKL(**VAE)]}


@cache
def parts(kind: str, size: int | None = None) -> dict[str, dict[str, float]]:
    """What one prompt's encoding ("text"), one UNet forward ("unet") and one decoding ("vae") of one image cost.

    size: pixels along an edge, a multiple of 64; by default the model's own. Returns for each part "flop" and
    "parameters", the numbers it holds (the VAE's include its encoder, which drawing does not use).
    Raises ValueError if kind is unknown or size does not fit.
    """
    native = _model(kind)[0]
    size = native if size is None else size
    if isinstance(size, bool) or not isinstance(size, int) or size < 64 or size % 64:
        raise ValueError(f"size must be a positive multiple of 64 pixels, not {size!r}")
    built, edge = build(kind), size // LATENT
    unet, vae = built["unet"][0], built["vae"][0]
    empty = lambda *shape: torch.empty(shape, device="meta")  # noqa: E731
    ids = torch.empty(1, POSITIONS, dtype=torch.long, device="meta")
    added = None
    if unet.config.addition_embed_type == "text_time":
        added = {"text_embeds": empty(1, built["text"][-1].config.projection_dim), "time_ids": empty(1, 6)}
    latents, prompt = empty(1, 4, edge, edge), empty(1, POSITIONS, unet.config.cross_attention_dim)
    flop = {
        "text": sum(counted(encoder, ids) for encoder in built["text"]),
        "unet": counted(unet, latents, 1, prompt, added_cond_kwargs=added),
        "vae": counted(vae.decode, latents),
    }
    held = {part: sum(p.numel() for module in modules for p in module.parameters()) for part, modules in built.items()}
    return {part: {"flop": flop[part], "parameters": held[part]} for part in flop}


@torch.no_grad()
def counted(call, *given, **named) -> float:
    """The floating-point operations of a call, two per multiply-add: matrix products, convolutions, attention."""
    with FlopCounterMode(display=False) as counter:
        call(*given, **named)
    return float(counter.get_total_flops())


def image_flop(kind: str, *, steps: int = 50, guided: bool = True, size: int | None = None) -> float:
    """The work of one image in FLOP: encoding its prompt, `steps` UNet forwards and one decoding.

    kind: "sd14", "sd21" or "sdxl". guided: classifier-free guidance, which doubles prompts and forwards. size: pixels
    along an edge, by default the model's own. Raises ValueError naming the parameter if one is out of range.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be a whole number, 1 or more, not {steps!r}")
    cost = parts(kind, size)
    twice = 2 if guided else 1
    return twice * (cost["text"]["flop"] + steps * cost["unet"]["flop"]) + cost["vae"]["flop"]


def gpu_hours(images: int, kind: str, *, rate: float, **drawing) -> float:
    """The hours that one GPU needs to draw so many images.

    rate: the FLOP/s it achieves, not its peak: an assumption, or measured as image_flop(kind) / seconds per image.
    drawing: steps, guided and size of `image_flop`. Raises ValueError naming the parameter if one is out of range.
    """
    positive(rate, "rate")
    positive(images, "images", or_zero=True)
    return images * image_flop(kind, **drawing) / rate / 3600


def attack_flop(name: str, kind: str = "sd14") -> float:
    """The work in FLOP of an attack of ATTACKS on one prompt that withstands its whole published budget.

    An update is a forward and a backward of UNet and text encoder, unguided, batch 1; a backward is counted as
    BACKWARD forwards. Judging its images is not counted. Raises ValueError if name or kind is unknown.
    """
    if name not in ATTACKS:
        raise ValueError(f"name must be one of {', '.join(ATTACKS)}, not {name!r}")
    budget, cost = ATTACKS[name], parts(kind)
    unet, text = cost["unet"]["flop"], cost["text"]["flop"]
    update = (1 + BACKWARD) * (unet + text) + budget["beside"] * unet
    images = budget["images"] * image_flop(kind, steps=budget["steps"])
    return budget["updates"] * update + budget["encoded"] * text + images


def models_table(steps: int = 50) -> pd.DataFrame:
    """Per kind of model: GFLOP of encoding a prompt, of a UNet step and of decoding; TFLOP of a guided image; weights
    in GB of float16."""
    rows = {}
    for kind, (size, *_) in MODELS.items():
        cost = parts(kind)
        rows[kind] = {"pixels": size} | {f"{part} GFLOP": cost[part]["flop"] / 1e9 for part in cost}
        rows[kind]["image TFLOP"] = image_flop(kind, steps=steps) / 1e12
        rows[kind] |= {f"{part} GB": 2 * cost[part]["parameters"] / 1e9 for part in cost}
    return pd.DataFrame.from_dict(rows, orient="index")


def experiments_table(kind: str, rate: float, steps: int = 50) -> pd.DataFrame:
    """Images, PFLOP and GPU hours of each of EXPERIMENTS for the original and METHODS methods, and of all of them."""
    rows = {name: {"original": first, "edited": METHODS * each} for name, (first, each) in EXPERIMENTS.items()}
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.loc["all"] = table.sum()
    images = table.sum(axis=1)
    table["PFLOP"] = images * image_flop(kind, steps=steps) / 1e15
    table["GPU hours"] = [gpu_hours(int(n), kind, rate=rate, steps=steps) for n in images]
    return table


def attacks_table(kind: str, rate: float) -> pd.DataFrame:
    """TFLOP per prompt, PFLOP and GPU hours of each of ATTACKS against METHODS methods; no prompt is broken early."""
    rows = {}
    for name, budget in ATTACKS.items():
        each = attack_flop(name, kind)
        again = budget["images"] * image_flop(kind, steps=budget["steps"]) if name in ONCE else each
        whole = budget["prompts"] * (each + (METHODS - 1) * again)
        rows[name] = {name: budget[name] for name in ("prompts", "updates", "images")}
        rows[name] |= {"TFLOP each": each / 1e12, "PFLOP": whole / 1e15, "GPU hours": whole / rate / 3600}
    return pd.DataFrame.from_dict(rows, orient="index")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python data/paper/cost.py", description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=MODELS, default="sd14", help="of the experiments and attacks")
    parser.add_argument("--steps", type=int, default=50, help="UNet steps of an image")
    parser.add_argument("--gpu", choices=PEAKS, default="A100")
    parser.add_argument("--share", type=float, default=0.25, help="of the GPU's peak that is achieved: an assumption")
    asked = parser.parse_args()
    try:
        positive(asked.share, "--share")
        image = image_flop(asked.model, steps=asked.steps)
    except ValueError as error:
        parser.error(str(error))
    peak = PEAKS[asked.gpu]
    rate = asked.share * peak
    show = {"float_format": "{:,.1f}".format, "formatters": dict.fromkeys(("original", "edited"), "{:,.0f}".format)}
    print(f"counted work of the parts and of one image ({asked.steps} steps, guided); weights in float16")
    print(models_table(asked.steps).to_string(**show))
    print(f"\nassumed, not measured: one {asked.gpu} at {asked.share:.0%} of {peak / 1e12:.0f} TFLOP/s", end="")
    print(f" = {rate / 1e12:.0f} TFLOP/s, {image / rate:.1f} s an image")
    print(f"\nimages of the experiments on {asked.model}, by the original and by the erasers of {METHODS} methods")
    print(experiments_table(asked.model, rate, asked.steps).to_string(**show))
    print(f"\nattacks on {asked.model} with published budgets against {METHODS} methods, no prompt broken early")
    print(attacks_table(asked.model, rate).to_string(**show))
    print(f"(a backward counted as {BACKWARD} forwards; {' and '.join(ONCE)} search once for all models)")


def _model(kind: str) -> tuple[int, dict, list]:
    if kind not in MODELS:
        raise ValueError(f"kind must be one of {', '.join(MODELS)}, not {kind!r}")
    return MODELS[kind]


if __name__ == "__main__":
    main()
