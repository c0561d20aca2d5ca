"""Runs that end anywhere and go on, by one process or several: always the same images, and each drawn once."""

import json
import os
import shutil
import signal
import threading
import time

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

import rece
from rece import draw as drawing
from rece import loading, writing
from rece.__main__ import main
from rece.cluster import draw_distributed, local_cluster
from rece.draw import draw, fingerprint
from rece.images import generate
from rece.plan import check
from rece.prompts import read
from rece.shards import Shards

QUICK = {"steps": 2, "batch_size": 2, "progress": False}
PROMPTS = ["a dog", "a cat", "", "a red dog", "my cat", "a dog", "the sun", "a fish", "th", "a b"]


def table(n=10, **columns):
    return pd.DataFrame({"prompt": PROMPTS[:n], "seed": range(3, 3 + n), **columns})


def mixed():
    """Ten rows in four kinds: two guidances, two sizes."""
    return table(
        guidance=[7.5, None, 3, 7.5, 3, None, None, 3, None, None],
        width=[None, 32, None, 16] * 2 + [32, None],
        height=[None, 24, None, 16] * 2 + [24, None],
    )


def drawn(shards):
    return [image for _, images in shards.batches(4) for image in images]


def assert_same(shards, others):
    for image, other in zip(drawn(shards), drawn(others), strict=True):
        np.testing.assert_array_equal(image, other)


@pytest.fixture
def count(monkeypatch):
    """How many images each call of `generate` was asked for."""
    counted = []

    def counting(pipe, prompts, *others, **settings):
        counted.append(len(prompts))
        return generate(pipe, prompts, *others, **settings)

    monkeypatch.setattr(drawing, "generate", counting)
    return counted


def test_every_row_gets_its_own_guidance_size_and_seed(pipe, tmp_path):
    rows = mixed()
    shards = draw(pipe, rows, tmp_path, guidance=5.0, shard_size=4, **QUICK)
    shards.verify()
    for n, row in check(rows, 5.0).iterrows():
        size = {} if pd.isna(row["width"]) else {"width": row["width"], "height": row["height"]}
        expected = generate(pipe, [row["prompt"]], [row["seed"]], guidance=row["guidance"], **size, **QUICK)
        np.testing.assert_array_equal(shards.images([n]), expected)
    assert shards.images([1]).shape == (1, 24, 32, 3)
    assert shards.table["guidance"].tolist() == [7.5, 5, 3, 7.5, 3, 5, 5, 3, 5, 5]


def test_shards_and_order_change_no_bit(pipe, tmp_path):
    rows = mixed()
    shards = draw(pipe, rows, tmp_path / "one", shard_size=100, **QUICK)
    assert_same(draw(pipe, rows, tmp_path / "many", shard_size=3, **QUICK), shards)
    order = [5, 2, 0, 9, 4, 7, 1, 3, 6, 8]
    shuffled = draw(pipe, rows.assign(case=range(10)).iloc[order], tmp_path / "shuffled", shard_size=4, **QUICK)
    before = drawn(shards)
    for row, image in zip(order, drawn(shuffled), strict=True):
        np.testing.assert_array_equal(image, before[row])
    assert shuffled.table["case"].tolist() == [str(row) for row in order]


def test_alike_rows_share_batches(pipe, tmp_path, count):
    draw(pipe, mixed(), tmp_path, shard_size=8, **QUICK)
    assert sum(count) == 10 and len(count) <= 7


def test_what_is_there_is_not_drawn_again(pipe, tmp_path, count):
    shards = draw(pipe, table(), tmp_path, shard_size=4, **QUICK)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = draw(pipe, table(), tmp_path, shard_size=4, **QUICK)
    assert sum(count) == 10 and {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    bits = shards.path(1).read_bytes()
    shards.path(1).unlink()
    again = draw(pipe, table(), tmp_path, shard_size=4, **QUICK)
    assert sum(count) == 14 and again.path(1).read_bytes() == bits


def test_damage_is_an_error_and_repaired_on_demand(pipe, tmp_path, count):
    shards = draw(pipe, table(), tmp_path, shard_size=4, **QUICK)
    bits = [shards.path(n).read_bytes() for n in range(3)]
    shards.path(0).write_bytes(bits[0][:-700])
    with pytest.raises(ValueError, match="shard-00000.tar is damaged"):
        draw(pipe, table(), tmp_path, shard_size=4, **QUICK)
    shards.path(2).write_bytes(bits[2][:600] + b"?" + bits[2][601:])
    with pytest.warns(UserWarning, match="drawing a damaged shard again"):
        draw(pipe, table(), tmp_path, shard_size=4, repair=True, **QUICK).verify()
    assert [shards.path(n).read_bytes() for n in range(3)] == bits and sum(count) == 10 + 4 + 2


def test_parts_are_disjoint_and_make_the_whole(pipe, tmp_path, count):
    whole = draw(pipe, mixed(), tmp_path / "whole", shard_size=2, **QUICK)
    for k in (2, 3, 1):
        shards = draw(pipe, mixed(), tmp_path / "parts", shard_size=2, part=(k, 3), **QUICK)
        assert len(shards.missing()) == {2: 3, 3: 2, 1: 0}[k]
    assert_same(shards, whole)
    assert sum(count) == 20


def ended_well(child):
    """Wait for a process; whether it came to the end."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def forked(run, kill_at=None):
    """Run in a process of its own, killed -9 at its n-th instant.

    Instants lie before and after each rename and each removal of parts, and in the middle of each batch.
    """
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
            os.replace, shutil.rmtree = around(os.replace), around(shutil.rmtree)
            drawing.generate = around(drawing.generate)
        run()
        os._exit(0)
    finally:
        os._exit(1)


def test_killed_at_every_instant_a_run_goes_on_to_the_same_bits(pipe, tmp_path, count):
    settings = {"shard_size": 3, **QUICK, "steps": 1}
    whole = draw(pipe, table(4), tmp_path / "whole", **settings)
    ended, instant = False, 0
    while not ended:
        instant += 1
        folder = tmp_path / str(instant)
        child = forked(lambda folder=folder: draw(pipe, table(4), folder, **settings), kill_at=instant)
        ended = ended_well(child)
        saved = 0
        if (folder / "plan.json").exists():
            there = Shards(folder)
            saved = sum(
                len(rows) if there.finished(shard) else len(writing.kept(there, shard))
                for shard, rows in enumerate(there.shards)
            )
        count.clear()
        shards = draw(pipe, table(4), folder, **settings)
        assert sum(count) == 4 - saved
        for shard in range(2):
            assert shards.path(shard).read_bytes() == whole.path(shard).read_bytes()
        left = {path.name for path in folder.iterdir()} - {path.name for path in whole.folder.iterdir()}
        assert not {name for name in left if not name.startswith(".plan.json.")}
    assert instant > 20


def test_two_processes_may_draw_into_one_folder(pipe, tmp_path):
    whole = draw(pipe, table(), tmp_path / "whole", shard_size=4, **QUICK)
    children = [forked(lambda: draw(pipe, table(), tmp_path / "two", shard_size=4, **QUICK)) for _ in range(2)]
    assert [ended_well(child) for child in children] == [True, True]
    shards = Shards(tmp_path / "two")
    shards.verify()
    assert_same(shards, whole)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried"), RuntimeError("CUDA error: out of memory")]
)
def test_out_of_memory_halves_the_batch_and_says_so(pipe, tmp_path, monkeypatch, error):
    real = pipe.unet.forward
    tried = []

    def forward(sample, *others, **keywords):
        tried.append(len(sample) // 2)
        if len(sample) > 2 * 3:
            raise error
        return real(sample, *others, **keywords)

    monkeypatch.setattr(pipe.unet, "forward", forward)
    with pytest.warns(UserWarning) as warned:
        shards = draw(pipe, table(), tmp_path, shard_size=6, **{**QUICK, "batch_size": 8})
    texts = [str(warning.message) for warning in warned]
    assert [text.split(" is out of memory")[0] for text in texts] == ["batch_size 8", "batch_size 4"]
    assert "differ in rounding" in texts[1] and set(tried) == {8, 4, 2} and tried.count(8) == 1
    assert {entry["batch_size"] for shard in range(2) for entry in shards.entries(shard)} == {2}
    expected = generate(pipe, PROMPTS, range(3, 13), guidance=7.5, **QUICK)
    np.testing.assert_array_equal(np.stack(drawn(shards)), expected)


@pytest.mark.filterwarnings("ignore:batch_size")
def test_an_image_too_large_for_the_memory_is_an_error_and_other_errors_are_left_alone(pipe, tmp_path, monkeypatch):
    for message, match in (
        ("CUDA out of memory.", "with one image of the model's own size"),
        ("no kernel", "no kernel"),
    ):

        def forward(*_, message=message, **__):
            raise RuntimeError(message)

        monkeypatch.setattr(pipe.unet, "forward", forward)
        with pytest.raises(RuntimeError, match=match):
            draw(pipe, table(), tmp_path / "images", **QUICK)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_of_a_batch_that_is_not_finite_nothing_is_saved(pipe, tmp_path, count, monkeypatch):
    real = pipe.vae.decode

    def decode(latents, *others, **keywords):
        return real(latents if len(count) < 2 else latents * torch.nan, *others, **keywords)

    monkeypatch.setattr(pipe.vae, "decode", decode)
    with pytest.raises(ValueError, match=r"not finite.* .cases 2, 3."):
        draw(pipe, table(), tmp_path, **QUICK)
    assert sorted(writing.kept(Shards(tmp_path), 0)) == [0, 1]


def test_another_pipeline_eraser_or_setting_is_refused(pipe, tmp_path):
    def again(**other):
        return draw(pipe, table(4), tmp_path, **{**QUICK, "identity": {"eraser": "none"}, **other})

    again()
    for other, message in (
        ({"steps": 3}, "steps is 2 there, but 3 now"),
        ({"identity": {"eraser": "b"}}, "identity.eraser is 'none' there, but 'b' now"),
        ({"bf16": True}, "bf16 is False there, but True now"),
        ({"guidance": 7.0}, "guidance of row 0"),
    ):
        with pytest.raises(ValueError, match=message):
            again(**other)
    before = fingerprint(pipe)
    eraser = rece.erase(pipe, "dog", progress=False)
    eraser.apply(pipe)
    with pytest.raises(ValueError, match="weights is '.* there, but '.* now"):
        again()
    eraser.remove(pipe)
    assert fingerprint(pipe) == before
    assert fingerprint(tiny.sd(1))["weights"] != before["weights"]
    pipe.scheduler.register_to_config(beta_end=0.02)
    with pytest.raises(ValueError, match="scheduler.beta_end is 0.012 there, but 0.02 now"):
        again()


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
        ({"width": ["16", None]}, "width of row 0 must be a whole number"),
        ({"width": [8, 16], "height": [16, 0]}, "height of row 1"),
        ({"width": [None, 16]}, "width and height of row 1 must both be given"),
        ({"case": ["a/b", "c"]}, "case of row 0 must be letters"),
        ({"case": ["a.b", "c"]}, "case of row 0 must be letters"),
        ({"case": ["a", "a"]}, "case 'a' stands in several rows"),
    ],
)
def test_a_bad_table_is_refused_before_anything_is_written(pipe, tmp_path, columns, message):
    with pytest.raises((ValueError, TypeError), match=message):
        draw(pipe, table(2).assign(**columns), tmp_path / "images", **QUICK)
    assert not (tmp_path / "images").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"steps": 0}, "steps must be"),
        ({"batch_size": 1.5}, "batch_size must be"),
        ({"shard_size": 0}, "shard_size must be"),
        ({"identity": {"map": torch.eye(2)}}, "identity must be JSON-able"),
        ({"part": (4, 3)}, "part must be"),
        ({"table": "prompts.csv"}, "table must be a pandas DataFrame"),
        ({"table": pd.DataFrame({"prompt": ["a"]})}, "columns prompt and seed"),
        ({"table": table(0)}, "must have rows"),
        ({"guidance": float("nan")}, "guidance of row 0"),
    ],
)
def test_bad_arguments(pipe, tmp_path, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        draw(**{"pipe": pipe, "table": table(2), "folder": tmp_path, **QUICK, **arguments})
    assert not list(tmp_path.glob("shard*"))


def test_generate_draws_the_size_that_is_asked_for(pipe, monkeypatch):
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


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny.sd().save_pretrained(folder)
    return str(folder)


def test_the_command_survives_kill_and_says_errors_in_one_line(pipe, model, tmp_path, count, capfd):
    prompts, out = tmp_path / "prompts.csv", tmp_path / "images"
    table().rename(columns={"seed": "evaluation_seed"}).to_csv(prompts, index_label="case_number")
    command = ["draw", model, str(prompts), "-o", str(out), "--batch-size", "2", "--shard-size", "4", "--quiet"]
    command += ["--device", "cpu", "--scheduler", "LMSDiscreteScheduler", "--steps"]
    child = forked(lambda: main([*command, "10"]))
    while not list(out.glob("shard-00001*")) and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    assert not ended_well(child)
    assert main([*command, "10"]) == 0 and 0 < sum(count) <= 8
    assert "10 images, 0 of 3 shards missing" in capfd.readouterr().out
    pipe.scheduler = loading.load(model, scheduler="LMSDiscreteScheduler", device="cpu").scheduler
    np.testing.assert_array_equal(
        np.stack(drawn(Shards(out))), generate(pipe, PROMPTS, range(3, 13), **{**QUICK, "steps": 10})
    )
    count.clear()
    draw(pipe, read(prompts).table, out, shard_size=4, **{**QUICK, "steps": 10})
    assert not count  # the library goes on from the command's work
    for wrong, message in (
        ([*command, "20"], "steps is 10 there, but 20 now"),
        (["draw", "nowhere", *command[2:], "10"], "model: there is no folder 'nowhere'"),
        (["draw", model, "none.csv", *command[3:], "10"], "none.csv"),
    ):
        assert main(wrong) == 1
        said = capfd.readouterr().err
        (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
        assert message in line and "Traceback" not in said
    for wrong in (["--part", "4/3"], ["--part", "1/2", "--workers", "2"], ["--steps", "few"]):
        with pytest.raises(SystemExit) as ended:
            main([*command, "10", *wrong])
        assert ended.value.code == 2


def test_interrupting_the_command_is_no_traceback(model, tmp_path, monkeypatch, capfd):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(drawing, "generate", interrupted)
    table().to_csv(tmp_path / "prompts.csv", index=False)
    assert main(["draw", model, str(tmp_path / "prompts.csv"), "-o", str(tmp_path / "out"), "--quiet"]) == 130
    assert capfd.readouterr().err.splitlines()[-1] == "interrupted: run the same command again"


@pytest.fixture(scope="module")
def client():
    """Of a cluster of two workers, whose processes are forked from one that has imported all they need."""
    dask, distributed = pytest.importorskip("dask"), pytest.importorskip("distributed")
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        distributed.utils.get_mp_context().set_forkserver_preload(["distributed", "rece.cluster", "tiny"])
        with local_cluster(2) as cluster, distributed.Client(cluster) as client:
            client.wait_for_workers(2)
            yield client


def test_two_workers_draw_what_one_process_draws(pipe, model, tmp_path, client, monkeypatch):
    load = {"model": model, "device": "cpu"}
    serial = draw(pipe, mixed(), tmp_path / "serial", shard_size=2, **QUICK)
    draw(pipe, mixed(), tmp_path / "two", shard_size=2, part=(2, 3), **QUICK)
    shards = draw_distributed(load, mixed(), tmp_path / "two", client, shard_size=2, **QUICK)
    for shard in range(5):
        assert shards.path(shard).read_bytes() == serial.path(shard).read_bytes()
    assert shards.digest == serial.digest
    mixed().to_csv(tmp_path / "prompts.csv", index=False)
    (tmp_path / "dask.json").write_text(json.dumps({"address": client.scheduler.address}))
    monkeypatch.chdir(tmp_path)  # the workers are elsewhere
    (tmp_path / "model").symlink_to(model)
    command = ["draw", "model", "prompts.csv", "-o", "command", "--scheduler-file", "dask.json"]
    assert main([*command, "--device", "cpu", "--steps", "2", "--batch-size", "2", "--quiet"]) == 0
    assert_same(Shards(tmp_path / "command"), serial)
    with pytest.raises(ValueError, match="steps is 2 there, but 3 now"):
        draw_distributed(load, mixed(), tmp_path / "two", client, shard_size=2, **{**QUICK, "steps": 3})
    for wrong, error, message in (
        ({"model": "nowhere"}, FileNotFoundError, "no folder 'nowhere'"),
        ({}, TypeError, "load must be keywords of rece.loading.load: missing a required argument: 'model'"),
        ({"model": model, "steps": 3}, TypeError, "unexpected keyword argument 'steps'"),
    ):
        with pytest.raises(error, match=message):
            draw_distributed(wrong, mixed(), tmp_path / "nowhere", client, **QUICK)


def test_a_worker_that_is_killed_loses_nothing(pipe, model, tmp_path, client):
    settings = {"shard_size": 5, **QUICK, "steps": 20}
    load = {"model": model, "device": "cpu"}
    pids = list(client.run(os.getpid).values())

    def kill():
        while not list((tmp_path / "two").glob("*.parts/*.tar")):
            time.sleep(0.005)
        os.kill(pids[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    shards = draw_distributed(load, table(), tmp_path / "two", client, **settings)
    killer.join()
    serial = draw(pipe, table(), tmp_path / "serial", **settings)
    for shard in range(2):
        assert shards.path(shard).read_bytes() == serial.path(shard).read_bytes()
