"""Images from prompts or prompt embeddings, each with its own seed: a few in memory, many as a folder of PNG files.

`generate` returns an array. `draw` fills a folder that any number of runs and processes can work on and continue;
`read` gives its images back.
"""

import hashlib
import inspect
import json
import math
import numbers
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from diffusers import DiffusionPipeline
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from tqdm import tqdm

from rece import solver
from rece.families import reads_tokens_alone
from rece.files import replacing, sweep


def generate(
    pipe: DiffusionPipeline,
    prompts: Sequence[str] | None = None,
    seeds: Sequence[int] = (),
    *,
    embeds: Tensor | None = None,
    steps: int = 50,
    guidance: float = 7.5,
    height: int | None = None,
    width: int | None = None,
    batch_size: int = 16,
    bf16: bool | str = False,
    progress: bool = True,
) -> np.ndarray:
    """Draw one image per prompt and seed: uint8 (n, height, width, 3), by default at the size the model was made for.

    prompts: n texts; or embeds: (n, positions, d), any float dtype and device, fed to the UNet in place of encoded
    prompts. The negative prompt is always "". steps, guidance: of the pipeline's own scheduler. height, width: in
    pixels, multiples of 8 (of more for some models), both or neither. This size is drawn: PixArt's own resizing
    is switched off. bf16: run under bfloat16 autocast (images change a little); "auto" does
    where the device has it, see `bfloat16`. A safety checker is not consulted. The bar shows if generation takes
    longer than a second.

    Each image's noise comes from its own CPU generator, and every call of the pipeline holds exactly batch_size images
    (the last batch is filled up by repeats, which are thrown away). So the order of the prompts, how many there are,
    and how they are split between machines change nothing: on the CPU not a bit, if batch_size is even (an odd one is
    split unevenly between threads). Another batch_size or thread count changes rounding: about 1e-6 of the range in
    float32, so that now and then a pixel moves by one level.

    Raises ValueError or TypeError naming the parameter, before anything is drawn, and ValueError if an image is not
    finite or not of the size that was asked for.
    """
    if (prompts is None) == (embeds is None):
        raise ValueError("give either prompts or embeds, and not both")
    if prompts is not None:  # also of a pandas column, which has numbers of its own
        prompts = list(prompts) if isinstance(prompts, Iterable) and not isinstance(prompts, str) else [None]
        if not all(isinstance(prompt, str) for prompt in prompts):
            raise TypeError("prompts must be a list of texts")
    seeds = list(seeds) if isinstance(seeds, Iterable) else [seeds]
    if embeds is not None:
        _check_embeds(pipe, embeds)
    n = len(prompts if embeds is None else embeds)
    if n == 0 or len(seeds) != n:
        raise ValueError(f"seeds must be one number per image: {len(seeds)} seeds for {n} prompts")
    solver.whole(steps=steps, batch_size=batch_size)
    _, wanted, allowed = COLUMNS["seed"]
    for seed in seeds:
        if not allowed(seed):
            raise ValueError(f"seeds must each be {wanted}, not {solver.shown(seed)}")
    if not COLUMNS["guidance"][2](guidance):
        raise ValueError(f"guidance must be a finite number, not {solver.shown(guidance)}")
    binned = "use_resolution_binning" in inspect.signature(pipe.__call__).parameters
    bare = {"use_resolution_binning": False} if binned else {}
    if (height is None) != (width is None):
        raise ValueError("height and width: give both or neither, a pipeline replaces both if one is missing")
    size = {} if height is None else {"height": height, "width": width}
    for name, pixels in size.items():
        if not isinstance(pixels, numbers.Integral) or pixels < 8 or pixels % 8:
            raise ValueError(f"{name} must be a multiple of 8 pixels, not {pixels!r}")

    images, device = [], pipe._execution_device
    bar = tqdm(total=n, desc="generate", delay=1, leave=False, disable=not progress)
    with _bare(pipe), torch.autocast(device.type, torch.bfloat16, enabled=bfloat16(device, bf16)):
        for start in range(0, n, batch_size):
            rows = [min(row, n - 1) for row in range(start, start + batch_size)]
            text = {"prompt": [prompts[row] for row in rows]} if embeds is None else {"prompt_embeds": embeds[rows]}
            batch = pipe(
                **text,
                **size,
                **bare,
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=[torch.Generator("cpu").manual_seed(int(seeds[row])) for row in rows],
                output_type="np",
            ).images[: n - start]
            if not np.isfinite(batch).all():
                raise ValueError("the pipeline drew values that are not finite: reload it or use another dtype")
            drawn = dict(zip(("height", "width"), batch.shape[1:3], strict=True))
            if size.items() - drawn.items():
                raise ValueError(f"height and width: the pipeline drew {drawn}, not {size}: ask for another size")
            images.append((batch * 255).round().astype(np.uint8))
            bar.update(len(batch))
    bar.close()
    return np.concatenate(images)


def to_latents(pipe: DiffusionPipeline, images: np.ndarray, batch_size: int = 16) -> Tensor:
    """The VAE's mean latents of pictures, uint8 (n, h, w, 3): (n, c, h, w), scaled, on its device and in its dtype."""
    vae = pipe.vae
    with torch.no_grad():
        pixels = torch.as_tensor(images).permute(0, 3, 1, 2) / 127.5 - 1
        found = [vae.encode(some.to(vae.device, vae.dtype)).latent_dist.mean for some in pixels.split(batch_size)]
    return torch.cat(found) * vae.config.scaling_factor


def draw(
    pipe: DiffusionPipeline,
    table: pd.DataFrame,
    folder: str | Path,
    *,
    steps: int = 50,
    guidance: float = 7.5,
    batch_size: int = 8,
    bf16: bool | str = False,
    identity: dict | None = None,
    part: tuple[int, int] = (1, 1),
    embeds: Tensor | None = None,
    named: bool = False,
    progress: bool = True,
) -> Path:
    """Draw `<case>.png` into the folder for every row of the table, where it is not there yet; returns the folder.

    table: columns prompt (text) and seed (0 to 2^64 - 1). Optional columns: guidance, and width and height (pixels,
    multiples of 8), where a missing value means `guidance` and the pipeline's own size; case (unique names of letters,
    digits, - and _, by default the number of the row). Other columns are ignored.
    steps, batch_size, bf16: see `generate`. embeds: (n, positions, d), fed to the model in place of the encoded
    prompts, one per row. part: (k, n) draws only the k-th of n parts, k from 1.
    named: draw into a folder of its own in `folder`, named by the run's digest, so that equal runs share their images.
    identity: anything else, JSON-able, that must be the same when a run is continued.

    The file run.json holds the table, the settings, what the pipeline is (see `fingerprint`) and a digest of all this,
    which every PNG also holds as its text "run". A folder of another run is refused. A file that is cut or damaged is
    drawn again. The table alone decides which rows share a batch, so the images are the same to the bit if the run was
    killed at any time, or was shared between processes and parts. Several processes may draw into one folder.
    Out of memory, batches are halved from then on, and a warning says that rounding may differ.

    Raises ValueError or TypeError naming the parameter, or the first difference from the run in the folder, before
    anything is written; ValueError if an image is not finite or a PNG is of another run; RuntimeError if a single
    image does not fit into memory.
    """
    if not all(isinstance(number, numbers.Integral) for number in part) or not 1 <= part[0] <= part[1]:
        raise ValueError(f"part must be (k, n) with whole numbers and k from 1 to n, not {part}")
    folder, run = Path(folder), _run(pipe, table, steps, guidance, batch_size, bf16, identity, embeds)
    folder = folder / _digest(run) if named else folder
    settings, columns, digest = run["settings"], run["table"], _begin(folder, run)
    paths = [folder / f"{case}.png" for case in columns["case"]]
    alike, fits = defaultdict(list), {}
    for row, kind in enumerate(zip(columns["guidance"], columns["width"], columns["height"], strict=True)):
        alike[kind].append(row)
    batches = [rows[n : n + batch_size] for rows in alike.values() for n in range(0, len(rows), batch_size)]
    batches = batches[part[0] - 1 :: part[1]]
    with ThreadPoolExecutor() as pool:

        def missing(rows: list[int]) -> list[int]:
            there = pool.map(lambda row: _is_whole(paths[row], digest), rows)
            return [row for row, is_there in zip(rows, there, strict=True) if not is_there]

        left = [len(missing(rows)) for rows in batches]
        with tqdm(total=sum(left), desc="draw", unit=" images", smoothing=0.1, disable=not progress) as bar:
            for rows, count in zip(batches, left, strict=True):
                if count and (todo := missing(rows)):  # another process may have drawn them meanwhile
                    images = dict(zip(rows, _draw_batch(pipe, columns, embeds, rows, settings, fits), strict=True))
                    list(pool.map(lambda row, images=images: _save(images[row], paths[row], digest), todo))
                bar.update(count)
    return folder


def read(folder: str | Path, cases: Iterable[int | str], batch_size: int = 64) -> Iterator[np.ndarray]:
    """The images of the cases, in order: arrays uint8 (n, height, width, 3) with n at most batch_size.

    A new array begins where the size changes. Only one batch is in memory at a time.
    Raises ValueError if an image is missing or damaged, when its turn comes.
    """
    cases = list(cases)
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(cases), batch_size):
            paths = [Path(folder, f"{case}.png") for case in cases[start : start + batch_size]]
            for _, images in groupby(pool.map(_decoded, paths), key=np.shape):
                yield np.stack(list(images))


def checked(table: pd.DataFrame, guidance: float = 7.5) -> dict[str, list]:
    """The columns of the table that decide an image: case, prompt, seed, guidance, width, height; see `draw`.

    guidance stands where the table has none. width and height are None where the table has none.
    Raises TypeError or ValueError naming the column and the row.
    """
    if not isinstance(table, pd.DataFrame):
        raise TypeError(f"table must be a pandas DataFrame, not {type(table).__name__}")
    if not len(table) or not table.columns.is_unique or not {"prompt", "seed"} <= set(table):
        raise ValueError(f"table must have rows, and unique columns with prompt and seed; it has {list(table)}")
    cells = table if "case" in table else table.assign(case=range(len(table)))
    cells = cells.reindex(columns=list(COLUMNS)).astype(object)
    columns = cells.where(cells.notna(), None).to_dict("list")
    columns["guidance"] = [guidance if value is None else value for value in columns["guidance"]]
    for name, (kind, wanted, allowed) in COLUMNS.items():
        for row, value in enumerate(columns[name]):
            if not allowed(value):
                raise ValueError(f"table: {name} of row {row} must be {wanted}, not {value!r}")
        columns[name] = [None if value is None else kind(value) for value in columns[name]]
    for row, (width, height) in enumerate(zip(columns["width"], columns["height"], strict=True)):
        if (width is None) != (height is None):
            raise ValueError(f"table: width and height of row {row} must both be given, or neither")
    case, count = Counter(columns["case"]).most_common(1)[0]
    if count > 1:
        raise ValueError(f"table: case {case!r} stands in several rows; leave the column out to number them")
    return columns


def _real(value) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value, low: int, high: int, step: int = 1) -> bool:
    return _real(value) and low <= value <= high and value % step == 0


# The columns that decide an image: their type, what a value must be, and whether it is.
COLUMNS = {
    "case": (
        str,
        "letters, digits, - and _ (80 at most)",
        lambda value: isinstance(value, numbers.Integral | str) and re.fullmatch("[A-Za-z0-9_-]{1,80}", str(value)),
    ),
    "prompt": (str, "a text", lambda value: isinstance(value, str)),
    "seed": (int, "a whole number from 0 to 2^64 - 1", lambda value: _whole(value, 0, 2**64 - 1)),
    "guidance": (float, "a finite number", _real),
    "width": (int, "a multiple of 8 pixels", lambda value: value is None or _whole(value, 8, 2**16, 8)),
    "height": (int, "a multiple of 8 pixels", lambda value: value is None or _whole(value, 8, 2**16, 8)),
}


def fingerprint(pipe: DiffusionPipeline) -> dict:
    """What a pipeline is: its class, its scheduler's class and settings, and a sha256 of all its weights.

    Weights count with name, shape, dtype and bits, so an applied eraser counts too. Of weights that are not in memory
    (sequential offload) the bits are left out. Takes one or two seconds per gigabyte.
    """
    sha256 = hashlib.sha256()
    for part, module in sorted(pipe.components.items()):
        for name, tensor in sorted(module.state_dict().items()) if isinstance(module, torch.nn.Module) else ():
            if isinstance(tensor, Tensor):
                sha256.update(f"{part}.{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                sha256.update(b"" if tensor.is_meta else _bytes(tensor))
    config = {name: value for name, value in json.loads(pipe.scheduler.to_json_string()).items() if name[0] != "_"}
    scheduler = {f"scheduler.{name}": value for name, value in config.items()}
    scheduler["scheduler.class"] = type(pipe.scheduler).__name__
    return {"pipeline": type(pipe).__name__, **scheduler, "weights": sha256.hexdigest()}


def _bytes(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy()


def _run(pipe, table, steps, guidance, batch_size, bf16, identity, embeds) -> dict:
    """All that decides the images, as JSON has it: the settings, the pipeline among them, and the table."""
    columns = checked(table, guidance)
    if embeds is not None:
        _check_embeds(pipe, embeds)
        if len(embeds) != len(table):
            raise ValueError(f"embeds must hold one embedding per row: it has {len(embeds)} for {len(table)} rows")
    solver.whole(steps=steps, batch_size=batch_size)
    try:
        identity = json.loads(json.dumps(identity or {}, allow_nan=False))
        identity = {f"identity.{name}": value for name, value in identity.items()}
    except (TypeError, ValueError, AttributeError) as error:
        raise TypeError(f"identity must be a dict that JSON can hold: {error}") from None
    device = pipe._execution_device
    found = {"steps": int(steps), "batch_size": int(batch_size), "bf16": bfloat16(device, bf16), "device": device.type}
    found |= {"threads": torch.get_num_threads()} if device.type == "cpu" else {}
    found |= {} if embeds is None else {"embeds": f"{embeds.dtype} {hashlib.sha256(_bytes(embeds)).hexdigest()}"}
    return {"settings": found | fingerprint(pipe) | identity, "table": columns}


def _digest(run: dict) -> str:
    return hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()


def _begin(folder: Path, run: dict) -> str:
    """Write run.json, or compare with the one that is there, and remove what killed runs left; returns the digest."""
    path = folder / "run.json"
    if not path.exists():
        with replacing(path) as file:
            file.write(json.dumps({"digest": _digest(run)} | run, indent=1).encode())
    try:
        there = json.loads(path.read_bytes())
        before, now = _flat(there), _flat(run)
        differs = [name for name in {**now, **before} if before.get(name) != now.get(name)]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"folder: {path} is damaged: delete this file and draw again") from None
    if differs:
        values = f"{before.get(differs[0])!r:.60} there, but {now.get(differs[0])!r:.60} now"
        reason = f"folder: {folder} holds another run ({differs[0]} is {values})"
        remedy = f"set OMP_NUM_THREADS={before.get('threads')}, or " if differs == ["threads"] else ""
        raise ValueError(f"{reason}: {remedy}choose another folder")
    for names in ("*.png", "run.json"):
        sweep(folder, names)
    return _digest(run)


def _flat(run: dict) -> dict:
    """Every setting and every cell of a run's table, by a name for messages."""
    cells = {f"{name} of row {row}": value for name in COLUMNS for row, value in enumerate(run["table"][name])}
    return run["settings"] | {"the number of rows": len(run["table"]["case"])} | cells


def _is_whole(path: Path, digest: str) -> bool:
    """Whether this run's image is there and its checksums are right. Raises ValueError for an image of another run."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            run = image.info.get("run")
            image.verify()
    except (OSError, SyntaxError, ValueError, EOFError):
        return False
    if run != digest:
        raise ValueError(f"folder: {path} is of another run: choose another folder, or delete this file")
    return True


def _decoded(path: Path) -> np.ndarray:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, EOFError):
        raise ValueError(f"{path} is missing or damaged: draw again with the same settings") from None


def _save(image: np.ndarray, path: Path, digest: str) -> None:
    info = PngInfo()
    info.add_text("run", digest)
    with replacing(path) as file:
        Image.fromarray(image).save(file, "PNG", pnginfo=info)


def _draw_batch(pipe, columns: dict, embeds: Tensor | None, rows: list[int], settings: dict, fits: dict) -> np.ndarray:
    """The images of these rows, which are of one guidance and size. fits: by size, the batch that memory allowed."""
    guidance, width, height = (columns[name][rows[0]] for name in ("guidance", "width", "height"))
    cases, prompts, seeds = ([columns[name][row] for row in rows] for name in ("case", "prompt", "seed"))
    text = {"prompts": prompts} if embeds is None else {"embeds": embeds[rows]}
    given = {"steps": settings["steps"], "bf16": settings["bf16"], "guidance": guidance}
    while True:
        size = fits.get((width, height), settings["batch_size"])
        given |= {"width": width, "height": height, "batch_size": size, "progress": False}
        try:
            return generate(pipe, seeds=seeds, **text, **given)
        except ValueError as error:
            raise ValueError(f"{error} (cases {', '.join(cases)})") from error
        except RuntimeError as error:
            if not should_reduce_batch_size(error) and "out of memory" not in str(error):
                raise
            reason = " ".join(str(error).split())  # the error itself would keep the batch's memory
        clear_device_cache(garbage_collection=True)
        if size == 1:
            raise RuntimeError("out of memory with a single image: use dtype float16, or a smaller width and height")
        fits[width, height] = max(1, size // 4 * 2)
        warnings.warn(
            f"batch_size {size} is out of memory ({reason}): going on with {fits[width, height]}; "
            "rounding may differ from a run without smaller batches",
            stacklevel=3,
        )


def _check_embeds(pipe: DiffusionPipeline, embeds: Tensor) -> None:
    if not isinstance(embeds, Tensor) or embeds.ndim != 3 or not embeds.is_floating_point():
        raise TypeError("embeds must be a float tensor of shape (n, positions, d)")
    if not torch.isfinite(embeds).all():
        raise ValueError("embeds holds values that are not finite")
    if not reads_tokens_alone(pipe):
        raise ValueError("embeds is not supported for a model that reads more than tokens: give prompts")


def bfloat16(device: torch.device, bf16: bool | str) -> bool:
    """Whether to compute in bfloat16: bf16 itself, or if it is "auto", whether the device does so by itself.

    Where it does not, bfloat16 is slower than float32. Raises ValueError for another bf16.
    """
    if bf16 not in (True, False, "auto"):
        raise ValueError(f'bf16 must be true, false or "auto", not {bf16!r}')
    if bf16 != "auto":
        return bf16
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@contextmanager
def _bare(pipe: DiffusionPipeline):
    """The pipeline without its own progress bar and safety checker.

    Set past `__setattr__`, which would also change the config that `save_pretrained` writes.
    """
    before = dict(vars(pipe))
    vars(pipe)["_progress_bar_config"] = {"disable": True}
    if "safety_checker" in before:
        vars(pipe)["safety_checker"] = None
    try:
        yield
    finally:
        for name in ("_progress_bar_config", "safety_checker"):
            if name in before:
                vars(pipe)[name] = before[name]
            else:
                vars(pipe).pop(name, None)


def check(images: np.ndarray, name: str = "images") -> None:
    """Raise ValueError naming the argument if these are not images. An empty array is allowed."""
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        form = f"{getattr(images, 'dtype', type(images).__name__)} {getattr(images, 'shape', '')}"
        raise ValueError(f"{name} must be uint8 arrays of shape (n, height, width, 3), not {form}")
