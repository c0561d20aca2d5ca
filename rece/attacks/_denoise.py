"""What the attacks through the UNet share: images as latents, noised, and how well the victim denoises them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor

from rece.attacks._tokens import frozen, replaced
from rece.images import bfloat16, generate


def check(
    victim: DiffusionPipeline,
    prompts: list[str],
    seeds: list[int],
    images: np.ndarray | None = None,
    *,
    counts: dict[str, int],
    rates: dict[str, float],
) -> None:
    """Raise ValueError naming the first thing of an attack's call that is not as it must be.

    counts: parameters that are whole numbers from 1. rates: parameters that are numbers from 0.
    """
    n, prediction = len(prompts), victim.scheduler.config.prediction_type
    if getattr(victim, "text_encoder_2", None) is not None:
        raise ValueError("attacks through the UNet are not supported for pipelines with two text encoders")
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} must be a whole number, 1 or more, not {count!r}")
    for name, rate in rates.items():
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < float("inf"):
            raise ValueError(f"{name} must be a number, 0 or more, not {rate!r}")
    if n == 0 or len(seeds) != n:
        raise ValueError(f"seeds must be one number per prompt: {len(seeds)} seeds for {n} prompts")
    if images is not None and (images.dtype != np.uint8 or images.shape[0] != n or images.shape[-1] != 3):
        raise ValueError(f"images must be uint8 ({n}, h, w, 3), one per prompt, not {images.dtype} {images.shape}")
    if prediction not in ("epsilon", "v_prediction"):
        raise ValueError(f"prediction_type {prediction!r} of the scheduler is not supported")


def mix(draw: int, seed: int) -> int:
    """A seed for an attack's draws: the image's own would repeat the noise that the image was drawn from."""
    return int(np.random.SeedSequence([draw, int(seed)]).generate_state(1, np.uint64)[0])


def draw_latents(
    original: DiffusionPipeline,
    prompts: list[str],
    seeds: list[int],
    images: np.ndarray | None = None,
    *,
    batch_size: int,
    **drawing,
) -> Tensor:
    """The original's images of the prompts and seeds (`images`, if they are there already) as `latents`."""
    if images is None:
        images = generate(original, prompts, seeds, batch_size=batch_size, **drawing)
    return latents(original, images, batch_size)


@torch.no_grad()
def latents(pipe: DiffusionPipeline, images: np.ndarray, batch_size: int) -> Tensor:
    """The means of the VAE's posterior of uint8 images (n, h, w, 3), scaled as the UNet reads them: (n, c, h', w')."""
    found = []
    for start in range(0, len(images), batch_size):
        pixels = torch.as_tensor(images[start : start + batch_size]).permute(0, 3, 1, 2) / 127.5 - 1
        found.append(pipe.vae.encode(pixels.to(pipe.device, pipe.vae.dtype)).latent_dist.mean)
    return torch.cat(found) * pipe.vae.config.scaling_factor


class Denoising:
    """The victim's task: to denoise latents (n, c, h, w), each with draws of its own, reading what it is given.

    Its loss on a latent x at timestep t is the mean of (found - wanted)^2 over the latent's numbers; found is what
    the victim's UNet predicts from x_t (the victim's scheduler says how x is noised), wanted the noise, or for
    v-prediction the velocity. If a teacher is given, a pipeline and embeds (n, positions, d), wanted is what the
    teacher's UNet predicts from the same x_t reading these.
    All draws come from one CPU generator per latent, made from `draw` and its seed. The first of them are the noise
    of `score`. batch_size: latents per pass; memory only. bf16: see `generate.bfloat16`.
    """

    def __init__(
        self,
        victim: DiffusionPipeline,
        latents: Tensor,
        seeds: list[int],
        *,
        score_times: int,
        batch_size: int,
        bf16: bool | str,
        draw: int,
        teacher: tuple[DiffusionPipeline, Tensor] | None = None,
    ):
        self.victim, self.teacher, self.batch_size = victim, teacher, batch_size
        self.latents = latents.to(victim.device, victim.unet.dtype)
        self.bf16 = bfloat16(victim.device, bf16)
        self.scheduler = DDPMScheduler.from_config(victim.scheduler.config)
        self.horizon = self.scheduler.config.num_train_timesteps
        self.generators = [torch.Generator().manual_seed(mix(draw, seed)) for seed in seeds]
        everyone = list(range(len(seeds)))
        self.fixed = []
        for k in range(score_times):
            t, noise = int((k + 0.5) * self.horizon / score_times), self.noise(everyone)
            parts = [self.pose(rows, noise[rows], t) for rows in self.batches(everyone)]
            self.fixed.append(tuple(torch.cat(part) for part in zip(*parts, strict=True)))

    def batches(self, rows: list[int]) -> Iterator[list[int]]:
        return (rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size))

    def noise(self, rows: list[int]) -> Tensor:
        """The next normal draw of each row, as latents[rows]."""
        draws = [torch.randn(self.latents.shape[1:], generator=self.generators[row]) for row in rows]
        return torch.stack(draws).to(self.latents)

    def times(self, rows: list[int]) -> Tensor:
        """The next timestep of each row, uniform over all of training: (rows,) long."""
        return torch.cat([torch.randint(self.horizon, (1,), generator=self.generators[row]) for row in rows])

    @torch.no_grad()
    def pose(self, rows: list[int], noise: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x_t, t and what is wanted of the victim, for the rows; t is one timestep or one per row."""
        x, ts = self.latents[rows], torch.as_tensor(t).to(self.latents.device).expand(len(rows))
        noisy = self.scheduler.add_noise(x, noise, ts)
        if self.teacher is not None:
            pipe, embeds = self.teacher
            return noisy, ts, self.predict(pipe.unet, noisy, ts, embeds[rows])
        if self.victim.scheduler.config.prediction_type == "epsilon":
            return noisy, ts, noise
        return noisy, ts, self.scheduler.get_velocity(x, noise, ts)

    def encode(self, ids: Tensor, slots: Tensor | None = None, soft: Tensor | None = None) -> Tensor:
        """The victim's embeddings (n, positions, d) of ids (n, positions); soft (n, k, d) is read at slots (n, k)."""
        with self.autocast(), nullcontext() if soft is None else replaced(self.victim.text_encoder, slots, soft):
            return self.victim.text_encoder(ids)[0]

    def predict(self, unet: torch.nn.Module, noisy: Tensor, ts: Tensor, embeds: Tensor) -> Tensor:
        with self.autocast():
            return unet(noisy, ts, encoder_hidden_states=embeds.to(noisy.dtype)).sample

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.latents.device.type, torch.bfloat16, enabled=self.bf16)

    def losses(self, rows: list[int], embeds: Tensor, noise: Tensor, t: int | Tensor) -> Tensor:
        """The loss of each row, (rows,) float32, with a gradient to embeds (rows, positions, d)."""
        return self._losses(embeds, *self.pose(rows, noise, t))

    @torch.no_grad()
    def score(self, rows: list[int], read: Callable[[list[int]], Tensor]) -> list[float]:
        """The mean loss of each row at the fixed timesteps and noise; read(some rows) are their embeds."""
        found = []
        for some in self.batches(rows):
            embeds = read(some)
            total = sum(self._losses(embeds, *(part[some] for part in point)) for point in self.fixed)
            found += (total / len(self.fixed)).tolist()
        return found

    def _losses(self, embeds: Tensor, noisy: Tensor, ts: Tensor, wanted: Tensor) -> Tensor:
        found = self.predict(self.victim.unet, noisy, ts, embeds)
        return (found.float() - wanted.float()).square().flatten(1).mean(1)

    @contextmanager
    def underway(self):
        """No gradients but where they are enabled, and none of the victim's parameters.

        On a CPU in bfloat16 attention is spelled out meanwhile: the fused one's backward is slow there.
        """
        unet, encoder = self.victim.unet, self.victim.text_encoder
        processors, form = dict(unet.attn_processors), encoder.config._attn_implementation
        spelled = self.bf16 and self.latents.device.type == "cpu"
        with frozen(unet, encoder), torch.no_grad():
            try:
                if spelled and all(type(processor) is AttnProcessor2_0 for processor in processors.values()):
                    unet.set_attn_processor(AttnProcessor())
                if spelled:
                    encoder.set_attn_implementation("eager")
                yield
            finally:
                unet.set_attn_processor(processors)
                encoder.set_attn_implementation(form)


class Candidates:
    """The best of each prompt's candidates, by the lowest score, and who is still running.

    succeeded: gets the candidates (texts, seeds) of all who are running; those it calls successful are kept as they
    are and stop. best: the candidates kept. losses: the scores of all candidates in turn.
    """

    def __init__(self, seeds: list[int], succeeded: Callable[[list[str], list[int]], list[bool]] | None = None):
        self.seeds, self.succeeded = seeds, succeeded
        self.running = list(range(len(seeds)))
        self.best: list = [None for _ in seeds]
        self.losses: list[list[float]] = [[] for _ in seeds]

    def offer(self, found: list, scores: list[float]) -> None:
        """One candidate, with its score, of each who is running. Raises ValueError if succeeded answers too few."""
        for row, candidate, score in zip(self.running, found, scores, strict=True):
            self.losses[row].append(score)
            if score == min(self.losses[row]):
                self.best[row] = candidate
        if self.succeeded is None:
            return
        stopped = self.succeeded(found, [self.seeds[row] for row in self.running])
        if len(stopped) != len(found):
            raise ValueError(f"succeeded must return {len(found)} truth values, not {len(stopped)}")
        for row, candidate, stop in zip(self.running, found, stopped, strict=True):
            self.best[row] = candidate if stop else self.best[row]
        self.running = [row for row, stop in zip(self.running, stopped, strict=True) if not stop]
