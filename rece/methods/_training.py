"""What methods that train share: what a model predicts on its way from noise to a picture, and a training loop that
continues after it was killed."""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from rece import families, files, solver, texts
from rece.edits import Weights
from rece.eraser import origin
from rece.images import bfloat16, fingerprint, generate, to_latents

EVERY = 50  # iterations between two checkpoints


@dataclass(frozen=True)
class Training:
    """The keywords that every method that trains takes. SETTINGS of a method's file holds its defaults.

    iterations: steps of Adam. lr: its rate. steps, guidance: of the sampler that latents or pictures come from.
    batch_size: latents per iteration. seed: of all random draws, on the CPU. bf16: see `rece.images.bfloat16`.
    checkpoint: a file that the training is kept in, every 50 iterations, and goes on from if it was killed; it is
    removed at the end. progress: show a bar if it takes more than a second.
    Raises ValueError that names the parameter.
    """

    iterations: int
    lr: float
    batch_size: int = 1
    steps: int = 50
    guidance: float = 3.0
    seed: int = 0
    bf16: bool | str = False
    checkpoint: str | Path | None = None
    progress: bool = True

    def __post_init__(self):
        solver.whole(iterations=self.iterations, batch_size=self.batch_size, steps=self.steps)
        solver.whole(least=0, most=2**31, seed=self.seed)
        solver.positive(self.lr, "lr")
        solver.positive(self.guidance, "guidance", or_zero=True)


class Pupil:
    """A model that learns beside the original, whose pipeline is left as it is.

    unet, text_encoder: the original's own, or after `learn` a copy that may be trained. empty, named: the embeddings
    of "", (1, positions, d), and of the concepts, (concepts, positions, d). step: of `train`, from 0. evaluations: how
    many latents went through a UNet. A backward pass is not counted.
    Raises TypeError if the pipeline is not of the kind of Stable Diffusion 1 and 2, ValueError if it is in half
    precision.
    """

    def __init__(self, pipe: DiffusionPipeline, concept: str | list[str], settings: Training):
        self.concepts = texts.concepts_of(concept)
        families.check_tokens_alone(pipe)
        if {torch.float16, torch.bfloat16} & {pipe.unet.dtype, pipe.text_encoder.dtype}:
            raise ValueError("pipe must be in float32 to learn: load it with dtype='float32', and set bf16 for speed")
        self.pipe, self.settings, self.evaluations = pipe, settings, 0
        self.unet, self.text_encoder, self.device = pipe.unet, pipe.text_encoder, pipe.unet.device
        self.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
        self.horizon = self.scheduler.config.num_train_timesteps
        self.bf16 = bfloat16(self.device, settings.bf16)
        self.empty, self.named = self.encode([""]), self.encode(self.concepts)
        self.learnt, self.step = {}, 0

    def learn(self, part: str, chosen: Callable[[str], bool]) -> dict[str, torch.nn.Parameter]:
        """Copy a part of the pipeline, and let those of its parameters learn whose name is chosen. Returns these."""
        model = self.copied(part)
        setattr(self, part, model)
        found = {name: one.requires_grad_() for name, one in model.named_parameters() if chosen(name)}
        if not found:
            raise ValueError(f"pipe.{part} has no parameter of the kind that this method trains")
        self.learnt |= {f"{part}.{name}": one for name, one in found.items()}
        return found

    def copied(self, part: str) -> torch.nn.Module:
        """A copy of a part of the pipeline, frozen, but gradients may pass through it."""
        model = deepcopy(getattr(self.pipe, part)).requires_grad_(False)
        if part == "unet" and self.bf16 and self.device.type == "cpu":
            model.set_attn_processor(AttnProcessor())  # the backward pass of the fused one is slow there
        return model

    def encode(self, prompts: list[str]) -> Tensor:
        """The embeddings (n, positions, d) that the original reads for texts."""
        return texts.encode(self.pipe, prompts).to(self.device, self.pipe.unet.dtype)

    def one_of(self, random: torch.Generator) -> Tensor:
        """The embedding (1, positions, d) of one of the concepts, drawn at random."""
        return self.named[torch.randint(len(self.named), (1,), generator=random)]

    def predict(self, unet: Callable, z: Tensor, times: Tensor, embeds: Tensor) -> Tensor:
        """What a UNet predicts (noise or velocity) of latents (n, c, h, w) at times (n,) or (): float32."""
        self.evaluations += len(z)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            embeds = embeds.expand(len(z), -1, -1)
            return unet(z, times, encoder_hidden_states=embeds).sample.float()

    @torch.no_grad()
    def original(self, z: Tensor, times: Tensor, *embeds: Tensor) -> list[Tensor]:
        """What the original predicts of the same latents, for each of some embeddings."""
        rows = torch.cat([one.expand(len(z), -1, -1) for one in embeds])
        n = len(embeds)
        found = self.predict(self.pipe.unet, z.repeat(n, 1, 1, 1), times.expand(len(z)).repeat(n), rows)
        return list(found.chunk(n))

    @torch.no_grad()
    def sampled(self, unet: Callable, embeds: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Latents that a UNet has drawn up to a random step, with guidance: z, a time of that step, and the noise that
        they began as.

        They are batch_size, of the size the model was made for. As ESD's first code has it, the time is uniform in the
        step's share of all times.
        """
        steps = self.settings.steps
        self.scheduler.set_timesteps(steps)
        left = int(torch.randint(steps, (), generator=random))
        size, channels = self.unet.config.sample_size, self.unet.config.in_channels
        noise = torch.randn(self.settings.batch_size, channels, size, size, generator=random)
        start = z = noise.to(self.device, self.unet.dtype) * self.scheduler.init_noise_sigma
        both = torch.cat([self.empty.expand(len(z), -1, -1), embeds.expand(len(z), -1, -1)])
        for time in self.scheduler.timesteps[: steps - 1 - left]:
            unguided, guided = self.predict(unet, torch.cat([z, z]), time, both).chunk(2)
            found = unguided + self.settings.guidance * (guided - unguided)
            z = self.scheduler.step(found, time, z).prev_sample.to(z.dtype)
        low, high = (round(k * self.horizon / steps) for k in (left, left + 1))
        return z, torch.randint(low, high, (), generator=random).to(self.device), start

    @torch.no_grad()
    def pictures(self, prompts: list[str], n: int) -> Tensor:
        """Latents of n pictures that the original draws of the prompts in turn, (n, c, h, w); seeds from `seed`."""
        settings = self.settings
        how = {"steps": settings.steps, "guidance": settings.guidance, "bf16": settings.bf16, "progress": False}
        asked = [prompts[i % len(prompts)] for i in range(n)]
        images = generate(self.pipe, asked, range(settings.seed, settings.seed + n), **how)
        self.evaluations += 2 * settings.steps * n
        return to_latents(self.pipe, images).to(self.device, self.unet.dtype)

    def noised(self, latents: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Latents with noise of random times: z_t, times (n,), and what a model should predict of them."""
        times = torch.randint(self.horizon, (len(latents),), generator=random).to(self.device)
        noise = torch.randn(latents.shape, generator=random).to(latents)
        z = self.scheduler.add_noise(latents, noise, times)
        if self.scheduler.config.prediction_type == "v_prediction":
            return z, times, self.scheduler.get_velocity(latents, noise, times)
        return z, times, noise

    def train(
        self,
        name: str,
        loss: Callable[[torch.Generator], Tensor],
        numbers: dict,
        adam: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    ) -> None:
        """Minimise loss(random) by what is in `learnt`; see `Training`. numbers: the method's own, JSON-able.

        All that is random must be drawn from `random`, so that a training that was killed goes on as if it had not.
        Raises ValueError if the checkpoint is of another training: other numbers, concepts or weights.
        """
        settings, random = self.settings, torch.Generator().manual_seed(self.settings.seed)
        values = list(self.learnt.values())
        optimiser, done = adam(values, lr=settings.lr), 0
        path, key = None if settings.checkpoint is None else Path(settings.checkpoint), ""
        if path is not None:
            asked = asdict(replace(settings, checkpoint=None, progress=True)) | numbers
            key = json.dumps([name, self.concepts, list(self.learnt), asked, fingerprint(self.pipe)], sort_keys=True)
        if path is not None and path.exists():
            done, self.evaluations = _resume(path, key, values, optimiser, random)
        bar = {"total": settings.iterations, "initial": done, "desc": name, "delay": 1, "leave": False}
        with torch.enable_grad(), tqdm(**bar, disable=not settings.progress) as shown:
            for step in range(done, settings.iterations):
                self.step = step
                loss(random).backward(inputs=values)
                optimiser.step()
                optimiser.zero_grad()
                shown.update()
                if path is not None and (step + 1) % EVERY == 0:
                    note = {"format": "pt", "key": key, "done": str(step + 1), "evaluations": str(self.evaluations)}
                    _keep(path, note, values, optimiser, random)
        if path is not None:
            path.unlink(missing_ok=True)

    def provenance(self, method: str, **numbers) -> dict:
        """Where an edit came from: the pipeline, the method, its numbers, and what it cost."""
        settings = asdict(self.settings)
        for name in ("checkpoint", "progress"):
            del settings[name]
        found = {**origin(self.pipe), "method": method, "concepts": self.concepts, **settings, **numbers}
        return found | {"evaluations": self.evaluations}

    def changes(self, method: str, **numbers) -> Weights:
        """The edit that makes the original's parameters those that were learnt."""
        before = {}
        for part in {name.split(".")[0] for name in self.learnt}:
            before |= {f"{part}.{name}": one for name, one in getattr(self.pipe, part).named_parameters()}
        found = {name: one.detach().float() - before[name].detach().float() for name, one in self.learnt.items()}
        return Weights(found, self.provenance(method, **numbers))


def _keep(path: Path, note: dict[str, str], values: list[Tensor], optimiser, random: torch.Generator) -> None:
    tensors = {"random": random.get_state()}
    for n, value in enumerate(values):
        tensors[f"value.{n}"] = value.detach().cpu().contiguous()
        for name, state in optimiser.state[value].items():
            tensors[f"{name}.{n}"] = torch.as_tensor(state).detach().cpu().contiguous()
    files.write(tensors, path, note)


def _resume(path: Path, key: str, values: list[Tensor], optimiser, random: torch.Generator) -> tuple[int, int]:
    """Put back what `_keep` wrote; returns the iterations done and the evaluations so far.

    Raises ValueError if the file is of another training.
    """
    with safe_open(path, framework="pt") as file:
        note = file.metadata()
        if note.get("key") != key:
            raise ValueError(f"checkpoint: {path} is of another training: delete it or choose another file")
        random.set_state(file.get_tensor("random"))
        names = {name.partition(".")[0] for name in file.keys()} - {"value", "random"}
        for n, value in enumerate(values):
            value.data.copy_(file.get_tensor(f"value.{n}"))
            optimiser.state[value] = {name: file.get_tensor(f"{name}.{n}").to(value.device) for name in names}
    return int(note["done"]), int(note["evaluations"])
