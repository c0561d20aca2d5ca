"""What the attacks through the UNet share: their settings, noised latents, and how well the victim denoises them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor
from tqdm import tqdm

from rece import solver, texts
from rece.attacks import _tokens
from rece.images import bfloat16, generate, to_latents


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
    score_times: a candidate's score is its mean loss over so many timesteps, with fixed noise. The candidate of the
    lowest score is returned, and `losses` holds the scores of all candidates in turn.
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
        names = ["updates", "score_times", "steps", "batch_size"]
        names += [] if self.check_every is None else ["check_every"]
        solver.whole(**{name: getattr(self, name) for name in names})
        solver.whole(least=0, repeat=self.repeat)
        for name in ("lr", "weight_decay"):
            solver.positive(getattr(self, name), name, or_zero=True)


def mix(repeat: int, seed: int) -> int:
    """A seed for an attack's draws. The image's own seed would repeat the noise that the image was drawn from."""
    return int(np.random.SeedSequence([repeat, int(seed)]).generate_state(1, np.uint64)[0])


class Denoising:
    """The victim's task: denoise the original's images of the prompts and seeds, while it reads embeds.

    latents: (n, c, h, w), the images as the means of the VAE's posterior, scaled as the UNet reads them. rows: indices
    of them. The loss of a latent x at timestep t is the mean of (found - wanted)^2 over its numbers. found is what the
    victim's UNet predicts from x_t, which is x noised by the victim's scheduler. wanted is the noise, or for
    v-prediction the velocity; if taught, it is what the original's UNet predicts from the same x_t and the prompt.
    All draws of a latent come from one CPU generator, made from settings.repeat and the picture's seed. The first
    draws are the fixed noise that `offer` scores with. best: of each search, the candidate of the lowest score so far.
    losses: of each search, all scores in turn.
    """

    @torch.no_grad()
    def __init__(self, victim, original, prompts, seeds, settings: Settings, taught: bool = False):
        names = ("steps", "guidance", "batch_size", "bf16", "progress")
        images = generate(original, prompts, seeds, **{name: getattr(settings, name) for name in names})
        self.victim, self.original, self.settings = victim, original, settings
        self.asked = texts.encode(original, prompts) if taught else None
        latents = to_latents(original, images, settings.batch_size)
        self.latents = latents.to(victim.device, victim.unet.dtype)
        self.bf16 = bfloat16(victim.device, settings.bf16)
        self.autocast = torch.autocast(victim.device.type, torch.bfloat16, enabled=self.bf16)
        self.scheduler = DDPMScheduler.from_config(victim.scheduler.config)
        self.horizon = self.scheduler.config.num_train_timesteps
        self.generators = [torch.Generator().manual_seed(mix(settings.repeat, seed)) for seed in seeds]
        times = [int((k + 0.5) * self.horizon / settings.score_times) for k in range(settings.score_times)]
        self.fixed = [(rows, [self.noised(rows, t) for t in times]) for rows in self.batches(len(seeds))]
        self.best, self.losses = [], []

    def batches(self, n: int) -> list[list[int]]:
        """The rows 0 .. n - 1, batch_size of them at a time."""
        size = self.settings.batch_size
        return [list(range(n))[start : start + size] for start in range(0, n, size)]

    def updates(self, name: str, every: int | None = None) -> Iterator[tuple[int, bool]]:
        """Each update's number, and whether a candidate follows: after every check_every updates and after the last.

        name: of the bar. every: what a check_every of None means; None: after the last update only.
        """
        n = self.settings.updates
        every = self.settings.check_every or every or n
        for step in tqdm(range(n), desc=name, delay=1, leave=False, disable=not self.settings.progress):
            yield step, (step + 1) % every == 0 or step + 1 == n

    def noised(self, rows: list[int], t: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The latents of the rows, freshly noised: x_t, t (rows,), and what is wanted. None: t is drawn uniformly."""
        own, x = [self.generators[row] for row in rows], self.latents[rows]
        drawn = [torch.randint(self.horizon, (), generator=g) if t is None else torch.tensor(t) for g in own]
        noise = torch.stack([torch.randn(x.shape[1:], generator=g) for g in own]).to(x)
        ts = torch.stack(drawn).to(x.device)
        noisy = self.scheduler.add_noise(x, noise, ts)
        if self.asked is not None:
            return noisy, ts, self.predict(self.original.unet, noisy, ts, self.asked[rows])
        if self.victim.scheduler.config.prediction_type == "epsilon":
            return noisy, ts, noise
        return noisy, ts, self.scheduler.get_velocity(x, noise, ts)

    def encode(self, ids: Tensor, slots: Tensor | None = None, soft: Tensor | None = None) -> Tensor:
        """The victim's embeddings (n, positions, d) of ids (n, positions); soft (n, k, d) is read at slots (n, k)."""
        encoder = self.victim.text_encoder
        with self.autocast, nullcontext() if soft is None else texts.replaced(encoder, slots, soft):
            return encoder(ids)[0]

    def predict(self, unet: torch.nn.Module, noisy: Tensor, ts: Tensor, embeds: Tensor) -> Tensor:
        with self.autocast:
            return unet(noisy, ts, encoder_hidden_states=embeds.to(noisy.dtype)).sample

    def losses_of(self, embeds: Tensor, noisy: Tensor, ts: Tensor, wanted: Tensor) -> Tensor:
        """The loss of each row of what `noised` returns, (rows,) float32; embeds: (rows, positions, d)."""
        found = self.predict(self.victim.unet, noisy, ts, embeds)
        return (found.float() - wanted.float()).square().flatten(1).mean(1)

    def slope(self, noised: tuple[Tensor, Tensor, Tensor], soft: Tensor, read: Callable[[Tensor], Tensor]) -> Tensor:
        """The gradient of the summed losses with respect to soft (rows, ...); read(soft) returns the rows' embeds."""
        with torch.enable_grad():
            soft = soft.requires_grad_()
            return torch.autograd.grad(self.losses_of(read(soft), *noised).sum(), soft)[0]

    def offer(self, candidates: list, read: Callable[[list[int]], Tensor]) -> None:
        """Score one candidate of each search: the mean loss of its latents over the fixed timesteps and noise.

        read(rows) returns the embeds of rows that the candidates give.
        """
        found = []
        for rows, points in self.fixed:
            embeds = read(rows)
            found.append(sum(self.losses_of(embeds, *point) for point in points) / len(points))
        scores = torch.cat(found).cpu().view(len(candidates), -1).mean(1).tolist()
        if not self.best:
            self.best, self.losses = list(candidates), [[] for _ in candidates]
        for n, score in enumerate(scores):
            self.losses[n].append(score)
            if score == min(self.losses[n]):
                self.best[n] = candidates[n]

    @property
    def evaluations(self) -> int:
        """How often the victim's UNet was run for each search."""
        passes = self.settings.updates + self.settings.score_times * len(self.losses[0])
        return passes * (len(self.latents) // len(self.losses))

    @contextmanager
    def underway(self):
        """Inside the block gradients are off unless they are enabled, and the victim's parameters are frozen.

        On a CPU in bfloat16, attention is computed in plain steps: the backward pass of the fused one is slow there.
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
