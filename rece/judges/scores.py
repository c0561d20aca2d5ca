"""Scores of photographs: CLIP score, LPIPS and FID, each of sets too large to hold in memory.

Images come as uint8 arrays (n, h, w, 3), RGB: one of them, or any iterable of such batches.
"""

from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from itertools import islice, zip_longest
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from rece import images as form
from rece.judges import placed, snapshot

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@torch.no_grad()
def clip_score(
    images: np.ndarray | Iterable[np.ndarray],
    prompts: Sequence[str],
    *,
    model: str | Path,
    revision: str | None = None,
    batch_size: int = 32,
    device: str | torch.device | None = None,
) -> np.ndarray:
    """How well each image fits its prompt: max(0, 100 cos) of CLIP's features, (n,) float64, 0 to 100.

    model: hub id or folder of a CLIP; revision: its hub commit, see `judges.snapshot`. Say which: papers report
    openai/clip-vit-base-patch32 (RECE, UCE) or clip-vit-large-patch14. Prompts are cut at the model's length (77).
    The same as transformers' logits_per_image, whose learnt scale is 100 in OpenAI's models, but for negative ones.
    Computed in float32 on `device`, by default the GPU if there is one.
    Raises ValueError if there is not one image per prompt, or a batch has another form. Source: Hessel et al. 2021.
    """
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    if isinstance(prompts, str) or not len(prompts):
        raise ValueError("prompts must be a list of at least one text")
    device, folder = placed(device), snapshot(model, revision)
    clip = CLIPModel.from_pretrained(folder, use_safetensors=True, dtype=torch.float32).eval().to(device)
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    length = clip.config.text_config.max_position_embeddings
    scores = []
    for batch in _batches(_stream(images, "images"), batch_size):
        texts = list(prompts[len(scores) : len(scores) + len(batch)])
        if len(texts) < len(batch):
            raise ValueError(f"images must be as many as prompts, {len(prompts)}, but there are more")
        tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        pixels = processor(images=batch, return_tensors="pt")["pixel_values"]
        seen = clip.get_image_features(pixels.to(device)).pooler_output.cpu().double()
        read = clip.get_text_features(**tokens.to(device)).pooler_output.cpu().double()
        scores += (100 * nn.functional.cosine_similarity(seen, read)).clamp(min=0).tolist()
    if len(scores) != len(prompts):
        raise ValueError(f"images must be as many as prompts, {len(prompts)}, not {len(scores)}")
    return np.array(scores)


@torch.no_grad()
def lpips(
    images: np.ndarray | Iterable[np.ndarray],
    originals: np.ndarray | Iterable[np.ndarray],
    *,
    size: int | None = 64,
    interpolation: str = "bilinear",
    net: str = "alex",
    batch_size: int = 64,
    device: str | torch.device | None = None,
) -> np.ndarray:
    """How different each image looks from the original's of the same prompt and seed: (n,) float64, 0 is equal.

    size: side in pixels to which both are scaled first, or None; RECE and ESD scale to 64. interpolation: of OpenCV:
    "bilinear", its default and theirs, does not smooth (of 512 px it reads 1 value in 16), "area" does. net: alex, vgg
    or squeeze. Runs on `device`, by default the GPU if there is one.

    Needs torchvision, which fetches the backbone's ImageNet weights on the first use (a pickle, checked by its hash).
    Raises ModuleNotFoundError without it, ValueError if the two are not as many or of one size, or a batch has another
    form. Source: Zhang et al. 2018, torchmetrics.
    """
    try:
        import cv2
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        metric = LearnedPerceptualImagePatchSimilarity(net_type=net, reduction="none")
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "lpips needs torchvision and OpenCV: pip install opencv-python-headless and the torchvision of your torch"
        ) from None
    filters = {"bilinear": cv2.INTER_LINEAR, "area": cv2.INTER_AREA}
    if interpolation not in filters:
        raise ValueError(f"interpolation must be one of {', '.join(filters)}, not {interpolation!r}")
    if size is not None and size < 32:
        raise ValueError(f"size must be 32 or more, or None, not {size}")
    metric = metric.to(device := placed(device))

    def tensor(batch: list[np.ndarray]) -> Tensor:
        if size is not None:
            batch = [cv2.resize(image, (size, size), interpolation=filters[interpolation]) for image in batch]
        return torch.as_tensor(np.stack(batch)).permute(0, 3, 1, 2).to(device) / 127.5 - 1

    def pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for image, original in zip_longest(_stream(images, "images"), _stream(originals, "originals")):
            if image is None or original is None:
                raise ValueError("images and originals must be as many, in the same order")
            if image.shape != original.shape:
                raise ValueError(f"images and originals must be of one size, not {image.shape} and {original.shape}")
            yield image, original

    scores = []
    for batch in _batches(pairs(), batch_size):
        image, original = zip(*batch, strict=True)
        metric.update(tensor(image), tensor(original))
        scores += metric.compute().reshape(-1).tolist()
        metric.reset()
    if not scores:
        raise ValueError("images is empty")
    return np.array(scores)


@torch.no_grad()
def fid(
    images: np.ndarray | Iterable[np.ndarray],
    reference: np.ndarray | Iterable[np.ndarray],
    *,
    size: int = 299,
    resize: str = "bicubic",
    features: int | nn.Module = 2048,
    batch_size: int = 64,
    device: str | torch.device | None = None,
) -> dict:
    """Fréchet distance between two sets of images, and with what it was measured; 0 is equal.

    features: 2048, the last layer of torch-fidelity's Inception (64, 192 and 768 are earlier ones), or a module from
    uint8 tensors (n, 3, h, w) to (n, d), as in `metrics.fid`. resize, the choice that moves the number most: "bicubic"
    or "bilinear" scale each image to `size` with Pillow, which smooths; bicubic is clean-fid's way but for rounding to
    whole levels. "torchmetrics" leaves it to torchmetrics (bilinear, smoothed), "tensorflow" to its antialias=False
    (not smoothed, as in the first FIDs); both only to 299, and the images of a batch must then be of one size.

    Returns value, images and reference (how many), tool, features, resize, size. With fewer images than features the
    value is biased upwards: compare only equal numbers of images, and values of one tool (RECE reports clean-fid's).
    Runs on `device`, by default the GPU if there is one. Batches are read one at a time, so that 30,000 images take
    the memory of one batch.

    Needs torch-fidelity, which fetches the Inception weights on the first use. Raises ModuleNotFoundError without it,
    ValueError for a set of fewer than two images or a batch of another form. Source: Heusel et al. 2017, torchmetrics.
    """
    if resize not in (*FILTERS, "torchmetrics", "tensorflow"):
        raise ValueError(f"resize must be one of {', '.join(FILTERS)}, torchmetrics, tensorflow, not {resize!r}")
    if size < 1 or (size != 299 and resize not in FILTERS):
        raise ValueError(f"size must be 299 if resize is {resize}, and positive, not {size}")
    if not isinstance(features, int) and resize not in FILTERS:
        raise ValueError(f"resize must be one of {', '.join(FILTERS)} if features is a module, not {resize!r}")
    try:
        metric = FrechetInceptionDistance(feature=features, antialias=resize != "tensorflow")
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "fid of Inception features needs torch-fidelity: pip install torch-fidelity"
        ) from None
    metric, counts = metric.to(device := placed(device)), {}
    for name, batches, real in (("images", images, False), ("reference", reference, True)):
        counts[name] = 0
        for batch in _batches(_stream(batches, name), batch_size):
            if resize in FILTERS:
                batch = [_scaled(image, (size, size), FILTERS[resize]) for image in batch]
            metric.update(torch.as_tensor(np.stack(batch)).permute(0, 3, 1, 2).to(device), real=real)
            counts[name] += len(batch)
        if counts[name] < 2:
            raise ValueError(f"{name} must hold two images or more, not {counts[name]}")
    return {
        "value": float(metric.compute()),
        **counts,
        "tool": f"torchmetrics {metadata.version('torchmetrics')}",
        "features": f"torch-fidelity Inception, {features}" if isinstance(features, int) else type(features).__name__,
        "resize": resize,
        "size": size,
    }


def reference_batches(
    paths: Iterable[str | Path], size: int, batch_size: int = 64, *, fit: str = "crop"
) -> Iterator[np.ndarray]:
    """Image files, photographs of any size, as uint8 RGB batches (at most batch_size, size, size, 3), in their order.

    fit: "crop" scales the shorter side to `size` and cuts the centre out; "squash" scales both sides. With Pillow's
    smoothed bicubic filter. FID's own scaling to 299 px comes after: give `size` the size of the generated images, so
    that both sets are treated alike, or 299.
    Raises ValueError for bad settings and FileNotFoundError for a missing file, before any is read.
    """
    paths = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    if not paths or size < 1 or batch_size < 1:
        raise ValueError(f"paths must be files, size and batch_size 1 or more, not {len(paths)}, {size}, {batch_size}")
    if fit not in ("crop", "squash"):
        raise ValueError(f"fit must be crop or squash, not {fit!r}")
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"paths: there is no file {missing[0]} ({len(missing)} of {len(paths)} are missing)")
    return map(np.stack, _batches((_read(path, size, fit) for path in paths), batch_size))


def _read(path: Path, size: int, fit: str) -> np.ndarray:
    with Image.open(path) as file:
        image = file.convert("RGB")
    if fit == "crop":
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return _scaled(np.asarray(image), (size, size), Image.Resampling.BICUBIC)


def _scaled(image: np.ndarray, size: tuple[int, int], filter: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize(size, filter))


def _stream(images: np.ndarray | Iterable[np.ndarray], name: str) -> Iterator[np.ndarray]:
    """The single images (h, w, 3) of an array or of batches; raises ValueError for another form."""
    for batch in [images] if isinstance(images, np.ndarray) else images:
        form.check(batch, name)
        yield from batch


def _batches(items: Iterator, batch_size: int) -> Iterator[list]:
    """Lists of at most batch_size items."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, not {batch_size}")
    while batch := list(islice(items, batch_size)):
        yield batch
