"""Several workers draw what one process draws, even if one of them is killed."""

import os
import signal
import threading
import time

import pandas as pd
import pytest
import tiny

import rece
from rece.cluster import draw_parts, local_cluster
from rece.images import draw

QUICK = {"steps": 2, "batch_size": 2, "progress": False}
TABLE = pd.DataFrame({"prompt": list("abcdefghij"), "seed": range(10), "guidance": [7.5, None] * 5})


def bits(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny.sd().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def client():
    """Of a cluster of two workers, whose processes are forked from one that has imported all they need."""
    dask, distributed = pytest.importorskip("dask"), pytest.importorskip("distributed")
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        distributed.utils.get_mp_context().set_forkserver_preload(["distributed", "rece.cluster", "tiny"])
        with local_cluster(2) as cluster, distributed.Client(cluster) as client:
            client.wait_for_workers(2)
            yield client


def test_workers_draw_what_one_process_draws(pipe, model, tmp_path, client, monkeypatch):
    draw(pipe, TABLE, tmp_path / "serial", **QUICK)
    draw(pipe, TABLE, tmp_path / "two", part=(2, 3), **QUICK)
    monkeypatch.chdir(tmp_path)  # the workers are elsewhere
    (tmp_path / "model").symlink_to(model)
    load = {"model": "model", "device": "cpu"}
    draw_parts(load, TABLE, "two", client, 3, **QUICK)
    assert bits(tmp_path / "two") == bits(tmp_path / "serial")
    with pytest.raises(ValueError, match="steps is 2 there, but 3 now"):
        draw_parts(load, TABLE, "two", client, 3, **QUICK | {"steps": 3})


def test_each_drawing_reads_its_files_anew(pipe, model, tmp_path, client):
    file, load = tmp_path / "e.safetensors", {"model": model, "device": "cpu", "eraser": tmp_path / "e.safetensors"}
    drawn = []
    for concept in ("dog", "cat"):
        rece.erase(pipe, concept, rounds=0).save(file)
        draw_parts(load, TABLE, tmp_path / concept, client, 2, **QUICK)
        drawn.append(bits(tmp_path / concept))
    assert drawn[0] != drawn[1]


def test_a_worker_that_is_killed_loses_nothing(pipe, model, tmp_path, client):
    settings = QUICK | {"steps": 20}
    pids = list(client.run(os.getpid).values())

    def kill():
        while not list((tmp_path / "two").glob("*.png")):
            time.sleep(0.005)
        os.kill(pids[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    draw_parts({"model": model, "device": "cpu"}, TABLE, tmp_path / "two", client, 2, **settings)
    killer.join()
    draw(pipe, TABLE, tmp_path / "serial", **settings)
    assert bits(tmp_path / "two") == bits(tmp_path / "serial")


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"load": {"model": "nowhere"}}, FileNotFoundError, "no folder 'nowhere'"),
        ({"load": {}}, TypeError, "load must be keywords of rece.loading.load: missing a required argument: .model"),
        ({"load": {"model": "x", "steps": 3}}, TypeError, "load must be keywords of rece.loading.load: .*'steps'"),
        ({"stepps": 3}, TypeError, "settings must be keywords of rece.images.draw: .*'stepps'"),
        ({"parts": 0}, ValueError, "parts must be a whole number"),
        ({"table": TABLE.assign(seed=-1)}, ValueError, "seed of row 0"),
    ],
)
def test_bad_input_is_named_before_anything_is_written(model, tmp_path, client, arguments, error, message):
    given = {"load": {"model": model, "device": "cpu"}, "table": TABLE, "client": client, "parts": 2, **QUICK}
    with pytest.raises(error, match=message):
        draw_parts(folder=tmp_path / "images", **{**given, **arguments})
    assert not (tmp_path / "images").exists()


def test_a_cluster_has_workers():
    with pytest.raises(ValueError, match="workers must be a whole number, 1 or more"):
        local_cluster(0)
