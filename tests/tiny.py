"""Tiny pipelines and judges with random weights, built from configs in well under a second, without any download."""

import json
import tempfile
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    ConvNextImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

POSITIONS = 24
# Ten of ImageNet's thousand, as the configs of transformers' models name them, and its two cranes.
IMAGENET = [
    "tench, Tinca tinca",
    "crane",
    "English springer, English springer spaniel",
    "cassette player",
    "chain saw, chainsaw",
    "church, church building",
    "crane",
    "French horn, horn",
    "garbage truck, dustcart",
    "gas pump, gasoline pump, petrol pump, island dispenser",
    "golf ball",
    "parachute, chute",
]


def tokenizer() -> CLIPTokenizer:
    """A real CLIPTokenizer whose vocabulary is the byte alphabet: one token per letter, no merges but one."""
    letters = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [chr(b) for b in letters] + [chr(256 + n) for n in range(256 - len(letters))]
    tokens = [*alphabet, *(a + "</w>" for a in alphabet), "th", "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        vocab, merges = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocab.write_text(json.dumps({token: n for n, token in enumerate(tokens)}), encoding="utf-8")
        merges.write_text("#version: 0.2\nt h\n", encoding="utf-8")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=POSITIONS, pad_token="<|endoftext|>")


def t5_tokenizer() -> T5Tokenizer:
    """A real T5Tokenizer whose vocabulary is the lower-case letters and a few pieces."""
    pieces = ["▁", *"abcdefghijklmnopqrstuvwxyz,.", "▁dog", "▁cat", "▁big", "▁a"]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5Tokenizer(vocab=special + [(piece, -1.0 - len(piece) / 9) for piece in pieces], model_max_length=512)


def _t5(width: int) -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(t5_tokenizer()),
        d_model=width,
        d_kv=8,
        d_ff=2 * width,
        num_layers=2,
        num_heads=4,
        initializer_factor=0.2,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config)


def _text_config(width: int, **other) -> CLIPTextConfig:
    size = len(tokenizer())
    return CLIPTextConfig(
        vocab_size=size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=size - 1,
        initializer_factor=5.0,
        **other,
    )


def _vae(channels: int = 4) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=channels,
        sample_size=16,
        shift_factor=0.1,
    )


def _scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def sd(seed: int = 0, width: int = 32) -> StableDiffusionPipeline:
    """A pipeline of Stable Diffusion 1.x's parts, float32, CPU: 16 x 16 images, 24 positions, text of `width`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            block_out_channels=(16, 32),
            layers_per_block=1,
            sample_size=8,
            in_channels=4,
            out_channels=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=width,
            attention_head_dim=2,
            norm_num_groups=8,
        )
        pipe = StableDiffusionPipeline(
            vae=_vae(),
            text_encoder=CLIPTextModel(_text_config(width)),
            tokenizer=tokenizer(),
            unet=unet,
            scheduler=_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    return _quiet(pipe)


def sdxl(seed: int = 0) -> StableDiffusionXLPipeline:
    """A pipeline of Stable Diffusion XL's parts, float32 on the CPU: two text encoders of width 32, text width 64."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            block_out_channels=(16, 32),
            layers_per_block=1,
            sample_size=8,
            in_channels=4,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=64,
            attention_head_dim=(2, 4),
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 32,
            norm_num_groups=8,
        )
        pipe = StableDiffusionXLPipeline(
            vae=_vae(),
            text_encoder=CLIPTextModel(_text_config(32)),
            text_encoder_2=CLIPTextModelWithProjection(_text_config(32, projection_dim=32)),
            tokenizer=tokenizer(),
            tokenizer_2=tokenizer(),
            unet=unet,
            scheduler=_scheduler(),
            add_watermarker=False,
        )
    return _quiet(pipe)


def sd3(seed: int = 0, t5: bool = True) -> StableDiffusion3Pipeline:
    """A pipeline of Stable Diffusion 3's parts: two CLIP encoders of width 16, T5 of width 40, pooled width 32."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipe = StableDiffusion3Pipeline(
            transformer=SD3Transformer2DModel(
                sample_size=8,
                patch_size=1,
                in_channels=4,
                out_channels=4,
                num_layers=2,
                attention_head_dim=8,
                num_attention_heads=4,
                joint_attention_dim=40,
                caption_projection_dim=32,
                pooled_projection_dim=32,
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=_vae(),
            text_encoder=CLIPTextModelWithProjection(_text_config(16, projection_dim=16)),
            tokenizer=tokenizer(),
            text_encoder_2=CLIPTextModelWithProjection(_text_config(16, projection_dim=16)),
            tokenizer_2=tokenizer(),
            text_encoder_3=_t5(40) if t5 else None,
            tokenizer_3=t5_tokenizer() if t5 else None,
        )
    return _quiet(pipe)


def flux(seed: int = 0) -> FluxPipeline:
    """A pipeline of FLUX.1's parts: CLIP of width 16 for the pooled embedding, T5 of width 40 for the tokens."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipe = FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=_vae(1),
            text_encoder=CLIPTextModel(_text_config(16)),
            tokenizer=tokenizer(),
            text_encoder_2=_t5(40),
            tokenizer_2=t5_tokenizer(),
            transformer=FluxTransformer2DModel(
                in_channels=4,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=40,
                pooled_projection_dim=16,
                axes_dims_rope=(4, 4, 8),
                guidance_embeds=True,
            ),
        )
    return _quiet(pipe)


def pixart(seed: int = 0, sigma: bool = False) -> PixArtAlphaPipeline | PixArtSigmaPipeline:
    """A pipeline of PixArt's parts: T5 of width 40, of whose positions only those with words are read."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        kind = PixArtSigmaPipeline if sigma else PixArtAlphaPipeline
        pipe = kind(
            tokenizer=t5_tokenizer(),
            text_encoder=_t5(40),
            vae=_vae(),
            transformer=PixArtTransformer2DModel(
                sample_size=8,
                num_layers=2,
                patch_size=2,
                attention_head_dim=8,
                num_attention_heads=3,
                caption_channels=40,
                in_channels=4,
                cross_attention_dim=24,
                out_channels=8,
                use_additional_conditions=False,
            ),
            scheduler=DPMSolverMultistepScheduler(),
        )
    return _quiet(pipe)


def clip(folder: Path) -> Path:
    """`folder`, with a CLIP model of images and texts in it, its processor and its tokenizer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text = _text_config(32, projection_dim=16)
        vision = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
        vision |= dict(image_size=32, patch_size=8, projection_dim=16, initializer_factor=5.0)
        config = CLIPModel.config_class(text_config=text.to_dict(), vision_config=vision, projection_dim=16)
        CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def resnet(folder: Path, labels: list[str] = IMAGENET, always: int | None = None) -> Path:
    """`folder`, with a ResNet classifier in it; always: the class it is then sure of, whatever the image."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        names = dict(enumerate(labels)) if labels else {}
        config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, layer_type="basic")
        config.id2label, config.label2id = names, {name: i for i, name in names.items()}
        if not labels:
            config.num_labels = len(IMAGENET)
        model = ResNetForImageClassification(config)
        model.classifier[1].weight.data *= 20
        if always is not None:
            model.classifier[1].weight.data.zero_()
            model.classifier[1].bias.data = 9.0 * torch.arange(len(labels)).eq(always)
    model.save_pretrained(folder)
    ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.875).save_pretrained(folder)
    return folder


def q16_vectors(width: int = 16) -> torch.Tensor:
    """The two prompt vectors of a Q16 judge, (2, width)."""
    return torch.randn(2, width, generator=torch.Generator().manual_seed(1))


class Squares(torch.nn.Module):
    """Stands in for the network of torchmetrics' LPIPS, whose weights are not here: mean squared difference."""

    def __init__(self, net):
        super().__init__()

    def forward(self, image, original, normalize):
        assert not normalize and image.shape == original.shape and image.dtype == torch.float32
        return (image - original).square().mean((1, 2, 3), keepdim=True)


class Means(torch.nn.Module):
    """A toy feature extractor for FID: the mean of each channel, 0 to 255. log: gets the shape of every batch."""

    num_features = 3

    def __init__(self, log: list | None = None):
        super().__init__()
        self.log = [] if log is None else log

    def forward(self, images):
        assert images.dtype == torch.uint8
        self.log.append(tuple(images.shape))
        return images.double().mean((2, 3))


@torch.no_grad()
def matrices(model: torch.nn.Module, names: list[str]) -> dict[str, torch.Tensor]:
    """The matrix (out, in) that each named linear layer multiplies its input by, adapters included."""
    found = {name: model.get_submodule(name) for name in names}
    return {
        name: (layer(torch.eye(layer.in_features)) - layer(torch.zeros(1, layer.in_features))).T
        for name, layer in found.items()
    }


def _quiet(pipe):
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def numbers(**flat) -> dict:
    """Keywords of `rece.erase` from flat names: uce_* belong to the start, lamb and the like to each round."""
    start = {"uce_lamb": "lamb", "uce_erase_scale": "erase_scale", "uce_preserve_scale": "preserve_scale"}
    start |= {"uce_tokens": "tokens", "preserve_uce": "preserve"}
    each = {name: name for name in ("lamb", "erase_scale", "preserve_scale", "derive_lamb", "reg")}
    each |= {"preserve_rounds": "preserve"}
    found = {name: value for name, value in flat.items() if name not in start | each}
    for group, names in (("start", start), ("each", each)):
        inner = {names[name]: value for name, value in flat.items() if name in names}
        found |= {group: inner} if inner else {}
    return found
