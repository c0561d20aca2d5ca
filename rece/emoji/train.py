"""Training loops of the embedded model's image side: VAE, UNet and judge. All resume from their checkpoint."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from rece.judges.embedded import Judge


def to_signed(images) -> torch.Tensor:
    """uint8 (n, h, w, 3) to float32 (n, 3, h, w) in [-1, 1]."""
    return torch.as_tensor(images).permute(0, 3, 1, 2).float() / 127.5 - 1


class Run:
    """A resumable, time-budgeted training run: iterates over steps, checkpoints, and logs the mean loss.

    The schedule follows elapsed training time, not the step count, so a run takes `minutes` on any machine. The
    learning rate is the optimizer's own times a short warm-up (a share `warm` of the time), flat, then linear to zero.
    more: what else is kept in the checkpoint. clip: the largest norm of the gradient.
    """

    def __init__(
        self,
        checkpoint: Path,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        minutes: float,
        warm: float = 0.01,
        clip: float | None = 1.0,
        **more,
    ):
        self.checkpoint, self.minutes, self.warm, self.clip = Path(checkpoint), minutes, warm, clip
        self.model, self.optimizer, self.state = model, optimizer, {"model": model, "optimizer": optimizer, **more}
        self.elapsed, self.step, self.losses = 0.0, 0, []
        if self.checkpoint.exists():
            saved = torch.load(self.checkpoint, weights_only=True)
            for name, thing in self.state.items():
                thing.load_state_dict(saved[name])
            self.elapsed, self.step = saved["elapsed"], saved["step"]

    def save(self) -> None:
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        part = self.checkpoint.with_suffix(".part")
        saved = {name: thing.state_dict() for name, thing in self.state.items()}
        torch.save({**saved, "elapsed": self.elapsed, "step": self.step}, part)
        part.replace(self.checkpoint)

    @property
    def progress(self) -> float:
        return min(1.0, self.elapsed / (60 * self.minutes))

    def __iter__(self) -> Iterator[int]:
        last, saved = time.perf_counter(), self.elapsed
        while self.progress < 1:
            for group in self.optimizer.param_groups:
                factor = min(1.0, self.progress / self.warm + 1e-2, (1 - self.progress) / 0.6)
                group["lr"] = self.optimizer.defaults["lr"] * factor
            yield self.step
            now = time.perf_counter()
            self.elapsed, last, self.step = self.elapsed + now - last, now, self.step + 1
            if self.step % 100 == 0:
                recent = np.mean(self.losses[-100:], axis=0)
                print(f"step {self.step}  {self.elapsed / 60:.1f} min  loss {np.round(recent, 4)}", flush=True)
            if self.elapsed - saved > 120:  # seconds
                saved = self.elapsed
                self.save()
        self.save()

    def descend(self, loss: torch.Tensor, *logged: torch.Tensor) -> None:
        """One step of the optimizer down the gradient of `loss`; the numbers `logged` are printed as means."""
        self.optimizer.zero_grad()
        loss.backward()
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.losses.append([number.item() for number in logged])


def train_vae(bank: np.ndarray, checkpoint: Path, minutes: float, seed: int = 0) -> AutoencoderKL:
    """An AutoencoderKL (64 px → 8×8×16 latents of unit scale) on the augmented drawings `bank` (n, 64, 64, 3)
    uint8."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    vae = AutoencoderKL(
        block_out_channels=(16, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=16,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=bank.shape[-2],
        scaling_factor=1.0,
    )
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    run = Run(checkpoint, vae, optimizer, minutes)
    for _ in run:
        x = to_signed(bank[random.integers(0, len(bank), 32)])
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            y = vae.decode(posterior.sample()).sample
        y = y.float()
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        edges = sum((torch.diff(y, dim=d) - torch.diff(x, dim=d)).abs().mean() for d in (2, 3))
        mse = F.mse_loss(y, x)
        loss = F.l1_loss(y, x) + 2 * mse + 0.5 * edges + 1e-3 * kl
        run.descend(loss, loss, -10 * torch.log10(mse / 4), kl)
    return vae


def degrade(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Augment judge images (n, 3, h, w) in [-1, 1]: blur, noise, brightness and contrast, as a generator's flaws
    might."""
    n = len(x)
    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = torch.lerp(x, soft, 0.9 * torch.rand(n, 1, 1, 1, generator=generator))
    x = x * (0.9 + 0.2 * torch.rand(n, 1, 1, 1, generator=generator))
    x = x + 0.1 * (torch.rand(n, 3, 1, 1, generator=generator) - 0.5)
    return x + 0.1 * torch.rand(n, 1, 1, 1, generator=generator) * torch.randn(x.shape, generator=generator)


def train_judge(
    bank: np.ndarray, objects: list[str], styles: list[str], checkpoint: Path, minutes: float, seed: int = 0
) -> Judge:
    """The judge, trained on `bank` (objects, styles, variants, 64, 64, 3) uint8 with `degrade` on top."""
    torch.manual_seed(seed)
    random, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    judge = Judge(objects, styles)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.05)
    run = Run(checkpoint, judge, optimizer, minutes, clip=None)
    for _ in run:
        i, j, k = (random.integers(0, size, 64) for size in bank.shape[:3])
        x = degrade(to_signed(bank[i, j, k]), generator)
        features = judge((x + 1) * 127.5)
        object_loss = F.cross_entropy(judge.object_head(features), torch.as_tensor(i), label_smoothing=0.05)
        style_loss = F.cross_entropy(judge.style_head(features), torch.as_tensor(j), label_smoothing=0.05)
        run.descend(object_loss + style_loss, object_loss, style_loss)
    return judge.eval()


@torch.no_grad()
def latents(vae: AutoencoderKL, images: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Posterior mean and deviation of uint8 images (n, h, w, 3): two (n, c, h', w') float32 tensors."""
    means, deviations = [], []
    for i in range(0, len(images), 128):
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(to_signed(images[i : i + 128])).latent_dist
        means.append(posterior.mean.float())
        deviations.append(posterior.std.float())
    return torch.cat(means), torch.cat(deviations)


@torch.no_grad()
def standardise(vae: AutoencoderKL, mean: torch.Tensor) -> None:
    """Fold the latents' channel means and deviations into the VAE's 1×1 convolutions, so that its latents have unit
    scale.

    Stock Stable Diffusion code knows one scaling factor only; afterwards that factor is 1. mean: (n, c, h, w) of
    `latents`.
    """
    shift, scale = mean.mean((0, 2, 3)), mean.std((0, 2, 3))
    channels = len(shift)
    enc, dec = vae.quant_conv, vae.post_quant_conv
    dec.bias += dec.weight[:, :, 0, 0] @ shift
    dec.weight *= scale[None, :, None, None]
    enc.weight[:channels] /= scale[:, None, None, None]
    enc.bias[:channels] = (enc.bias[:channels] - shift) / scale
    enc.bias[channels:] -= 2 * scale.log()


def new_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule, with v-prediction (as SD 2.1) and trailing steps."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )


def train_unet(
    latent_mean: torch.Tensor,
    latent_std: torch.Tensor,
    embeds: torch.Tensor,
    caption_index: torch.Tensor,
    empty: torch.Tensor,
    checkpoint: Path,
    minutes: float,
    seed: int = 0,
) -> UNet2DConditionModel:
    """The UNet, on cached latents and cached caption embeddings; returns the exponential average of its weights.

    latent_mean, latent_std: (drawings, variants, c, h, w). embeds: (captions, positions, d) of all distinct captions;
    caption_index: (drawings, captions per drawing) into them. empty: (positions, d), the embedding of "" that replaces
    a tenth of the captions. Loss: v-prediction with min-SNR weights (Hang et al. 2023, arXiv 2303.09556; gamma 5).
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    drawings, variants, channels, side, _ = latent_mean.shape
    unet = UNet2DConditionModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(112, 128),
        layers_per_block=1,
        cross_attention_dim=embeds.shape[-1],
        attention_head_dim=4,
        norm_num_groups=16,
    )
    unet.set_attn_processor(AttnProcessor())  # at this size SDPA's backward pass is far slower
    average = AveragedModel(unet, multi_avg_fn=get_ema_multi_avg_fn(0.998))
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1.2e-3, betas=(0.9, 0.99), weight_decay=0.01)
    alphas = new_scheduler().alphas_cumprod
    batch = 48
    run = Run(checkpoint, unet, optimizer, minutes, average=average)
    for _ in run:
        i = torch.randint(drawings, (batch,), generator=generator)
        j = torch.randint(variants, (batch,), generator=generator)
        captions = caption_index[i, torch.randint(caption_index.shape[1], (batch,), generator=generator)]
        text = embeds[captions].float()
        text[torch.rand(batch, generator=generator) < 0.1] = empty
        mean = latent_mean[i, j]
        x = mean + latent_std[i, j] * torch.randn(mean.shape, generator=generator)
        noise = torch.randn(mean.shape, generator=generator)
        # stratified timesteps: every batch covers the whole schedule
        t = ((torch.arange(batch) + torch.rand(batch, generator=generator)) * len(alphas) / batch).long()
        alpha = alphas[t].view(-1, 1, 1, 1)
        noised = alpha.sqrt() * x + (1 - alpha).sqrt() * noise
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * x
        with torch.autocast("cpu", torch.bfloat16):
            predicted = unet(noised, t, text).sample
        snr = alphas[t] / (1 - alphas[t])
        error = (predicted.float() - velocity).pow(2).mean((1, 2, 3))
        loss = (snr.clamp(max=5.0) / (snr + 1) * error).mean()
        run.descend(loss, loss, error.mean())
        average.update_parameters(unet)
    return average.module.eval()
