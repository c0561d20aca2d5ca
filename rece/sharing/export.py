"""Erasers as files that other people's code loads: edited weights, whole pipelines, LoRAs, each with a model card."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import convert_state_dict_to_kohya
from huggingface_hub import HfApi, constants
from safetensors import SafetensorError, safe_open

from rece import families, files, layers, solver
from rece.eraser import Eraser
from rece.sharing.card import FILES, card


@contextmanager
def applied(eraser: Eraser, pipe: DiffusionPipeline) -> Iterator[DiffusionPipeline]:
    """The pipeline with the eraser fused in; afterwards it is as it was found, to the bit.

    Raises ValueError if it carries another eraser, or if its weights changed since.
    """
    if eraser.carried_by(pipe):
        layers.check_fused(pipe)
        yield pipe
        return
    with eraser.on(pipe):
        yield pipe


def save_weights(eraser: Eraser, pipe: DiffusionPipeline, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write the edited layers alone, whole weights by module name, to a safetensors file, whole or not at all.

    UCE's layout: `pipe.unet.load_state_dict(load_file(path), strict=False)` loads it without any code of ours
    (`pipe.transformer` in families that have one). The numbers are the bits that `eraser.apply` leaves in the model,
    on the CPU, or those cast to dtype. The metadata holds the provenance. The pipeline is left as it was found.
    Raises ValueError if the eraser does not fit, if the pipeline carries another one, or if dtype is too narrow.
    Source: the layout is UCE's (arXiv 2308.14761, code of 2025).
    """
    if dtype is not None:
        solver.check_dtype(dtype)
    weights = {}
    with applied(eraser, pipe):
        for part in ("tokens",) if eraser.pooled is None else ("tokens", "pooled"):
            for name, layer in layers.prompt_layers(pipe, part).items():
                weight = layers.weight_of(layer).detach()
                weights[f"{name}.weight"] = weight.to("cpu", dtype or weight.dtype, copy=True).contiguous()
    for name, weight in weights.items():
        if not torch.isfinite(weight).all():
            raise ValueError(f"dtype {dtype} is too narrow for {name}: choose a wider one")
    files.write(weights, path, {"format": "pt", "rece": json.dumps(eraser.provenance)})


def save_kohya(
    eraser: Eraser,
    pipe: DiffusionPipeline,
    path: str | Path,
    rank: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write the eraser as a LoRA in kohya's form, which ComfyUI and A1111 load: one file, whole or not at all.

    rank, dtype: see `Eraser.save_lora`. The metadata holds the provenance.
    Raises ValueError for a pipeline without a UNet, whose LoRAs these programs read in diffusers' form, and for an
    eraser that edits the pooled embedding too.
    """
    if families.part(pipe) != "unet":
        raise ValueError(f"pipe must have a UNet, which {type(pipe).__name__} lacks: write a LoRA's folder instead")
    if eraser.pooled is not None:
        raise ValueError(
            "readers of this form drop the layer of the pooled embedding: make the eraser with pooled=False"
        )
    with tempfile.TemporaryDirectory() as folder:
        eraser.save_lora(folder, rank, pipe=pipe, dtype=dtype)
        with safe_open(Path(folder, FILES["lora"]), framework="pt") as file:
            weights, note = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
    kohya = {name: tensor.contiguous() for name, tensor in convert_state_dict_to_kohya(weights).items()}
    files.write(kohya, path, note)


def save_folder(
    eraser: Eraser,
    pipe: DiffusionPipeline,
    folder: str | Path,
    kind: str = "lora",
    *,
    rank: int | None = None,
    dtype: torch.dtype | None = None,
    variant: str | None = None,
    **about,
) -> None:
    """Write the eraser as one kind of file, and README.md, its model card: a folder ready for `push_to_hub`.

    kind: "lora" (see `Eraser.save_lora`), "weights" (see `save_weights`), "pipeline"
    (whole, in its own dtype, the eraser in its weights; its file rece.json holds the provenance) or "eraser" (see
    `Eraser.save`). rank: only of a LoRA. variant: only of a pipeline, a word in the file names ("fp16"), as
    `save_pretrained` has it. dtype: of a LoRA (float32 by default) or of weights. about: keywords of `card`.
    The folder is whole or not there, and never a mixture of two exports, see `files.replacing_folder`. The pipeline
    is left as it was found.
    Raises ValueError naming the parameter, before anything is written, also if the pipeline was loaded from this
    folder; FileExistsError if the folder holds other files.
    """
    text = card(eraser, kind=kind, rank=rank, part=families.part(pipe), **about)
    own = {"rank": ("lora",), "variant": ("pipeline",), "dtype": ("lora", "weights")}
    for name, value in (("rank", rank), ("variant", variant), ("dtype", dtype)):
        if value is not None and kind not in own[name]:
            raise ValueError(f"{name} belongs to kind {' or '.join(own[name])}, not to {kind!r}")
    source = pipe.config.get("_name_or_path")
    if source and Path(source).exists() and Path(source).resolve() == Path(folder).resolve():
        raise ValueError(f"folder: the pipeline was loaded from {folder}: write to another folder")
    with files.replacing_folder(folder) as made:
        if kind == "lora":
            eraser.save_lora(made, rank, pipe=pipe, dtype=dtype or torch.float32)
        elif kind == "weights":
            save_weights(eraser, pipe, made / FILES[kind], dtype)
        elif kind == "eraser":
            eraser.save(made / FILES[kind])
        else:
            _fill(made, eraser, pipe, variant)
        (made / "README.md").write_text(text, encoding="utf-8")


def push_to_hub(
    folder: str | Path, repo_id: str, *, private: bool = True, token: str | None = None, revision: str | None = None
) -> str:
    """Upload a folder that `save_folder` wrote to the hub, and return the address of the commit.

    repo_id: owner/name, made if it does not exist. private: what a new repository is; an existing public one is
    refused, so that nothing is published by mistake. token: by default HF_TOKEN of the environment, or the one that
    `hf auth login` stored. revision: a branch, made if it does not exist. Hidden files are not uploaded.
    Raises FileNotFoundError without a folder or its README.md; ValueError for a public repository where private is
    True; OSError where the hub is switched off or cannot be reached.
    """
    try:
        from httpx2 import TransportError
    except ImportError:  # huggingface_hub 1
        from httpx import TransportError

    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    if not (folder / "README.md").is_file():
        raise FileNotFoundError(f"{folder} has no README.md: write the model card with export.card or save_folder")
    if constants.is_offline_mode():
        raise OSError("HF_HUB_OFFLINE is set, so nothing can be uploaded: unset it")
    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.repo_info(repo_id).private:
            raise ValueError(f"{repo_id} exists and is public: give private=False (--public), or another repo_id")
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=f"Upload {folder.resolve().name}",
            ignore_patterns=[".*", "*/.*"],
        )
    except TransportError as error:  # is no OSError
        raise OSError(f"the hub cannot be reached, try again: {error}") from error
    return commit.commit_url


def _fill(folder: Path, eraser: Eraser, pipe: DiffusionPipeline, variant: str | None) -> None:
    with applied(eraser, pipe):
        for part, module in pipe.components.items():
            for name, weight in module.named_parameters() if isinstance(module, torch.nn.Module) else ():
                if not torch.isfinite(weight).all():
                    raise ValueError(f"pipe.{part}: {name} holds values that are not finite: reload the pipeline")
        try:
            pipe.save_pretrained(folder, safe_serialization=True, variant=variant)
        except SafetensorError as error:  # such as a full disk
            raise OSError(f"{folder}: {error}") from error
    for path in [*folder.glob("*.json"), *folder.glob("*/config.json")]:
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None) is not None:  # may be a folder of this machine
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / "rece.json").write_text(json.dumps(eraser.provenance, indent=2) + "\n", encoding="utf-8")
