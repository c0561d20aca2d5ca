"""Images depend on prompt, seed and settings, and on nothing else: not on kills, other processes, or parts."""

import json
import os
import shutil
import signal
import time

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from PIL import Image

import rece
from rece import files, texts
from rece import images as drawing
from rece.images import checked, draw, fingerprint, generate, read

PROMPTS = ["a dog", "a cat", "", "a red dog", "my cat", "a dog"]
SEEDS = [3, 1, 4, 15, 9, 2]
QUICK = {"steps": 3, "guidance": 5.0, "batch_size": 4, "progress": False}


def test_order_number_and_sharding_change_no_bit(pipe):
    images = generate(pipe, PROMPTS, SEEDS, **QUICK)
    assert images.dtype == np.uint8 and images.shape == (6, 16, 16, 3)
    order = [5, 2, 0, 4, 1, 3]
    shuffled = generate(pipe, [PROMPTS[i] for i in order], [SEEDS[i] for i in order], **QUICK)
    np.testing.assert_array_equal(shuffled, images[order])
    table = pd.DataFrame({"prompt": PROMPTS, "seed": SEEDS}).iloc[order]  # a column has numbers of its own
    np.testing.assert_array_equal(generate(pipe, table.prompt, table.seed, **QUICK), shuffled)
    for shard in ([0, 1, 2, 3, 4], [5], [1, 3]):
        alone = generate(pipe, [PROMPTS[i] for i in shard], [SEEDS[i] for i in shard], **QUICK)
        np.testing.assert_array_equal(alone, images[shard])


@pytest.mark.parametrize("batch_size", [1, 2, 5, 16])
def test_batch_size_moves_a_pixel_by_one_level_at_most(pipe, batch_size):
    images = generate(pipe, PROMPTS, SEEDS, **QUICK)
    other = generate(pipe, PROMPTS, SEEDS, **{**QUICK, "batch_size": batch_size})
    difference = np.abs(images.astype(int) - other)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01


def test_seed_and_prompt_matter(pipe):
    images = generate(pipe, ["a dog", "a dog", "a cat"], [1, 2, 1], **QUICK)
    assert (images[0] != images[1]).any() and (images[0] != images[2]).any()


def test_embeds_give_the_images_of_their_prompts(pipe):
    embeds = texts.encode(pipe, PROMPTS)
    assert embeds.dtype == torch.float64
    np.testing.assert_array_equal(
        generate(pipe, seeds=SEEDS, embeds=embeds, **QUICK), generate(pipe, PROMPTS, SEEDS, **QUICK)
    )


def test_the_plain_pipeline_draws_the_same(pipe):
    images = generate(pipe, PROMPTS[:2], SEEDS[:2], **QUICK)
    for image, prompt, seed in zip(images, PROMPTS[:2], SEEDS[:2], strict=True):
        drawn = pipe(prompt, num_inference_steps=3, guidance_scale=5.0, generator=torch.Generator().manual_seed(seed))
        assert np.abs(np.asarray(drawn.images[0]).astype(int) - image).max() <= 1


def test_bf16_is_close_and_keeps_what_holds(pipe):
    images = generate(pipe, PROMPTS, SEEDS, bf16=True, **QUICK)
    exact = generate(pipe, PROMPTS, SEEDS, **QUICK)
    assert 0 < np.abs(images.astype(float) - exact).mean() < 8
    np.testing.assert_array_equal(generate(pipe, PROMPTS[2:3], SEEDS[2:3], bf16=True, **QUICK), images[2:3])


def test_sdxl(xl):
    images = generate(xl, PROMPTS[:2], SEEDS[:2], **QUICK)
    assert images.shape == (2, 16, 16, 3)
    with pytest.raises(ValueError, match="embeds is not supported"):
        generate(xl, seeds=[1], embeds=torch.zeros(1, 24, 64), **QUICK)


@pytest.mark.parametrize("fails", [False, True])
def test_the_pipeline_is_left_as_it_was(pipe, fails, monkeypatch):
    def checker(**inputs):
        raise AssertionError("the safety checker was asked")

    pipe.set_progress_bar_config(desc="mine")
    vars(pipe)["safety_checker"] = checker
    before, config = dict(vars(pipe)), dict(pipe.config)
    if fails:
        monkeypatch.setattr(pipe.unet, "forward", lambda *args, **keywords: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            generate(pipe, ["a dog"], [1], **QUICK)
    else:
        generate(pipe, ["a dog"], [1], **QUICK)
    assert pipe.safety_checker is checker and dict(pipe.config) == config
    assert vars(pipe)["_progress_bar_config"] == before["_progress_bar_config"] and vars(pipe).keys() >= before.keys()


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({}, ValueError, "either prompts or embeds"),
        ({"prompts": ["a"], "embeds": torch.zeros(1, 24, 32)}, ValueError, "either prompts or embeds"),
        ({"prompts": "a dog", "seeds": [1] * 5}, TypeError, "prompts must be a list"),
        ({"prompts": ["a dog", 3], "seeds": [1, 2]}, TypeError, "prompts must be a list"),
        ({"prompts": [], "seeds": []}, ValueError, "0 seeds for 0 prompts"),
        ({"prompts": ["a", "b"], "seeds": [1]}, ValueError, "1 seeds for 2 prompts"),
        ({"embeds": torch.zeros(24, 32), "seeds": [1]}, TypeError, "embeds must be"),
        ({"embeds": torch.zeros(1, 24, 32, dtype=torch.long), "seeds": [1]}, TypeError, "embeds must be"),
        ({"embeds": torch.full((1, 24, 32), torch.nan), "seeds": [1]}, ValueError, "embeds holds"),
        ({"prompts": ["a"], "seeds": [1], "steps": 0}, ValueError, "steps must be a whole"),
        ({"prompts": ["a"], "seeds": [1], "batch_size": 0}, ValueError, "batch_size must be a whole"),
    ],
)
def test_bad_input(pipe, arguments, error, message):
    with pytest.raises(error, match=message):
        generate(pipe, **arguments)


def test_the_size_that_is_asked_for_is_drawn(pipe, monkeypatch):
    assert generate(pipe, ["a"], [1], width=32, height=24, **QUICK).shape == (1, 24, 32, 3)
    np.testing.assert_array_equal(
        generate(pipe, ["a"], [1], width=16, height=16, **QUICK), generate(pipe, ["a"], [1], **QUICK)
    )
    for wrong in (20, 0, 16.0):
        with pytest.raises(ValueError, match="width must be a multiple of 8 pixels"):
            generate(pipe, ["a"], [1], height=16, width=wrong, **QUICK)
    with pytest.raises(ValueError, match="both or neither"):
        generate(pipe, ["a"], [1], width=32, **QUICK)
    real = pipe.image_processor.postprocess
    monkeypatch.setattr(pipe.image_processor, "postprocess", lambda *args, **keys: real(*args, **keys)[:, :8])
    with pytest.raises(ValueError, match="the pipeline drew .*8.* not .*16"):
        generate(pipe, ["a"], [1], height=16, width=16, **QUICK)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_broken_model_is_noticed(pipe):
    with torch.no_grad():
        pipe.unet.conv_out.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        generate(pipe, ["a dog"], [1], **QUICK)


# A folder of images


PAIRS = {"steps": 1, "batch_size": 2, "progress": False}


def table(n=6, **columns):
    return pd.DataFrame({"prompt": PROMPTS[:n], "seed": range(3, 3 + n), **columns})


def mixed():
    """Six rows in four kinds: two guidances, two sizes."""
    return table(
        guidance=[7.5, None, 3, None, 3, None],
        width=[None, 32, None, 32, 16, None],
        height=[None, 24, None, 24, 16, None],
    )


def bits(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.fixture
def count(monkeypatch):
    """The seeds that each call of `generate` was asked for."""
    counted = []

    def counting(pipe, *others, seeds, **settings):
        counted.append(seeds)
        return generate(pipe, *others, seeds=seeds, **settings)

    monkeypatch.setattr(drawing, "generate", counting)
    return counted


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder of the images of `table`, drawn in one run."""
    return draw(tiny.sd(), table(), tmp_path_factory.mktemp("whole"), **PAIRS)


def test_every_row_gets_its_own_guidance_size_and_seed(pipe, tmp_path, count):
    rows = mixed()
    assert draw(pipe, rows, tmp_path, guidance=5.0, **PAIRS) == tmp_path
    assert sorted(map(tuple, count)) == [(3,), (4, 6), (5,), (7,), (8,)]  # rows of one kind share a batch
    columns = checked(rows, 5.0)
    assert columns["guidance"] == [7.5, 5, 3, 5, 3, 5] and columns["width"] == [None, 32, None, 32, 16, None]
    assert columns["case"] == list("012345")
    for row, (width, height) in enumerate(zip(columns["width"], columns["height"], strict=True)):
        settings = PAIRS | {"guidance": columns["guidance"][row], "width": width, "height": height}
        (image,) = read(tmp_path, [row])
        np.testing.assert_array_equal(image, generate(pipe, PROMPTS[row : row + 1], [3 + row], **settings))


def test_images_are_read_in_order_and_in_batches_of_one_size(pipe, tmp_path):
    draw(pipe, mixed(), tmp_path, **PAIRS)
    found = list(read(tmp_path, range(6)))
    sizes = [(1, 16, 16, 3), (1, 24, 32, 3)] * 2 + [(2, 16, 16, 3)]
    assert [images.shape for images in found] == sizes and found[0].dtype == np.uint8
    assert [len(images) for images in read(tmp_path, [0, 2, 4, 5], batch_size=3)] == [3, 1]
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:200])
    for wrong in ("2", "6"):
        with pytest.raises(ValueError, match=f"{wrong}.png is missing or damaged: draw again"):
            list(read(tmp_path, [0, wrong]))


def test_embeds_are_drawn_in_place_of_prompts(pipe, tmp_path, whole):
    embeds = texts.encode(pipe, PROMPTS)
    draw(pipe, table(), tmp_path, embeds=embeds, **PAIRS)
    for image, other in zip(read(tmp_path, range(6)), read(whole, range(6)), strict=True):
        np.testing.assert_array_equal(image, other)
    with pytest.raises(ValueError, match="embeds is .* there, but .* now"):
        draw(pipe, table(), tmp_path, embeds=embeds + 1, **PAIRS)


def test_what_is_there_is_not_drawn_again_and_what_is_missing_is(pipe, tmp_path, whole, count):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    draw(pipe, table(), tmp_path, **PAIRS)
    assert not count and {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    (tmp_path / "3.png").unlink()
    draw(pipe, table().assign(label="x"), tmp_path, **PAIRS)  # other columns decide nothing
    assert count == [[5, 6]] and bits(tmp_path) == bits(whole)
    assert (tmp_path / "2.png").stat().st_mtime_ns == before[tmp_path / "2.png"]


def test_a_png_that_is_cut_or_damaged_anywhere_is_drawn_again(pipe, tmp_path, whole, count):
    right = (whole / "0.png").read_bytes()
    with Image.open(whole / "0.png") as image:
        run, pixels = image.info["run"], np.asarray(image)
    path = tmp_path / "0.png"
    for n in [
        *range(0, len(right) - 40, 7),
        *range(len(right) - 40, len(right) - 4),
    ]:  # without the last four bytes, the checksum of nothing, all pixels are there
        path.write_bytes(right[:n])
        assert not drawing._is_whole(path, run)
    for n in [*range(40), *range(40, len(right) - 12, 7)]:
        path.write_bytes(right[:n] + bytes([right[n] ^ 1]) + right[n + 1 :])
        assert not drawing._is_whole(path, run)
    path.write_bytes(right)
    assert drawing._is_whole(path, run)
    np.testing.assert_array_equal(next(read(whole, ["0"]))[0], pixels)
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    path.write_bytes(right[:-20])
    (tmp_path / "5.png").write_bytes(b"")
    draw(pipe, table(), tmp_path, **PAIRS)
    assert bits(tmp_path) == bits(whole) and count == [[3, 4], [7, 8]]


@pytest.mark.parametrize("batch_size", [2, 3])
def test_parts_are_disjoint_and_make_the_whole(pipe, tmp_path, count, batch_size):
    settings = PAIRS | {"batch_size": batch_size}
    draw(pipe, mixed(), tmp_path / "whole", **settings)
    for k, images in ((2, 2), (3, 3), (1, 6)):
        draw(pipe, mixed(), tmp_path / "parts", part=(k, 3), **settings)
        assert len(list((tmp_path / "parts").glob("*.png"))) == images
    assert bits(tmp_path / "parts") == bits(tmp_path / "whole") and sum(map(len, count)) == 12


def ended_well(child):
    """Wait for a process; whether it came to the end."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def forked(run, kill_at=None):
    """Run in a process of its own, killed -9 at its n-th instant: before or after a rename or a batch."""
    child = os.fork()
    if child:
        return child
    left = [kill_at]

    def instant():
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(function):
        def wrapped(*arguments, **keywords):
            instant()
            result = function(*arguments, **keywords)
            instant()
            return result

        return wrapped

    try:
        if kill_at:
            os.replace, drawing.generate = around(os.replace), around(drawing.generate)
        run()
        os._exit(0)
    finally:
        os._exit(1)


def test_killed_at_every_instant_a_run_goes_on_to_the_same_bits(pipe, tmp_path, count):
    whole = draw(pipe, table(4), tmp_path / "whole", **PAIRS)
    ended, instant = False, 0
    while not ended:
        instant += 1
        folder = tmp_path / str(instant)
        ended = ended_well(forked(lambda folder=folder: draw(pipe, table(4), folder, **PAIRS), kill_at=instant))
        there = {int(path.stem) for path in folder.glob("[0-9].png")}
        count.clear()
        draw(pipe, table(4), folder, **PAIRS)
        assert count == [[3 + n, 4 + n] for n in (0, 2) if not {n, n + 1} <= there]
        assert bits(folder) == bits(whole)
    assert instant == 2 + 2 * (2 + 2 * 2) + 1


def test_two_processes_may_draw_into_one_folder(pipe, tmp_path, whole):
    children = [forked(lambda: draw(pipe, table(), tmp_path, **PAIRS)) for _ in range(2)]
    assert [ended_well(child) for child in children] == [True, True]
    assert bits(tmp_path) == bits(whole)


def test_a_batch_that_another_process_has_drawn_meanwhile_is_left_out(pipe, tmp_path, whole, count, monkeypatch):
    def counting(pipe, *others, seeds, **settings):
        shutil.copy(whole / "2.png", tmp_path)
        shutil.copy(whole / "3.png", tmp_path)
        count.append(seeds)
        return generate(pipe, *others, seeds=seeds, **settings)

    monkeypatch.setattr(drawing, "generate", counting)
    draw(pipe, table(), tmp_path, **PAIRS)
    assert count == [[3, 4], [7, 8]] and bits(tmp_path) == bits(whole)


def test_what_killed_runs_left_is_removed_and_what_is_being_written_is_not(pipe, tmp_path, whole):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    old, new, other = tmp_path / ".3.png.0a1b2c3d", tmp_path / ".3.png.4a5b6c7d", tmp_path / ".mine"
    for left, age in ((old, 2 * files.GRACE), (new, 0), (other, 2 * files.GRACE)):
        left.write_text("")
        os.utime(left, (time.time() - age,) * 2)
    draw(pipe, table(), tmp_path, **PAIRS)
    assert not old.exists() and new.exists() and other.exists()


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried"), RuntimeError("CUDA error: out of memory")]
)
def test_out_of_memory_halves_the_batch_and_says_so(pipe, tmp_path, monkeypatch, error):
    real, tried = pipe.unet.forward, []

    def forward(sample, *others, **keywords):
        tried.append(len(sample) // 2)
        if len(sample) > 2 * 3:
            raise error
        return real(sample, *others, **keywords)

    monkeypatch.setattr(pipe.unet, "forward", forward)
    with pytest.warns(UserWarning) as warned:
        draw(pipe, pd.concat([table()] * 2), tmp_path, **PAIRS | {"batch_size": 8})
    texts = [str(warning.message) for warning in warned]
    assert [text.split(" is out of memory")[0] for text in texts] == ["batch_size 8", "batch_size 4"]
    assert "rounding may differ" in texts[1] and tried == [8, 4, 2, 2, 2, 2, 2, 2]
    np.testing.assert_array_equal(next(read(tmp_path, range(6))), generate(pipe, PROMPTS, range(3, 9), **PAIRS))


@pytest.mark.filterwarnings("ignore:batch_size")
@pytest.mark.parametrize(
    "message, match", [("CUDA out of memory.", "out of memory with a single image"), ("no kernel", "no kernel")]
)
def test_an_image_too_large_for_the_memory_is_an_error_and_other_errors_are_left_alone(
    pipe, tmp_path, monkeypatch, message, match
):
    def forward(*_, **__):
        raise RuntimeError(message)

    monkeypatch.setattr(pipe.unet, "forward", forward)
    with pytest.raises(RuntimeError, match=match):
        draw(pipe, table(), tmp_path, **PAIRS)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_of_a_batch_that_is_not_finite_nothing_is_saved(pipe, tmp_path, count, monkeypatch):
    real = pipe.vae.decode

    def decode(latents, *others, **keywords):
        return real(latents if len(count) < 2 else latents * torch.nan, *others, **keywords)

    monkeypatch.setattr(pipe.vae, "decode", decode)
    with pytest.raises(ValueError, match=r"not finite.* .cases 2, 3."):
        draw(pipe, table(), tmp_path, **PAIRS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.png", "1.png", "run.json"]


def test_another_pipeline_eraser_setting_or_table_is_refused(pipe, tmp_path):
    def again(rows=None, **other):
        rows = table(2) if rows is None else rows
        return draw(pipe, rows, tmp_path, **{**PAIRS, "identity": {"eraser": "none"}, **other})

    again()
    before = bits(tmp_path)
    for rows, other, message in (
        (None, {"steps": 3}, "steps is 1 there, but 3 now"),
        (None, {"batch_size": 4}, "batch_size is 2 there, but 4 now"),
        (None, {"identity": {"eraser": "b"}}, "identity.eraser is 'none' there, but 'b' now"),
        (None, {"identity": {}}, "identity.eraser is 'none' there, but None now"),
        (None, {"bf16": True}, "bf16 is False there, but True now"),
        (None, {"guidance": 7.0}, "guidance of row 0 is 7.5 there, but 7.0 now"),
        (table(3), {}, "the number of rows is 2 there, but 3 now"),
        (table(2, case=[0, 2]), {}, "case of row 1 is '1' there, but '2' now"),
        (table(2, width=[None, 8], height=[None, 8]), {}, "width of row 1 is None there, but 8 now"),
        (table(2).assign(seed=[3, 5]), {}, "seed of row 1 is 4 there, but 5 now"),
        (table(2).assign(prompt=["a dog", "x"]), {}, "prompt of row 1 is 'a cat' there, but 'x' now"),
    ):
        with pytest.raises(ValueError, match=f"holds another run .{message}.: choose another folder"):
            again(rows, **other)
    eraser = rece.erase(pipe, "dog", progress=False)
    eraser.apply(pipe)
    with pytest.raises(ValueError, match="weights is '.* there, but '.* now"):
        again()
    eraser.remove(pipe)
    pipe.scheduler.register_to_config(beta_end=0.02)
    with pytest.raises(ValueError, match="scheduler.beta_end is 0.012 there, but 0.02 now"):
        again()
    assert bits(tmp_path) == before


def test_an_image_of_another_run_is_never_taken_or_replaced(pipe, tmp_path, whole):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    (tmp_path / "run.json").unlink()
    with pytest.raises(ValueError, match="0.png is of another run: choose another folder, or delete this file"):
        draw(pipe, table(), tmp_path, **PAIRS | {"steps": 2})
    (tmp_path / "run.json").unlink()
    draw(pipe, table(), tmp_path, **PAIRS)
    assert bits(tmp_path) == bits(whole)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"settings": {}, "table": 3}', '{"digest": "'])
def test_a_damaged_run_file_is_named(pipe, tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match="run.json is damaged: delete this file and draw again"):
        draw(pipe, table(), tmp_path, **PAIRS)


def test_the_run_file_says_what_the_images_are(whole):
    run = json.loads((whole / "run.json").read_text())
    assert run["table"]["prompt"] == PROMPTS and run["table"]["case"] == list("012345")
    assert run["settings"]["steps"] == 1 and run["settings"]["pipeline"] == "StableDiffusionPipeline"
    with Image.open(whole / "4.png") as image:
        assert image.info == {"run": run["digest"]}


def test_the_fingerprint_is_of_the_weights(pipe):
    assert fingerprint(pipe) == fingerprint(tiny.sd()) != fingerprint(tiny.sd(1))


def test_large_seeds_and_names_survive(pipe, tmp_path):
    rows = pd.DataFrame({"prompt": ["a", "b"], "seed": [2**64 - 1, 4290749014], "case": ["a_1", "b-2"]})
    draw(pipe, rows, tmp_path, **PAIRS)
    assert checked(rows)["seed"] == [2**64 - 1, 4290749014]
    assert next(read(tmp_path, ["b-2", "a_1"])).shape == (2, 16, 16, 3)


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"seed": [1.5, 2]}, "seed of row 0 must be a whole number"),
        ({"seed": [1, -2]}, "seed of row 1"),
        ({"seed": [1, None]}, "seed of row 1"),
        ({"seed": [1, float("inf")]}, "seed of row 1"),
        ({"prompt": ["a", None]}, "prompt of row 1 must be a text"),
        ({"guidance": [1, float("inf")]}, "guidance of row 1"),
        ({"width": [20, None]}, "width of row 0 must be a multiple of 8"),
        ({"width": ["16", None]}, "width of row 0 must be a multiple of 8"),
        ({"width": [8, 16], "height": [16, 0]}, "height of row 1"),
        ({"width": [None, 16]}, "width and height of row 1 must both be given"),
        ({"case": ["a/b", "c"]}, "case of row 0 must be letters"),
        ({"case": ["a.b", "c"]}, "case of row 0 must be letters"),
        ({"case": ["a", "a"]}, "case 'a' stands in several rows"),
    ],
)
def test_a_bad_table_is_refused_before_anything_is_written(pipe, tmp_path, columns, message):
    with pytest.raises(ValueError, match=message):
        draw(pipe, table(2).assign(**columns), tmp_path / "images", **PAIRS)
    assert not (tmp_path / "images").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"steps": 0}, "steps must be"),
        ({"batch_size": 1.5}, "batch_size must be"),
        ({"bf16": "maybe"}, "bf16 must be"),
        ({"identity": {"map": torch.eye(2)}}, "identity must be a dict"),
        ({"identity": [1]}, "identity must be a dict"),
        ({"part": (4, 3)}, "part must be"),
        ({"part": (0.5, 1)}, "part must be"),
        ({"table": "prompts.csv"}, "table must be a pandas DataFrame"),
        ({"table": pd.DataFrame({"prompt": ["a"]})}, "columns with prompt and seed"),
        ({"table": table(0)}, "must have rows"),
        ({"guidance": float("nan")}, "guidance of row 0"),
        ({"embeds": torch.zeros(3, 24, 32)}, "embeds must hold one embedding per row"),
        ({"embeds": torch.zeros(24, 32)}, "embeds must be a float tensor"),
    ],
)
def test_bad_arguments_of_a_folder(pipe, tmp_path, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        draw(**{"pipe": pipe, "table": table(2), "folder": tmp_path / "images", **PAIRS, **arguments})
    assert not (tmp_path / "images").exists()
