"""The four frozen stages that make Emoji Diffusion: dataset, pretrain, judge, control. Each resumes where it was
stopped, and none takes what other settings made: files are named by a digest of theirs."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from rece.emoji import images, text, train, world
from rece.emoji.world import World
from rece.images import fingerprint
from rece.images import generate as draw
from rece.judges.embedded import Judge

SIDE = 64  # px


def _digest(settings: list) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def place(cache: Path, settings: dict) -> Path:
    """The folder in `cache` for what these keywords of `dataset` make of the world's words."""
    return Path(cache) / _digest([settings, asdict(world.load(first=settings.get("objects"))), SIDE])


def dataset(
    folder: Path,
    packages: Path | None = None,
    objects: int | None = None,
    variants: int = 16,
    phrases: int = 90_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Make what training reads, in `folder` (about 300 MB); what is there already is kept. Returns the drawings'
    sources. Other settings need another folder, see `place`.

    packages: where the icon packages are or are fetched to; by default inside `folder`. objects: only the first ones.
    bank.npy: (objects, styles, variants, 64, 64, 3) uint8 augmented drawings; phrases.json: the student's reading;
    teacher.npy, teacher_tokens.npy: the teacher's vectors of the phrases and of the tokens; tokenizer/.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    the_world = world.load(first=objects)
    packages = images.fetch(Path(packages or folder / "packages"))
    if not (folder / "bank.npy").exists():
        np.save(folder / "bank.npy", images.bank(images.render(the_world, packages), SIDE, variants, seed))
    if not (folder / "teacher_tokens.npy").exists():
        teacher = text.Teacher()
        known = {t for t in teacher.tokenizer.get_vocab() if t.isalpha() and t.isascii()}
        reading = text.phrases(the_world, packages, known, phrases, seed)
        words = {part for word in text.words_of(the_world) for part in word.split()}
        tokenizer = text.build_tokenizer(reading, sorted(words), 8192, folder / "tokenizer")
        (folder / "phrases.json").write_text(json.dumps(reading))
        np.save(folder / "teacher.npy", teacher(reading))
        own = [tokenizer.decode([i]).strip() for i in range(len(tokenizer) - 2)]
        np.save(folder / "teacher_tokens.npy", teacher(own))
    return images.manifest(the_world, packages)


@torch.no_grad()
def embed(tokenizer: CLIPTokenizer, model: CLIPTextModel, texts: list[str]) -> torch.Tensor:
    """Prompt embeddings (n, positions, d) float16 as the pipeline computes them."""
    settings = {"padding": "max_length", "truncation": True, "max_length": text.POSITIONS, "return_tensors": "pt"}
    batches = [tokenizer(texts[i : i + 256], **settings).input_ids for i in range(0, len(texts), 256)]
    return torch.cat([model(input_ids=ids).last_hidden_state.half() for ids in batches])


def unet(
    the_world: World,
    bank: np.ndarray,
    tokenizer: CLIPTokenizer,
    encoder: CLIPTextModel,
    vae: AutoencoderKL,
    checkpoint: Path,
    minutes: float,
    captions: int = 48,
    seed: int = 0,
    without: Sequence[str] = (),
) -> UNet2DConditionModel:
    """Train the UNet on the drawings with seeded captions; the VAE must be standardised.

    without: objects and styles whose drawings and captions are left out.
    """
    pairs = [(o, s) for o in the_world.objects for s in the_world.styles]
    kept = [i for i, pair in enumerate(pairs) if not set(pair) & set(without)]
    bank = bank.reshape(-1, *bank.shape[2:])[kept]
    mean, std = (z.view(*bank.shape[:2], *z.shape[1:]) for z in train.latents(vae, bank.reshape(-1, *bank.shape[2:])))
    drawn = [world.captions(the_world, *pairs[i], captions, seed) for i in kept]
    texts, index = np.unique(drawn, return_inverse=True)
    empty = embed(tokenizer, encoder, [""])[0].float()
    embeds = embed(tokenizer, encoder, texts.tolist())
    return train.train_unet(mean, std, embeds, torch.as_tensor(index), empty, checkpoint, minutes, seed)


def pretrain(
    folder: Path, out: Path, minutes: dict[str, float], objects: int | None = None, seed: int = 0
) -> StableDiffusionPipeline:
    """Train text encoder, VAE and UNet for `minutes` each ({"text", "vae", "unet"}) and write the pipeline to `out`:
    stock classes, fp16 safetensors.

    folder: what `dataset` made. Checkpoints go there too, so that a stopped run with these minutes and seed resumes.
    """
    folder, out = Path(folder), Path(out)
    the_world, bank = world.load(first=objects), np.load(folder / "bank.npy")
    runs = folder / "checkpoints" / _digest([minutes, seed])
    pictures = bank.reshape(-1, *bank.shape[3:])
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    reading = json.loads((folder / "phrases.json").read_text())
    vectors = (np.load(folder / "teacher.npy"), np.load(folder / "teacher_tokens.npy"))
    encoder = text.distil(tokenizer, reading, *vectors, runs / "text.pt", minutes["text"], seed)
    vae = train.train_vae(pictures, runs / "vae.pt", minutes["vae"], seed)
    train.standardise(vae, train.latents(vae, pictures[::4])[0])
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet(the_world, bank, tokenizer, encoder, vae, runs / "unet.pt", minutes["unet"], seed=seed),
        scheduler=train.new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.to(torch.float16).save_pretrained(out, safe_serialization=True)
    # transformers loads a model in the dtype its config names, diffusers in float32: one pipeline needs one dtype
    config = out / "text_encoder" / "config.json"
    config.write_text(config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))
    return pipe.to(torch.float32)


def control(
    folder: Path,
    pipe: StableDiffusionPipeline,
    out: Path,
    without: Sequence[str],
    minutes: float,
    objects: int | None = None,
    seed: int = 0,
) -> None:
    """Train a UNet that never saw the objects and styles `without`, for the text encoder and VAE of `pipe`, and write
    it to `out` (fp16). Its checkpoint goes to `folder`, which `dataset` made.

    Raises ValueError naming the first of `without` that the world lacks.
    """
    folder, the_world = Path(folder), world.load(first=objects)
    unknown = sorted(set(without) - {*the_world.objects, *the_world.styles})
    if unknown:
        raise ValueError(f"without: {unknown[0]!r} is no object and no style of data/concepts.yaml")
    run = _digest([fingerprint(pipe), sorted(without), minutes, seed])
    parts = (pipe.tokenizer, pipe.text_encoder, pipe.vae, folder / "checkpoints" / f"control-{run}.pt")
    model = unet(the_world, np.load(folder / "bank.npy"), *parts, minutes, seed=seed, without=without)
    model.to(torch.float16).save_pretrained(out, safe_serialization=True)


def judge(
    folder: Path, out: Path, minutes: float, held_out: int = 2, objects: int | None = None, seed: int = 0
) -> Judge:
    """Train the judge on all but the last `held_out` variants of every drawing and write it to `out`."""
    the_world, bank = world.load(first=objects), np.load(Path(folder) / "bank.npy")
    checkpoint = Path(folder) / "checkpoints" / f"judge-{_digest([minutes, held_out, seed])}.pt"
    model = train.train_judge(bank[:, :, :-held_out], the_world.objects, the_world.styles, checkpoint, minutes, seed)
    model.save(out)
    return Judge.load(out)


def judge_accuracy(judge: Judge, folder: Path, held_out: int = 2, seed: int = 0) -> pd.DataFrame:
    """The judge on the held-out variants of real drawings, as they are and degraded: object and style accuracy."""
    bank = np.load(Path(folder) / "bank.npy")[:, :, -held_out:]
    labels = np.meshgrid(judge.objects, judge.styles, indexing="ij")
    objects, styles = (np.repeat(kind.ravel(), held_out) for kind in labels)
    clean = bank.reshape(-1, *bank.shape[3:])
    worn = train.degrade(train.to_signed(clean), torch.Generator().manual_seed(seed))
    worn = ((worn + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    rows = []
    for name, pictures in (("held-out", clean), ("held-out, degraded", worn)):
        found_objects, found_styles = judge.labels(pictures)
        accuracy = {"object": (found_objects == objects).mean(), "style": (found_styles == styles).mean()}
        rows.append({"images": name, "n": len(pictures), **accuracy})
    return pd.DataFrame(rows)


def quality(
    pipe: StableDiffusionPipeline, judge: Judge, seed: int = 40000, **generate
) -> tuple[pd.DataFrame, np.ndarray]:
    """What the model draws for a plain prompt of every object in every style, in the judge's eyes.

    Returns a table (object, style, prompt, drawn_object, drawn_style) and its images, uint8 (n, h, w, 3).
    """
    words = world.load().words
    rows = [(o, s, world.prompt(words[o][0], s)) for o in judge.objects for s in judge.styles]
    table = pd.DataFrame(rows, columns=["object", "style", "prompt"])
    pictures = draw(pipe, list(table.prompt), range(seed, seed + len(table)), **generate)
    objects, styles = judge.labels(pictures)
    return table.assign(drawn_object=objects, drawn_style=styles), pictures
