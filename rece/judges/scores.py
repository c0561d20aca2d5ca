"""Scores of images: CLIP score, LPIPS, FID, KID, and drift from the original's images.

Images are uint8 arrays (n, h, w, 3), RGB. CLIP score, LPIPS and FID also take any iterable of such arrays, so that a
set may be larger than memory.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from importlib import metadata
from itertools import islice, zip_longest
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

from rece import images as form
from rece.judges import Network
from rece.loading import placed

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
Images = np.ndarray | Iterable[np.ndarray]


@torch.no_grad()
def clip_score(
    images: Images,
    prompts: Sequence[str],
    *,
    model: str | Path,
    revision: str | None = None,
    batch_size: int = 32,
    device: str | torch.device | None = None,
) -> np.ndarray:
    """How well each image fits its prompt: max(0, 100 cos) of CLIP's features, (n,) float64, 0 to 100.

    model: hub id or folder of a CLIP; revision, batch_size, device: see `judges.Network`. Name the model wherever the
        score is shown: papers report openai/clip-vit-base-patch32 (RECE, UCE) or clip-vit-large-patch14.

    Prompts are cut at the model's length (77 tokens). The score equals transformers' logits_per_image for OpenAI's
    models, whose learnt scale is 100, except that negative values become 0.
    Raises ValueError if there is not one image per prompt, or if a batch has another form. Source: Hessel et al. 2021.
    """
    from transformers import AutoTokenizer

    if isinstance(prompts, str) or not len(prompts):
        raise ValueError("prompts must be a list of at least one text")
    network = Network("CLIPModel", model, revision, batch_size, device)
    clip = network.model
    tokenizer = AutoTokenizer.from_pretrained(network.folder, trust_remote_code=False)
    length, scores = clip.config.text_config.max_position_embeddings, []
    if_not = f"images must be as many as prompts, {len(prompts)}"
    for pictures, texts in _pairs(_stream(images, "images"), prompts, batch_size, if_not):
        tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        seen = clip.get_image_features(network.pixels(pictures)).pooler_output.cpu().double()
        read = clip.get_text_features(**tokens.to(network.device)).pooler_output.cpu().double()
        scores += (100 * nn.functional.cosine_similarity(seen, read)).clamp(min=0).tolist()
    return np.array(scores)


@torch.no_grad()
def lpips(
    images: Images,
    originals: Images,
    *,
    size: int | None = 64,
    interpolation: str = "bilinear",
    net: str = "alex",
    batch_size: int = 64,
    device: str | torch.device | None = None,
) -> np.ndarray:
    """How different each image looks from the original's of the same prompt and seed: (n,) float64, 0 is equal.

    size: side in pixels to which both images are scaled first, or None for no scaling. RECE and ESD scale to 64.
    interpolation: how OpenCV scales. "bilinear" is OpenCV's default and what RECE and ESD use; it does not smooth, so
        that of a 512 px image scaled to 64 px it reads 1 value in 16. "area" smooths.
    net: the backbone, alex, vgg or squeeze.
    device: where it is computed, see `loading.placed`.

    Needs torchvision, which downloads the backbone's ImageNet weights on the first use (a pickle, checked by its
    hash). Raises ModuleNotFoundError without it. Raises ValueError for a bad setting, if the two sets differ in number
    or size, or if a batch has another form. Source: Zhang et al. 2018, torchmetrics.
    """
    filters = {"bilinear": cv2.INTER_LINEAR, "area": cv2.INTER_AREA}
    if interpolation not in filters:
        raise ValueError(f"interpolation must be one of {', '.join(filters)}, not {interpolation!r}")
    if size is not None and size < 32:
        raise ValueError(f"size must be 32 or more, or None, not {size}")
    try:
        metric = LearnedPerceptualImagePatchSimilarity(net_type=net, reduction="none").to(device := placed(device))
    except ModuleNotFoundError:
        raise ModuleNotFoundError("lpips needs torchvision: pip install the torchvision of your torch") from None

    def tensor(batch: list[np.ndarray]) -> Tensor:
        if size is not None:
            batch = [cv2.resize(image, (size, size), interpolation=filters[interpolation]) for image in batch]
        return torch.as_tensor(np.stack(batch)).permute(0, 3, 1, 2).to(device) / 127.5 - 1

    if_not = "images and originals must be as many, in the same order"
    pairs = _pairs(_stream(images, "images"), _stream(originals, "originals"), batch_size, if_not)
    for made, before in pairs:
        for image, original in zip(made, before, strict=True):
            if image.shape != original.shape:
                raise ValueError(f"images and originals must be of one size, not {image.shape} and {original.shape}")
        metric.update(tensor(made), tensor(before))
    if not metric.update_called:
        raise ValueError("images is empty")
    return metric.compute().reshape(-1).double().cpu().numpy()


class FID:
    """Fréchet distance of sets of images from one reference set; 0 means equal. The reference is read only once.

    reference: uint8 images (n, h, w, 3), one array or any iterable of such arrays.
    features: 2048 is the last layer of torch-fidelity's Inception; 64, 192 and 768 are earlier layers. Or a module
        from uint8 tensors (n, 3, h, w) to (n, d), for instance a judge. Name the features wherever the number is
        shown, since values of different features cannot be compared.
    resize: how images are scaled to `size`. This choice moves the number most. "bicubic" and "bilinear" scale each
        image with Pillow, which smooths; "bicubic" does as clean-fid does, but rounds to whole levels. "torchmetrics"
        leaves the scaling to torchmetrics (bilinear, smoothed). "tensorflow" is the same without smoothing, as in the
        first FIDs. These two scale to 299 only, and the images of one batch must have one size.
        None does not scale; it needs a module as `features`.
    size: side in pixels. batch_size: how many images are in memory at once.
    device: see `loading.placed`. A module is moved there.

    Call it with a set of images for the dict value, images and reference (how many), tool, features, resize, size.
    If there are fewer images than features the value is biased upwards, so compare only equal numbers of images, and
    values of one tool (RECE reports clean-fid's).
    Inception needs the package torch-fidelity, which downloads the weights on the first use.
    Raises ModuleNotFoundError without it, ValueError for a bad setting, for a set of fewer than two images, and for a
    batch of another form. Source: Heusel et al. 2017, torchmetrics.
    """

    def __init__(
        self,
        reference: Images,
        *,
        size: int = 299,
        resize: str | None = "bicubic",
        features: int | nn.Module = 2048,
        batch_size: int = 64,
        device: str | torch.device | None = None,
    ):
        inception = isinstance(features, int)
        known = [*FILTERS, *(("torchmetrics", "tensorflow") if inception else (None,))]
        if resize not in known:
            kind = "a number" if inception else "a module"
            known = ", ".join(map(str, known))
            raise ValueError(f"resize must be one of {known} if features is {kind}, not {resize!r}")
        if size < 1 or (size != 299 and resize not in FILTERS):
            raise ValueError(f"size must be 299 if resize is {resize}, and positive, not {size}")
        antialias = resize != "tensorflow"
        metric = FrechetInceptionDistance(feature=features, antialias=antialias, reset_real_features=False)
        self.metric = metric.to(placed(device))
        self.update = partial(_update, self.metric, batch_size=batch_size, resize=resize, size=size)
        self.settings = {"tool": f"torchmetrics {metadata.version('torchmetrics')}"}
        self.settings["features"] = f"torch-fidelity Inception, {features}" if inception else type(features).__name__
        self.settings |= {"resize": resize, "size": size if resize else None}
        self.reference = self.update(reference, "reference")

    def __call__(self, images: Images) -> dict:
        """Measure one set of images; see the class."""
        self.metric.reset()  # forgets the images of the call before, and keeps the reference
        n = self.update(images, "images")
        return {"value": float(self.metric.compute()), "images": n, "reference": self.reference, **self.settings}


def fid(images: Images, reference: Images, **settings) -> dict:
    """Fréchet distance between two sets of images. Settings, the dict returned and the errors are those of `FID`."""
    return FID(reference, **settings)(images)


def kid(images: np.ndarray, reference: np.ndarray, features: nn.Module, batch_size: int = 256) -> float:
    """Kernel distance (squared MMD, cubic kernel) of two sets of images; unbiased, so that equal sets give about 0.

    images, reference: uint8 (n, h, w, 3), not scaled. features: a module as in `FID`, on the CPU.
    Computed once over the whole sets instead of over random subsets. Of the larger set only as many images are used as
    the smaller one holds; they are drawn with a fixed seed.
    Raises ValueError if a set has another form or fewer than two images. Source: torchmetrics.
    """
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message=".*save all extracted features.*")
        torch.manual_seed(0)
        smaller = max(1, min(len(images), len(reference)))
        metric = KernelInceptionDistance(feature=features, subsets=1, subset_size=smaller)
        for name, batches in (("reference", reference), ("images", images)):
            _update(metric, batches, name, batch_size)
        return float(metric.compute()[0])


def drift(images: np.ndarray, originals: np.ndarray) -> float:
    """Mean absolute difference of images from the original model's of the same prompts and seeds, 0 to 1.

    images, originals: uint8 (n, h, w, 3). Pixel values are scaled to 0..1.
    Raises ValueError if either has another form or is empty, or if their shapes differ.
    """
    for name, given in (("images", images), ("originals", originals)):
        form.check(given, name)
        if not len(given):
            raise ValueError(f"{name} is empty")
    if images.shape != originals.shape:
        raise ValueError(f"images and originals must be of one shape, not {images.shape} and {originals.shape}")
    pairs = zip(images, originals, strict=True)
    return float(sum(np.abs((a.astype(np.float64) - b) / 255).mean() / len(images) for a, b in pairs))


def reference_batches(
    paths: Iterable[str | Path], size: int, batch_size: int = 64, *, fit: str = "crop"
) -> Iterator[np.ndarray]:
    """Read image files of any size as uint8 RGB batches (at most batch_size, size, size, 3), in the order of `paths`.

    size: side in pixels. FID scales to 299 px after this, so give the size of the generated images, or 299: then both
        sets are treated alike.
    fit: "crop" scales the shorter side to `size` and cuts out the centre. "squash" scales both sides. Both use
        Pillow's bicubic filter, which smooths.
    Raises ValueError for a bad setting and FileNotFoundError for a missing file, before any file is read.
    """
    paths = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    if not paths or size < 1 or batch_size < 1:
        raise ValueError(f"paths must be files, size and batch_size 1 or more, not {len(paths)}, {size}, {batch_size}")
    if fit not in ("crop", "squash"):
        raise ValueError(f"fit must be crop or squash, not {fit!r}")
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"paths: there is no file {missing[0]} ({len(missing)} of {len(paths)} are missing)")

    def read(path: Path) -> np.ndarray:
        with Image.open(path) as file:
            image = file.convert("RGB")
        scale = ImageOps.fit if fit == "crop" else Image.Image.resize
        return np.asarray(scale(image, (size, size), Image.Resampling.BICUBIC))

    return map(np.stack, _batches(map(read, paths), batch_size))


@torch.no_grad()
def _update(
    metric, images: Images, name: str, batch_size: int, resize: str | None = None, size: int | None = None
) -> int:
    """Give a metric of torchmetrics all images, scaled, on its device, and return how many there were."""
    n = 0
    for batch in _batches(_stream(images, name), batch_size):
        if resize in FILTERS:
            batch = [np.asarray(Image.fromarray(image).resize((size, size), FILTERS[resize])) for image in batch]
        pixels = torch.as_tensor(np.stack(batch)).permute(0, 3, 1, 2)
        metric.update(pixels.to(metric.device), real=name == "reference")
        n += len(batch)
    if n < 2:
        raise ValueError(f"{name} must hold two images or more, not {n}")
    return n


def _stream(images: Images, name: str) -> Iterator[np.ndarray]:
    """The single images (h, w, 3) of an array or of batches. Raises ValueError for another form."""
    for batch in [images] if isinstance(images, np.ndarray) else images:
        form.check(batch, name)
        yield from batch


def _batches(items: Iterator, batch_size: int) -> Iterator[list]:
    """Lists of at most batch_size items."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, not {batch_size}")
    while batch := list(islice(items, batch_size)):
        yield batch


def _pairs(images: Iterator, others: Iterable, batch_size: int, if_not: str) -> Iterator[tuple[list, list]]:
    """Lists of at most batch_size images, and of what belongs to them. Raises ValueError if they are not as many."""
    for batch in _batches(zip_longest(images, others), batch_size):
        ours, theirs = map(list, zip(*batch, strict=True))
        if ours[-1] is None or theirs[-1] is None:
            raise ValueError(if_not)
        yield ours, theirs
