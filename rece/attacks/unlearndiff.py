"""UnlearnDiffAtk: tokens put before the prompt, found by gradients through the erased model (arXiv 2310.11868)."""

from collections.abc import Callable
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, DiffusionPipeline
from torch import Tensor
from tqdm import tqdm

from rece.attacks import Attempts
from rece.generate import generate

ACCESS = "white"


def attack(
    victim: DiffusionPipeline,
    prompts: list[str],
    seeds: list[int],
    *,
    original: DiffusionPipeline,
    concept: dict | list[dict] | None = None,
    tokens: int = 5,
    updates: int = 2000,
    times: int = 50,
    lr: float = 0.01,
    weight_decay: float = 0.1,
    check_every: int | None = None,
    score_times: int = 4,
    succeeded: Callable[[list[str], list[int]], list[bool]] | None = None,
    images: np.ndarray | None = None,
    steps: int = 25,
    guidance: float = 7.5,
    batch_size: int = 16,
    bf16: bool = False,
    draw: int = 0,
    progress: bool = True,
) -> Attempts:
    """Find `tokens` tokens before each prompt with which the victim denoises the original's image of that prompt.

    Each token is a point of the probability simplex over the vocabulary, at first its centre. An update draws one
    token id from each, computes the victim's denoising loss with these ids, |eps - eps_victim(x_t, t, prompt)|^2 in
    the mean (for v-prediction the velocity's), x_t = the original's image of the same prompt and seed, encoded and
    freshly noised, carries its gradient over to all probabilities (straight through, cut to -1..1), and makes an Adam
    step and a projection back to the simplex. All prompts run side by side and do not influence one another.

    tokens: 5 in the paper for nudity, 3 for styles and objects. updates: in all (published: 2000), spread in order
    over `times` timesteps from low to high noise (published: 50, which are 10, 30, ..., 990 of 1000). lr,
    weight_decay: of Adam. check_every: every so many updates the likeliest tokens become a candidate (default and
    published: after each timestep).
    succeeded: the published attack stops at success. If this is given, it gets the candidates (texts, seeds) of all
    prompts still running, and those it calls successful are returned as they are and stop. Without it no judge is
    asked.
    Ours: of a prompt that no such stop has ended, the returned candidate is not the last but the one of the lowest
    loss in the mean over `score_times` timesteps with fixed noise; `losses` holds this loss of all candidates in turn.
    images: the original's images of the prompts and seeds, uint8 (n, h, w, 3), if they are there already; else they
    are drawn with `steps` and `guidance`. batch_size: prompts per pass; memory only. bf16: bfloat16 autocast.
    draw: another number makes other random draws. All draws come from one CPU generator per prompt, made from `draw`
    and the prompt's seed, so that same seeds give the same tokens on the same machine.
    progress: show a bar if it takes more than a second.

    Returned prompts are texts, and their tokenisation is exactly the ids that were attacked: only ids whose own text
    tokenises back to that one id take part, that is whole printable words, no special tokens, joined by spaces.
    The models' parameters are frozen meanwhile and get no gradients.
    Raises ValueError or TypeError naming the parameter, before anything is drawn.
    """
    n, device = len(prompts), victim.device
    if getattr(victim, "text_encoder_2", None) is not None:
        raise ValueError("unlearndiff is not supported for pipelines with two text encoders")
    counts = {"tokens": tokens, "updates": updates, "times": times, "score_times": score_times, "steps": steps}
    counts |= {"batch_size": batch_size, "check_every": 1 if check_every is None else check_every}
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} must be a whole number, 1 or more, not {count!r}")
    if n == 0 or len(seeds) != n:
        raise ValueError(f"seeds must be one number per prompt: {len(seeds)} seeds for {n} prompts")
    if images is not None and (images.dtype != np.uint8 or images.shape[0] != n or images.shape[-1] != 3):
        raise ValueError(f"images must be uint8 ({n}, h, w, 3), one per prompt, not {images.dtype} {images.shape}")
    noising = DDPMScheduler.from_config(victim.scheduler.config)
    prediction = victim.scheduler.config.prediction_type
    if prediction not in ("epsilon", "v_prediction"):
        raise ValueError(f"prediction_type {prediction!r} of the scheduler is not supported")
    ids = _place(victim.tokenizer, prompts, tokens).to(device)
    words, vocabulary = _whole_words(victim.tokenizer)
    vocabulary = vocabulary.to(device)

    if images is None:
        drawing = {"steps": steps, "guidance": guidance, "batch_size": batch_size, "bf16": bf16}
        images = generate(original, prompts, seeds, progress=progress, **drawing)
    latents = _latents(original, images, batch_size).to(device, victim.unet.dtype)
    generators = [torch.Generator().manual_seed(_mix(draw, seed)) for seed in seeds]

    def normal(rows: list[int]) -> Tensor:
        noise = torch.stack([torch.randn(latents.shape[1:], generator=generators[row]) for row in rows])
        return noise.to(latents)

    def losses(rows: list[int], embeds: Tensor, noise: Tensor, t: int) -> Tensor:
        ts = torch.full((len(rows),), t, device=device)
        noisy = noising.add_noise(latents[rows], noise, ts)
        wanted = noise if prediction == "epsilon" else noising.get_velocity(latents[rows], noise, ts)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            found = victim.unet(noisy, ts, encoder_hidden_states=embeds.to(latents.dtype)).sample
        return (found.float() - wanted.float()).square().flatten(1).mean(1)

    def encode(rows: list[int], picks: Tensor, soft: Tensor | None = None) -> Tensor:
        full = ids[rows].clone()
        full[:, 1 : 1 + tokens] = vocabulary[picks]
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16), _rows(victim.text_encoder, soft):
            return victim.text_encoder(full)[0]

    def text(row: int, picks: Tensor) -> str:
        found = " ".join([*(words[pick] for pick in picks.tolist()), prompts[row]]).rstrip()
        attacked = [*ids[row, :1].tolist(), *vocabulary[picks].tolist(), *ids[row, 1 + tokens :].tolist()]
        if victim.tokenizer(found, padding="max_length", max_length=len(attacked)).input_ids != attacked:
            raise RuntimeError(f"{found!r} does not tokenise to the ids that were attacked")
        return found

    def batches(rows: list[int]):
        return (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))

    horizon = noising.config.num_train_timesteps
    path = [int((step * times // updates + 0.5) * horizon / times) for step in range(updates)]
    scored_at = [int((k + 0.5) * horizon / score_times) for k in range(score_times)]
    fixed = [normal(list(range(n))) for _ in scored_at]
    check_every = max(1, updates // times) if check_every is None else check_every

    table = victim.text_encoder.get_input_embeddings().weight[vocabulary].detach()
    simplex = torch.full((n, tokens, len(vocabulary)), 1 / len(vocabulary), device=device)
    simplex.grad = torch.zeros_like(simplex)
    adam = torch.optim.Adam([simplex], lr, weight_decay=weight_decay)
    running, evaluations = list(range(n)), 0
    history: list[list[float]] = [[] for _ in prompts]
    best: list[str] = [""] * n
    with _frozen(victim.unet, victim.text_encoder), torch.no_grad():
        for step in tqdm(range(updates), desc="unlearndiff", delay=1, leave=False, disable=not progress):
            for rows in batches(running):
                uniform = torch.stack([torch.rand(tokens, 1, generator=generators[row]) for row in rows]).to(device)
                picks, noise = _sample(simplex[rows], uniform), normal(rows)
                with torch.enable_grad():
                    soft = table[picks].requires_grad_()
                    loss = losses(rows, encode(rows, picks, soft), noise, path[step]).sum()
                    (slope,) = torch.autograd.grad(loss, soft)
                simplex.grad[rows] = F.hardtanh(slope.float() @ table.float().T)
            adam.step()
            simplex.copy_(project(simplex))
            evaluations += 1
            if (step + 1) % check_every and step + 1 < updates:
                continue
            candidates = simplex.argmax(-1)
            for rows in batches(running):
                embeds = encode(rows, candidates[rows])
                noises = zip(scored_at, fixed, strict=True)
                score = sum(losses(rows, embeds, noise[rows], t) for t, noise in noises) / score_times
                for row, value in zip(rows, score.tolist(), strict=True):
                    history[row].append(value)
                    if value == min(history[row]):
                        best[row] = text(row, candidates[row])
            evaluations += score_times
            if succeeded is not None:
                texts = [text(row, candidates[row]) for row in running]
                stopped = succeeded(texts, [seeds[row] for row in running])
                if len(stopped) != len(running):
                    raise ValueError(f"succeeded must return {len(running)} truth values, not {len(stopped)}")
                for row, candidate, stop in zip(running, texts, stopped, strict=True):
                    best[row] = candidate if stop else best[row]
                simplex.grad.zero_()
                running = [row for row, stop in zip(running, stopped, strict=True) if not stop]
                if not running:
                    break
    return Attempts(best, seeds, losses=history, evaluations=evaluations)


def project(points: Tensor) -> Tensor:
    """The nearest points of the probability simplex, over the last dimension; any shape, float.

    Exact in finitely many steps (Michelot 1986), where the published code bisects for the same point.
    """
    points = points - points.amax(-1, keepdim=True)
    shift = (points.sum(-1, keepdim=True) - 1) / points.shape[-1]
    while True:
        active = points > shift
        sums = torch.where(active, points, 0).sum(-1, keepdim=True)
        new = (sums - 1) / active.sum(-1, keepdim=True)
        if not (new > shift).any():
            return (points - shift).clamp(min=0)
        shift = torch.maximum(shift, new)


def _sample(weights: Tensor, uniform: Tensor) -> Tensor:
    """One index per point of the simplex (..., V), by inverting the distribution at uniform (..., 1) in 0..1."""
    sums = weights.cumsum(-1)
    return torch.searchsorted(sums, uniform * sums[..., -1:], right=True)[..., 0].clamp(max=weights.shape[-1] - 1)


def _whole_words(tokenizer) -> tuple[list[str], Tensor]:
    """The ids that are whole words, and these words: their own text tokenises back to that one id."""
    special = set(tokenizer.all_special_ids)
    every = [i for i in range(len(tokenizer)) if i not in special]
    texts = [text.strip() for text in tokenizer.batch_decode([[i] for i in every])]
    back = tokenizer(texts, add_special_tokens=False).input_ids
    whole = [
        (text, i)
        for text, i, ids in zip(texts, every, back, strict=True)
        if ids == [i] and text.isprintable() and text.split() == [text]
    ]
    return [text for text, _ in whole], torch.tensor([i for _, i in whole])


def _place(tokenizer, prompts: list[str], tokens: int) -> Tensor:
    """The ids of the prompts with room for `tokens` ids after the start token, padded: (n, positions)."""
    positions = tokenizer.model_max_length
    filled = []
    for prompt, (start, *rest) in zip(prompts, tokenizer(list(prompts)).input_ids, strict=True):
        if 1 + tokens + len(rest) > positions:
            raise ValueError(
                f"prompt {prompt!r} has {len(rest) - 1} tokens, and with {tokens} more it does not fit into the "
                f"{positions - 2} there is room for: shorten it or lower tokens"
            )
        filled.append({"input_ids": [start, *[tokenizer.eos_token_id] * tokens, *rest]})
    return tokenizer.pad(filled, padding="max_length", max_length=positions, return_tensors="pt").input_ids


def _latents(pipe: DiffusionPipeline, images: np.ndarray, batch_size: int) -> Tensor:
    """The means of the VAE's posterior of uint8 images, scaled as the UNet reads them."""
    found = []
    for start in range(0, len(images), batch_size):
        pixels = torch.as_tensor(images[start : start + batch_size]).permute(0, 3, 1, 2) / 127.5 - 1
        with torch.no_grad():
            found.append(pipe.vae.encode(pixels.to(pipe.device, pipe.vae.dtype)).latent_dist.mean)
    return torch.cat(found) * pipe.vae.config.scaling_factor


def _mix(draw: int, seed: int) -> int:
    """A seed for the attack's draws: the image's own would repeat the noise that the image was drawn from."""
    return int(np.random.SeedSequence([draw, int(seed)]).generate_state(1, np.uint64)[0])


@contextmanager
def _rows(encoder: torch.nn.Module, soft: Tensor | None):
    """Token embeddings 1, 2, ... of the encoder replaced by soft (n, k, d), so that gradients reach them."""
    if soft is None:
        yield
        return
    k = soft.shape[1]

    def replace(module, inputs, output):
        return torch.cat([output[:, :1], soft.to(output.dtype), output[:, 1 + k :]], 1)

    hook = encoder.get_input_embeddings().register_forward_hook(replace)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _frozen(*modules: torch.nn.Module):
    """The modules' parameters with requires_grad False, as they were afterwards."""
    before = [(parameter, parameter.requires_grad) for module in modules for parameter in module.parameters()]
    for parameter, _ in before:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, needed in before:
            parameter.requires_grad_(needed)
