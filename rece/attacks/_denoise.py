"""What the attacks through the UNet share: their settings, noised latents, and how well the victim denoises them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor

from rece.attacks import _tokens
from rece.images import bfloat16, generate


def applies(victim: DiffusionPipeline) -> str:
    """An empty text if attacks through the UNet can be run on the victim, else one sentence that says why not."""
    if getattr(victim, "unet", None) is None:
        return f"victim must have a UNet, but it is a {type(victim).__name__}: leave this attack out"
    prediction = victim.scheduler.config.prediction_type
    if prediction not in ("epsilon", "v_prediction"):
        return f"prediction_type {prediction!r} of victim.scheduler is not supported: leave this attack out"
    return _tokens.applies(victim)


@dataclass(frozen=True)
class Settings:
    """The keywords that every attack through the UNet takes. SETTINGS of an attack's file holds its defaults.

    updates: steps of the optimiser. lr, weight_decay: of Adam or AdamW.
    check_every: after so many updates, what is learnt so far becomes a candidate. None: see the attack.
    score_times: a candidate's score is its mean loss over so many timesteps, with fixed noise.
    steps, guidance: of the original's images. batch_size: prompts or images per pass; it changes the memory, and the
    results only by rounding. bf16: see `rece.images.bfloat16`.
    repeat: the attack again with other random draws, 0 or more. All draws come from CPU generators, made from
    `repeat` and what the attack names. The same seeds give the same result on the same machine.
    progress: show a bar if the attack takes more than a second.
    Raises ValueError that names the parameter.
    """

    updates: int
    lr: float
    weight_decay: float
    check_every: int | None
    score_times: int = 4
    steps: int = 25
    guidance: float = 7.5
    batch_size: int = 16
    bf16: bool | str = False
    repeat: int = 0
    progress: bool = True

    def __post_init__(self):
        counts = {name: getattr(self, name) for name in ("updates", "score_times", "steps", "batch_size")}
        _tokens.check_counts(counts | {"check_every": 1 if self.check_every is None else self.check_every})
        _tokens.check_counts({"repeat": self.repeat}, least=0)
        for name, rate in {"lr": self.lr, "weight_decay": self.weight_decay}.items():
            if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < float("inf"):
                raise ValueError(f"{name} must be a number, 0 or more, not {rate!r}")


def mix(repeat: int, seed: int) -> int:
    """A seed for an attack's draws. The image's own seed would repeat the noise that the image was drawn from."""
    return int(np.random.SeedSequence([repeat, int(seed)]).generate_state(1, np.uint64)[0])


def draw_latents(original: DiffusionPipeline, prompts: list[str], seeds: list[int], settings: Settings) -> Tensor:
    """Draw the original's images of the prompts and seeds, and encode them by `latents`."""
    names = ("steps", "guidance", "batch_size", "bf16", "progress")
    images = generate(original, prompts, seeds, **{name: getattr(settings, name) for name in names})
    return latents(original, images, settings.batch_size)


@torch.no_grad()
def latents(pipe: DiffusionPipeline, images: np.ndarray, batch_size: int) -> Tensor:
    """The means of the VAE's posterior of uint8 images (n, h, w, 3), scaled as the UNet reads them: (n, c, h', w')."""
    found = []
    for start in range(0, len(images), batch_size):
        pixels = torch.as_tensor(images[start : start + batch_size]).permute(0, 3, 1, 2) / 127.5 - 1
        found.append(pipe.vae.encode(pixels.to(pipe.device, pipe.vae.dtype)).latent_dist.mean)
    return torch.cat(found) * pipe.vae.config.scaling_factor


class Denoising:
    """The victim's task: denoise the latents (n, c, h, w), each with random draws of its own, while it reads embeds.

    The loss of a latent x at timestep t is the mean of (found - wanted)^2 over the latent's numbers. found is what
    the victim's UNet predicts from x_t, which is x noised by the victim's scheduler. wanted is the noise, or for
    v-prediction the velocity. If a teacher is given, a pipeline and embeds (n, positions, d), wanted is what the
    teacher's UNet predicts from the same x_t and its own embeds.
    All draws of a latent come from one CPU generator, made from settings.repeat and the latent's seed. Its first
    draws are the noise of `score`. rows: indices of latents.
    """

    def __init__(
        self,
        victim: DiffusionPipeline,
        latents: Tensor,
        seeds: list[int],
        settings: Settings,
        teacher: tuple[DiffusionPipeline, Tensor] | None = None,
    ):
        self.victim, self.teacher, self.batch_size = victim, teacher, settings.batch_size
        self.latents = latents.to(victim.device, victim.unet.dtype)
        self.bf16 = bfloat16(victim.device, settings.bf16)
        self.scheduler = DDPMScheduler.from_config(victim.scheduler.config)
        self.horizon = self.scheduler.config.num_train_timesteps
        self.generators = [torch.Generator().manual_seed(mix(settings.repeat, seed)) for seed in seeds]
        self.fixed = []
        for k in range(settings.score_times):
            t, noise = int((k + 0.5) * self.horizon / settings.score_times), self.noise(list(range(len(seeds))))
            parts = [self.noised(rows, noise[rows], t) for rows in self.batches(len(seeds))]
            self.fixed.append(tuple(torch.cat(part) for part in zip(*parts, strict=True)))

    def batches(self, n: int) -> Iterator[list[int]]:
        """The rows 0 .. n - 1, batch_size of them at a time."""
        return (list(range(start, min(start + self.batch_size, n))) for start in range(0, n, self.batch_size))

    def noise(self, rows: list[int]) -> Tensor:
        """The next normal draw of each row, as latents[rows]."""
        draws = [torch.randn(self.latents.shape[1:], generator=self.generators[row]) for row in rows]
        return torch.stack(draws).to(self.latents)

    def times(self, rows: list[int]) -> Tensor:
        """The next timestep of each row, uniform over all training timesteps: (rows,) long, on the CPU."""
        return torch.cat([torch.randint(self.horizon, (1,), generator=self.generators[row]) for row in rows])

    @torch.no_grad()
    def noised(self, rows: list[int], noise: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The latents of the rows, noised to timestep t (one, or one per row): x_t, t, and what is wanted."""
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
        encoder = self.victim.text_encoder
        with self.autocast(), nullcontext() if soft is None else _tokens.replaced(encoder, slots, soft):
            return encoder(ids)[0]

    def predict(self, unet: torch.nn.Module, noisy: Tensor, ts: Tensor, embeds: Tensor) -> Tensor:
        with self.autocast():
            return unet(noisy, ts, encoder_hidden_states=embeds.to(noisy.dtype)).sample

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.latents.device.type, torch.bfloat16, enabled=self.bf16)

    def losses(self, rows: list[int], embeds: Tensor, noise: Tensor, t: int | Tensor) -> Tensor:
        """The loss of each row, (rows,) float32, with a gradient to embeds (rows, positions, d)."""
        return self._losses(embeds, *self.noised(rows, noise, t))

    @torch.no_grad()
    def score(self, read: Callable[[list[int]], Tensor]) -> list[float]:
        """The mean loss of each latent over the fixed timesteps and noise; read(rows) returns the embeds of rows."""
        found = []
        for rows in self.batches(len(self.latents)):
            embeds = read(rows)
            total = sum(self._losses(embeds, *(part[rows] for part in point)) for point in self.fixed)
            found += (total / len(self.fixed)).tolist()
        return found

    def _losses(self, embeds: Tensor, noisy: Tensor, ts: Tensor, wanted: Tensor) -> Tensor:
        found = self.predict(self.victim.unet, noisy, ts, embeds)
        return (found.float() - wanted.float()).square().flatten(1).mean(1)

    @contextmanager
    def underway(self):
        """Inside the block gradients are off unless they are enabled, and the victim's parameters are frozen.

        On a CPU in bfloat16, attention is computed in plain steps inside the block, because the backward pass of the
        fused one is slow there.
        """
        unet, encoder = self.victim.unet, self.victim.text_encoder
        processors, form = dict(unet.attn_processors), encoder.config._attn_implementation
        spelled = self.bf16 and self.latents.device.type == "cpu"
        with _tokens.frozen(unet, encoder), torch.no_grad():
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
    """The best candidate of each of n searches, by the lowest score.

    best: the best candidates so far. losses: of each search, the scores of all its candidates in turn.
    """

    def __init__(self, n: int):
        self.best: list = [None] * n
        self.losses: list[list[float]] = [[] for _ in range(n)]

    def offer(self, found: list, scores: list[float]) -> None:
        """Take one candidate of each search, with its score."""
        for row, (candidate, score) in enumerate(zip(found, scores, strict=True)):
            self.losses[row].append(score)
            if score == min(self.losses[row]):
                self.best[row] = candidate
