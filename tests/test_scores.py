"""CLIP score, LPIPS, FID, KID and drift against literal recomputation, with tiny or toy networks."""

import cv2
import numpy as np
import pytest
import tiny
import torch
from pictures import pictures
from PIL import Image
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from rece.judges import scores

PROMPTS = ["a dog", "the moon", "a red car by the sea", "x", "the end of a very long story"]


def split(images, *sizes):
    start = 0
    for size in sizes:
        yield images[start : start + size]
        start += size


# CLIP score


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return tiny.clip(tmp_path_factory.mktemp("clip"))


@torch.no_grad()
def test_clip_score_is_a_hundred_cosines_or_nothing(clip):
    images = pictures(5, 40, 40)
    found = scores.clip_score(images, PROMPTS, model=clip, batch_size=2)
    model, processor = CLIPModel.from_pretrained(clip).eval(), CLIPImageProcessor.from_pretrained(clip)
    tokenizer = CLIPTokenizer.from_pretrained(clip)
    cosines = []
    for image, prompt in zip(images, PROMPTS, strict=True):
        ids = tokenizer([prompt], truncation=True, max_length=24, return_tensors="pt").input_ids
        pixels = processor(images=Image.fromarray(image), return_tensors="pt").pixel_values
        logits = model(input_ids=ids, pixel_values=pixels).logits_per_image
        cosines.append((logits / model.logit_scale.exp()).item())
    assert found.shape == (5,) and min(cosines) < 0 < max(cosines)
    np.testing.assert_allclose(found, np.maximum(0, 100 * np.array(cosines)), atol=1e-3)
    np.testing.assert_allclose(scores.clip_score(split(images, 1, 4), PROMPTS, model=clip), found, atol=1e-4)


def test_clip_score_cuts_long_prompts(clip):
    image = pictures(1)
    long, longer = (scores.clip_score(image, ["a" * n], model=clip) for n in (30, 300))
    assert scores.clip_score(image, ["a" * 10], model=clip) != long == pytest.approx(longer)


def test_clip_score_bad_input(clip):
    for images in (pictures(4), pictures(6), split(pictures(6), 3, 3)):
        with pytest.raises(ValueError, match="images must be as many as prompts, 5"):
            scores.clip_score(images, PROMPTS, model=clip)
    with pytest.raises(ValueError, match="images must be uint8 arrays"):
        scores.clip_score(iter(pictures(5)), PROMPTS, model=clip)
    with pytest.raises(ValueError, match="prompts"):
        scores.clip_score(pictures(2), "ab", model=clip)
    with pytest.raises(ValueError, match="'openai/clip-vit-base-patch32'.* revision must be its full"):
        scores.clip_score(pictures(5), PROMPTS, model="openai/clip-vit-base-patch32")


# LPIPS


@pytest.mark.parametrize("interpolation, flag", [("bilinear", cv2.INTER_LINEAR), ("area", cv2.INTER_AREA)])
def test_lpips_pairs_scaled_images(squares, interpolation, flag):
    images, originals = pictures(5, 128, 128), pictures(5, 128, 128, seed=1)
    originals[3] = images[3]
    made = scores.lpips(split(images, 1, 4), split(originals, 3, 2), interpolation=interpolation, batch_size=2)
    small = np.array([[cv2.resize(i, (64, 64), interpolation=flag) for i in both] for both in (images, originals)])
    small = small / 127.5 - 1
    np.testing.assert_allclose(made, np.square(small[0] - small[1]).mean((1, 2, 3)), rtol=1e-5)
    assert made.shape == (5,) and made[3] == 0 and (made[[0, 1, 2, 4]] > 0).all()


def test_lpips_without_scaling(squares):
    images, originals = pictures(3, 40, 48), pictures(3, 40, 48, seed=1)
    expected = np.square((images / 127.5) - (originals / 127.5)).mean((1, 2, 3))
    np.testing.assert_allclose(scores.lpips(images, originals, size=None), expected, rtol=1e-5)
    assert abs(scores.lpips(images, originals, size=32) - expected).min() > 1e-3


def test_lpips_bad_input(squares, monkeypatch):
    for images, originals in ((pictures(3), pictures(2)), (pictures(2), split(pictures(3), 1, 2))):
        with pytest.raises(ValueError, match="images and originals must be as many"):
            scores.lpips(images, originals)
    with pytest.raises(ValueError, match="one size"):
        scores.lpips(pictures(2), pictures(2, 64, 64))
    with pytest.raises(ValueError, match="originals must be uint8"):
        scores.lpips(pictures(2), pictures(2) / 255)
    with pytest.raises(ValueError, match="images is empty"):
        scores.lpips(pictures(0), pictures(0))
    for name, value in (("interpolation", "best"), ("size", 8), ("batch_size", 0)):
        with pytest.raises(ValueError, match=f"^{name}"):
            scores.lpips(pictures(2), pictures(2), **{name: value})
    monkeypatch.setattr("torchmetrics.image.lpip._NoTrainLpips", lambda **_: pytest.fail("downloaded"))
    for name, value in (("interpolation", "best"), ("size", 8)):
        with pytest.raises(ValueError, match=f"^{name}"):
            scores.lpips(pictures(2), pictures(2), **{name: value})


def test_lpips_names_what_is_missing(monkeypatch):
    monkeypatch.setattr("torchmetrics.image.lpip._TORCHVISION_AVAILABLE", False)
    with pytest.raises(ModuleNotFoundError, match="lpips needs torchvision.*pip install"):
        scores.lpips(pictures(1), pictures(1))


# FID


def test_fid_is_that_of_the_scaled_images():
    images, reference = pictures(30, 24, 24), pictures(20, 24, 24, seed=1) // 2
    found = scores.fid(split(images, 7, 23), split(reference, 20), features=tiny.Means(), size=16, batch_size=8)

    def small(batch):
        return np.stack([np.asarray(Image.fromarray(i).resize((16, 16), Image.Resampling.BICUBIC)) for i in batch])

    expected = scores.fid(small(images), small(reference), features=tiny.Means(), resize=None)["value"]
    assert found.pop("value") == pytest.approx(expected) and expected > 1
    assert found.pop("tool").startswith("torchmetrics 1.")
    assert found == {"images": 30, "reference": 20, "features": "Means", "resize": "bicubic", "size": 16}
    same = scores.fid(reference, reference, features=tiny.Means(), size=24)
    assert same["value"] == pytest.approx(0, abs=1e-6)
    assert same["value"] != scores.fid(reference, reference[:19], features=tiny.Means(), size=24)["value"]


def test_fid_depends_on_how_images_are_scaled():
    images, reference = pictures(10, 48, 48), pictures(10, 48, 48, seed=1)
    values = [scores.fid(images, reference, features=tiny.Means(), size=8, resize=r)["value"] for r in scores.FILTERS]
    assert abs(values[0] - values[1]) > 1e-3


def test_fid_holds_one_batch_at_a_time():
    log, module = [], None
    module = tiny.Means(log)

    def batches(n):
        for i in range(n):
            log.append("read")
            yield pictures(4, 16, 16, seed=i)

    scores.fid(batches(5), batches(3), features=module, size=16, batch_size=4)
    assert log == ["read", (4, 3, 16, 16)] * 8


def test_fid_takes_images_of_several_sizes():
    mixed = [pictures(2, 20, 30), pictures(3, 64, 16)]
    assert scores.fid(mixed, mixed, features=tiny.Means(), size=16)["value"] == pytest.approx(0, abs=1e-6)


def test_fid_bad_input(monkeypatch):
    with pytest.raises(ValueError, match="images must hold two images or more, not 1"):
        scores.fid(pictures(1), pictures(3), features=tiny.Means())
    with pytest.raises(ValueError, match="reference must hold two images or more, not 0"):
        scores.fid(pictures(3), iter([]), features=tiny.Means())
    with pytest.raises(ValueError, match="reference must be uint8 arrays"):
        scores.fid(pictures(3), [pictures(3) / 255], features=tiny.Means())
    for settings in ({"resize": "best"}, {"resize": "torchmetrics"}, {"size": 0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match=f"^{next(iter(settings))} must"):
            scores.fid(pictures(3), pictures(3), features=tiny.Means(), **settings)
    with pytest.raises(ValueError, match="^size must be 299"):
        scores.fid(pictures(3), pictures(3), size=64, resize="tensorflow")
    monkeypatch.setattr("torchmetrics.image.fid._TORCH_FIDELITY_AVAILABLE", False)
    with pytest.raises(ModuleNotFoundError, match="pip install torch-fidelity"):
        scores.fid(pictures(3), pictures(3))


# Drift, and FID and KID of images as they are


def coarse(n, seed=0, low=40, high=200):
    return np.random.default_rng(seed).integers(low, high, (n, 4, 4, 3)).astype(np.uint8)


def distance(images, reference, **settings):
    return scores.fid(images, reference, features=tiny.Means(), resize=None, **settings)["value"]


def test_drift_by_hand():
    original = np.zeros((2, 2, 2, 3), np.uint8)
    images = original.copy()
    images[1] = 51  # a fifth of the range
    assert scores.drift(images, original) == pytest.approx(0.1) == scores.drift(original, images)


def test_fid_and_kid_of_equal_sets_are_zero():
    images = coarse(300)
    assert abs(distance(images, images)) < 1e-4
    assert abs(distance(images, images[::-1].copy(), batch_size=77)) < 1e-4
    spread = np.var((tiny.Means()(torch.as_tensor(images).permute(0, 3, 1, 2)).numpy()), axis=0).sum()
    assert distance(images, coarse(300, seed=1)) < 0.05 * spread


def test_fid_of_a_shift_is_its_square():
    images = coarse(200)
    for shift in (5, 20):
        np.testing.assert_allclose(distance(images + np.uint8(shift), images), 3 * shift**2, rtol=1e-6)


def test_kid_is_the_unbiased_mmd():
    images, original = coarse(20), coarse(20, seed=1, low=90)
    a, b = (tiny.Means()(torch.as_tensor(x).permute(0, 3, 1, 2)).numpy() for x in (images, original))

    def kernel(x, y):
        return (x @ y / 3 + 1) ** 3

    n = len(a)
    same = sum(kernel(x[i], x[j]) for x in (a, b) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    across = sum(kernel(x, y) for x in a for y in b) / n**2
    np.testing.assert_allclose(scores.kid(images, original, tiny.Means()), same - 2 * across, rtol=1e-6)


def test_kid_orders_sets_and_repeats_itself():
    original = coarse(80)
    near, far = (
        scores.kid(coarse(80, seed=1), original, tiny.Means()),
        scores.kid(coarse(80, seed=1, low=120), original, tiny.Means()),
    )
    assert abs(near) < far / 20
    few = coarse(30, seed=2)
    before = torch.random.get_rng_state()
    assert scores.kid(few, original, tiny.Means()) == scores.kid(few, original, tiny.Means())
    torch.testing.assert_close(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("metric", [scores.drift, distance, lambda a, b: scores.kid(a, b, tiny.Means())])
@pytest.mark.parametrize(
    "broken", [coarse(3).astype(np.float32), coarse(3)[0], coarse(3).transpose(0, 3, 1, 2), coarse(0), []]
)
def test_bad_images(metric, broken):
    with pytest.raises(ValueError, match="^images"):
        metric(broken, coarse(3))
    with pytest.raises(ValueError, match="^(originals|reference)"):
        metric(coarse(3), broken)


def test_shapes_and_numbers_must_fit():
    with pytest.raises(ValueError, match="of one shape"):
        scores.drift(coarse(3), coarse(4))
    with pytest.raises(ValueError, match="two images or more"):
        distance(coarse(1), coarse(3))


def test_the_reference_of_fid_is_read_once():
    log, sets = [], [coarse(9, seed=1), coarse(12, seed=2)]
    fid = scores.FID(iter([coarse(20)]), features=tiny.Means(log), resize=None, batch_size=64)
    found = [fid(images) for images in sets]
    assert [shape[0] for shape in log] == [20, 9, 12]
    assert found == [scores.fid(images, coarse(20), features=tiny.Means(), resize=None) for images in sets]
    assert (found[0]["images"], found[0]["reference"], found[0]["resize"], found[0]["size"]) == (9, 20, None, None)


# Reference images


def test_reference_batches_crop_or_squash(tmp_path):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200  # the centre
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(pictures(1, 33, 21)[0][..., 0]).save(tmp_path / "gray.png")
    Image.fromarray(pictures(1, 10, 10)[0]).save(tmp_path / "small.png")
    paths = [tmp_path / f"{name}.png" for name in ("wide", "gray", "small")]
    crop = list(scores.reference_batches(paths, 10, 2))
    assert [batch.shape for batch in crop] == [(2, 10, 10, 3), (1, 10, 10, 3)]
    assert crop[0].dtype == np.uint8 and (crop[0][0, :, 2:8] > 190).all()
    assert (crop[0][1][..., 0] == crop[0][1][..., 2]).all()
    assert (crop[1][0] == pictures(1, 10, 10)[0]).all()
    squash = next(scores.reference_batches(paths, 10, 2, fit="squash"))
    assert (squash[0, :, :2] < 10).all() and (squash[0, :, 8:] < 10).all() and (squash[0, :, 4:6] > 190).all()
    found = scores.fid(scores.reference_batches(paths, 10), np.concatenate(crop), features=tiny.Means(), size=10)
    assert found["value"] == pytest.approx(0, abs=1e-6) and found["images"] == 3


def test_reference_batches_bad_input(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file .*none.png .1 of 1"):
        scores.reference_batches([tmp_path / "none.png"], 8)
    for paths, size, fit, message in (([], 8, "crop", "paths"), (["a"], 0, "crop", "size"), (["a"], 8, "pad", "fit")):
        with pytest.raises(ValueError, match=message):
            scores.reference_batches(paths, size, fit=fit)
