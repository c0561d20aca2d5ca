"""The eraser: one (d, d) map, where it came from, and the ways to use, combine and store it."""

import json
import platform
import re
import warnings
import weakref
from functools import cached_property
from importlib import metadata
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from rece import families, files, layers, solver, texts
from rece.edits import Edit

SAMPLE = 32  # everyday texts that a report looks at
LORA = "pytorch_lora_weights.safetensors"  # the name by which diffusers finds it in a folder


class Eraser(Edit, kind="map"):
    """An edit of every layer that reads the prompt: W' = W @ map; equally, prompt embeddings h (rows) become h @
    map.T.

    map: (d, d) float64 on the CPU. pooled: (p, p) likewise, the map of the pooled embedding, or None where the model
    reads none or it is left alone. provenance: what it was made from, JSON-able. history: the maps after the UCE
    start and after each round, the last one being `map`; [map] where the steps are not known.
    Raises ValueError if a map is not a finite square matrix.
    """

    def __init__(
        self,
        map: Tensor,
        provenance: dict | None = None,
        history: list[Tensor] | None = None,
        pooled: Tensor | None = None,
    ):
        given = [("map", map), *(("history", step) for step in history or []), ("pooled", pooled)]
        for name, matrix in given if pooled is not None else given[:-1]:
            square = isinstance(matrix, Tensor) and matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]
            if not square or not matrix.is_floating_point():
                raise ValueError(f"{name} must be a square matrix of floats")
            if not torch.isfinite(matrix).all():
                raise ValueError(f"{name} holds values that are not finite")
            if name == "history" and matrix.shape != map.shape:
                raise ValueError(f"history holds a map of width {len(matrix)}, and the map's is {len(map)}")
        self.map = solver.precise(map).cpu()
        self.pooled = None if pooled is None else solver.precise(pooled).cpu()
        self.provenance = dict(provenance or {})
        self.history = [self.map] if history is None else [solver.precise(step).cpu() for step in history]
        self._pipe = lambda: None

    def __repr__(self) -> str:
        concepts = self.provenance.get("concepts", "unknown concepts")
        return f"Eraser({concepts}, width {len(self.map)})"

    def __matmul__(self, other: "Eraser") -> "Eraser":
        """a @ b: edit the weights by a, then the edited weights by b. W' = W a.map b.map.

        The same order as the rounds of RECE. On prompt embeddings b's map acts first. Raises ValueError if the
        widths differ, or the text encoders that they were made for.
        """
        if not isinstance(other, Eraser):
            return NotImplemented
        if self.map.shape != other.map.shape:
            raise ValueError(f"cannot compose erasers of width {len(self.map)} and {len(other.map)}")
        pooled = [each.pooled for each in (self, other) if each.pooled is not None]
        provenance = {}
        for name, same in {"text_encoders": list.__eq__, "fingerprint": solver.alike}.items():
            known = [each.provenance[name] for each in (self, other) if each.provenance.get(name)]
            if len(known) == 2 and not same(*known):
                raise ValueError(f"cannot compose erasers made for text encoders that differ ({name})")
            provenance |= {name: known[0]} if known else {}
        parts = [each.provenance.get("composed", [each.provenance]) for each in (self, other)]
        provenance["composed"] = [*parts[0], *parts[1]]
        composed = Eraser(
            self.map @ other.map,
            provenance,
            [*self.history, *(self.map @ step for step in other.history)],
            torch.linalg.multi_dot(pooled) if len(pooled) == 2 else next(iter(pooled), None),
        )
        composed._pipe = self._pipe
        return composed

    @cached_property
    def rank(self) -> int:
        """How many directions of the text space the edit changes, at float32's resolution of the weights.

        Of two maps the larger number.
        """
        return max(U.shape[1] for U, _, _ in self._factors().values())

    def loss(self, rank: int) -> float:
        """The share of map - I, in the Frobenius norm, that is lost when it is cut to `rank` directions.

        Of two maps the larger share.
        """
        return max(loss for _, _, loss in self._factors(rank).values())

    def _factors(self, rank: int | None = None) -> dict[str, tuple[Tensor, Tensor, float]]:
        """What `solver.factor` returns, by path; a rank above the pooled map's width is that width there."""
        found = {"tokens": solver.factor(self.map, rank)}
        if self.pooled is not None:
            found["pooled"] = solver.factor(self.pooled, None if rank is None else min(rank, len(self.pooled)))
        return found

    def report(self, pipe: DiffusionPipeline | None = None, others: list[str] | None = None) -> dict:
        """What is left of the erased concepts, and how far other texts move: in closed form, without a picture.

        pipe: by default the one it was made with or last applied to; its original weights count. others: texts; by
        default those that were preserved, or SAMPLE everyday ones.
        Returns `left`, for each concept the distance from its answer to its target's after the edit, as a share of the
        distance before: 1 is untouched, 0 is gone. It is read at the last word token; the target of an edit that has
        none is " ". And `moved`, for each other text the distance between its answers before and after, as a share of
        its distance to " ", at the token after its last word; the mean is `drift`.
        Raises ValueError if no pipeline or no concept is known, or if the pipeline's text space is another one.
        Source: ours.
        """
        pipe, concepts = self._known(pipe), self.provenance.get("concepts")
        if not concepts:
            raise ValueError("this eraser does not say what it erases, as composed ones do not: report on its parts")
        if others is None:
            words = texts.everyday()
            words = [text for text in words if not texts.names(text, concepts)]
            others = self.provenance.get("preserve") or words[:: -(-len(words) // SAMPLE)]
        others = [text for text in dict.fromkeys(texts.listed(others, "others")) if text.strip()]
        Q, _ = layers.answers(pipe)
        M = self.map.to(Q.device)
        sent = targets(self.provenance)
        aims = [sent.get(concept, " ") for concept in concepts]
        c, t = (texts.last_tokens(pipe, some).to(Q) for some in (concepts, aims))
        left = ((c @ M.T - t) @ Q.T).norm(dim=1) / ((c - t) @ Q.T).norm(dim=1)
        o, neutral = (texts.last_tokens(pipe, some, after=1).to(Q) for some in (others or [" "], [" "]))
        moved = ((o @ M.T - o) @ Q.T).norm(dim=1) / ((o - neutral) @ Q.T).norm(dim=1)
        moved = dict(zip(others, moved.tolist(), strict=False))
        return {
            "left": dict(zip(concepts, left.tolist(), strict=True)),
            "drift": sum(moved.values()) / len(moved) if moved else 0.0,
            "moved": moved,
        }

    def _known(self, pipe: DiffusionPipeline | None) -> DiffusionPipeline:
        """The pipeline, or the one that the eraser was made with or last applied to, if the eraser fits it."""
        pipe = self._pipe() if pipe is None else pipe
        if pipe is None:
            raise ValueError("pipe must be given: the pipeline that this eraser was made with is gone")
        d = layers.width(pipe)
        if len(self.map) != d:
            raise ValueError(f"this eraser is for text width {len(self.map)}, but the pipeline's is {d}")
        self.fits(pipe)
        return pipe

    def parts(self, pipe: DiffusionPipeline) -> tuple[str, ...]:
        """The parts of a pipeline that it changes."""
        return (families.part(pipe),)

    def apply(self, pipe: DiffusionPipeline) -> DiffusionPipeline:
        """Fuse the map into the pipeline's weights, in their own dtype and place, and return the pipeline.

        Raises ValueError, before any change, if the pipeline carries an eraser or its text space is another one.
        """
        self._known(pipe)
        known = self.provenance.get("layers")
        if known and not solver.alike(known, solver.sketch(layers.originals(pipe).values())):
            warnings.warn(
                "this eraser was made from other weights of the layers that read the prompt, such as those of a "
                "fine-tuned or edited model: measure what it does here",
                stacklevel=2,
            )
        layers.fuse(pipe, self.map, self.pooled)
        self._pipe = weakref.ref(pipe)
        return pipe

    def remove(self, pipe: DiffusionPipeline) -> DiffusionPipeline:
        """Restore the very bits that `apply` found, and return the pipeline.

        Raises ValueError if the pipeline carries no eraser, or another one, or if its weights changed since.
        """
        if self.carried_by(pipe):
            layers.check_fused(pipe)
        layers.restore(pipe)
        return pipe

    def at(self, step: int) -> "Eraser":
        """The eraser as it was after a round of its own: 0 is the UCE start, and -1 the last one.

        Raises ValueError where that step is not known.
        """
        if self.pooled is not None or len(self.history) < 2 or "composed" in self.provenance:
            raise ValueError("the single steps of this eraser are not known: make it anew with fewer rounds")
        n = len(self.history)
        if isinstance(step, bool) or not isinstance(step, int) or not -n <= step < n:
            raise ValueError(f"step must be a whole number from -{n} to {n - 1}, not {solver.shown(step)}")
        until = step % n + 1
        found = Eraser(self.history[step], self.provenance | {"rounds_run": until - 1}, self.history[:until])
        found._pipe = self._pipe
        return found

    def carried_by(self, pipe: DiffusionPipeline) -> bool:
        """Whether the pipeline carries this eraser. Raises ValueError if it carries another one."""
        if layers.fused(pipe) is None:
            return False
        for path, map in {"tokens": self.map, "pooled": self.pooled}.items():
            carried = layers.fused(pipe, path)
            if (carried is None) != (map is None) or (map is not None and not torch.equal(carried, map)):
                raise ValueError("the pipeline carries another eraser: remove that one")
        return True

    def save(self, path: str | Path, history: bool = False) -> None:
        """Write the map, float64, and the provenance to a safetensors file, whole or not at all.

        With history=True the maps of the single steps too. Missing folders are made.
        """
        steps = {f"history.{step:04d}": map.clone() for step, map in enumerate(self.history)} if history else {}
        self._write(path, self.tensors() | steps)

    def tensors(self) -> dict[str, Tensor]:
        """What a file of it holds."""
        return {"map": self.map.contiguous()} | ({} if self.pooled is None else {"pooled": self.pooled.contiguous()})

    @classmethod
    def of(cls, tensors: dict[str, Tensor], provenance: dict) -> "Eraser":
        """The eraser of a file's tensors. Raises KeyError or ValueError if they are not those of an eraser."""
        map, pooled = tensors.pop("map"), tensors.pop("pooled", None)
        strange = [name for name in tensors if not re.fullmatch(r"history\.\d{4}", name)]
        if strange:
            raise ValueError(f"{solver.shown(strange[0])} is no part of an eraser")
        return cls(map, provenance, [tensors[name] for name in sorted(tensors)] or None, pooled)

    def save_lora(
        self,
        folder: str | Path,
        rank: int | None = None,
        *,
        pipe: DiffusionPipeline | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> float:
        """Write folder/pytorch_lora_weights.safetensors, which plain `pipe.load_lora_weights(folder)` loads.

        map = I + U V^T, so V^T is the `lora_A` of all modules and W U the `lora_B` of each. One rank for all: the
        numerical one, or less if asked; then a warning says how much of the edit is lost. The modules that read the
        pooled embedding get the same rank, filled up with zeros.
        pipe: whose weights W to use; by default the pipeline the eraser was made with or last applied to. Its original
        weights are used, whether or not an eraser is applied. Returns the loss, see `Eraser.loss`.
        Raises ValueError if no pipeline is known, it does not fit, or its class loads no LoRA. Source: ours.
        """
        pipe = self._known(pipe)
        solver.check_dtype(dtype)
        solver.whole(rank=1 if rank is None else rank)
        if not hasattr(pipe, "load_lora_weights"):
            kind = type(pipe).__name__
            raise ValueError(
                f"pipe must be a pipeline that loads LoRAs, which {kind} does not: save its weights instead"
            )
        factors = self._factors(rank)
        r = max(1, *(U.shape[1] for U, _, _ in factors.values()))
        loss = max(loss for _, _, loss in factors.values())
        if rank is not None and rank < self.rank:
            warnings.warn(
                f"rank {rank} of {self.rank}: the LoRA lacks {loss:.1%} of the edit (Frobenius)", stacklevel=2
            )
        tensors = {}
        for path, (U, V, _) in factors.items():
            U, V = (torch.nn.functional.pad(side, (0, r - side.shape[1])) for side in (U, V))
            modules = layers.prompt_layers(pipe, path)
            for name, W in layers.originals(pipe, path).items():
                others = modules[name].in_features - len(V)  # columns that read no text
                down = torch.nn.functional.pad(V.T, (0, others))
                key = f"{families.part(pipe)}.{name}"
                tensors[f"{key}.lora_A.weight"] = down.to(dtype, copy=True).contiguous()
                tensors[f"{key}.lora_B.weight"] = (solver.precise(W).cpu() @ U).to(dtype).contiguous()
        if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
            raise ValueError(f"the LoRA overflows {dtype}: use a wider dtype")
        note = {"format": "pt", "rece": json.dumps(self.provenance | {"lora_rank": r, "lora_loss": loss})}
        files.write(tensors, Path(folder, LORA), note)
        return loss


def targets(provenance: dict) -> dict[str, str]:
    """What each concept of an eraser was sent to; of a composed one, of all its parts."""
    parts = provenance.get("composed", [provenance])
    return {
        concept: target
        for part in parts
        for concept, target in zip(part.get("concepts", []), part.get("target", []), strict=False)
    }


def origin(pipe: DiffusionPipeline) -> dict:
    """What a pipeline is and with which versions it is worked on, for an eraser's provenance."""
    return {
        "base_model": _base_model(pipe),
        "pipeline": type(pipe).__name__,
        "text_encoders": texts.encoders(pipe),
        "fingerprint": texts.fingerprint(pipe),
        "layers": solver.sketch(layers.originals(pipe).values()),
        "versions": _versions(),
    }


def _base_model(pipe: DiffusionPipeline) -> str:
    """The name the pipeline was loaded by; of a local folder only its last part."""
    name = str(pipe.config.get("_name_or_path") or "unnamed")
    return Path(name).resolve().name if Path(name).exists() else name


def _versions() -> dict[str, str]:
    versions = {"python": ".".join(platform.python_version_tuple()[:2])}
    for package in ("rece", "torch", "diffusers", "transformers"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # run from a checkout that is not installed
            versions[package] = "not installed"
    return versions
