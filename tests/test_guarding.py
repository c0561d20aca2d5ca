"""The guarded eraser: its theorems on random matrices, then on pipelines of every family."""

import math
import warnings

import pytest
import tiny
import torch
from torch.testing import assert_close

import rece
from rece import families, guarding, layers, methods, solver, texts

F64 = torch.float64
KEPT = ["cat", "a hat", "house", "the sea"]
FAMILIES = {"sd": tiny.sd, "sdxl": tiny.sdxl, "sd3": tiny.sd3, "flux": tiny.flux, "pixart": tiny.pixart}


class World:
    """Random layers of width d, tokens of concepts, targets and preserved texts, and the guarded map of them."""

    def __init__(self, d=12, rank=2, mu=0.3, seed=0, outputs=(5, 9, 14), unit=1.0):
        random = torch.Generator().manual_seed(seed)
        normal = lambda *shape: torch.randn(*shape, generator=random, dtype=F64)  # noqa: E731
        self.W = torch.cat([normal(out, d) for out in outputs]) / unit
        self.K, self.T, self.P = (normal(n, d) * unit for n in (rank, rank, 30))
        self.G = self.W.T @ self.W
        self.Q, self.back = solver.answer_space(self.G)
        self.R = (self.K - self.T) @ self.Q.T
        self.D = torch.linalg.svd(self.R, full_matrices=False)[2][:rank].T
        self.PP = self.Q @ self.P.T @ self.P @ self.Q.T
        self.U = solver.discriminant(self.D, self.PP, mu=mu)
        self.M = solver.guard_map(self.Q, self.back, self.U, self.U)
        self.random = normal

    def bound(self, c):
        return (self.U.T @ self.Q @ c).norm()

    def distance(self, h, c, M=None):
        return (self.W @ (self.M if M is None else M) @ h - self.W @ c).norm()


@pytest.mark.parametrize("outputs", [(5, 9, 14), (4, 3)], ids=["all directions seen", "G singular"])
def test_the_map_is_a_projection_and_its_answers_leave_a_subspace_alone(outputs):
    world = World(outputs=outputs)
    assert_close(world.Q.T @ world.Q, world.G)
    assert_close(world.Q @ world.back, torch.eye(len(world.Q), dtype=F64))
    assert len(world.Q) == min(12, sum(outputs))
    assert_close(world.M @ world.M, world.M)
    assert torch.linalg.matrix_rank(world.M - torch.eye(12, dtype=F64)) == 2
    assert_close(world.U.T @ world.Q @ world.M, torch.zeros(2, 12, dtype=F64), atol=1e-10, rtol=0)


@pytest.mark.parametrize("outputs", [(5, 9, 14), (4, 3)], ids=["all directions seen", "G singular"])
def test_no_embedding_comes_nearer_than_the_concepts_own_token(outputs):
    world = World(outputs=outputs)
    for c in world.K:
        least = world.bound(c)
        assert_close(world.distance(c, c), least)  # attained: asking plainly is the best attack
        tries = world.random(5000, 12) * 10 ** torch.linspace(-2, 2, 5000, dtype=F64)[:, None]
        assert min(world.distance(h, c) for h in tries) >= least * (1 - 1e-9)
        for lamb in (1e-9, 0.1, 10.0):
            (derived,) = solver.derive(world.M, world.G, c[None], lamb=lamb)
            assert world.distance(derived, c) >= least * (1 - 1e-9)
        h = torch.nn.Parameter(c + world.random(12))
        adam = torch.optim.Adam([h], lr=0.05)
        for _ in range(1500):
            adam.zero_grad()
            world.distance(h, c).backward()
            adam.step()
        assert least * (1 - 1e-9) <= world.distance(h.detach(), c) <= least * (1 + 1e-3)


def test_no_map_with_this_bound_moves_any_token_less():
    """Maps with answers in the allowed subspace: the oblique form and random ones, token by token."""
    world = World()
    allowed = torch.linalg.svd(world.U)[0][:, 2:]  # what U leaves
    tilted = solver.guard_map(world.Q, world.back, world.U, solver.oblique(world.U, world.D, 1.0))
    others = [tilted, solver.guard_map(world.Q, world.back, world.U, solver.oblique(world.U, world.D, 0.5))]
    others += [world.back @ allowed @ allowed.T @ world.random(12, 12) @ world.Q for _ in range(20)]
    for M in others:
        assert_close(world.U.T @ world.Q @ M, torch.zeros(2, 12, dtype=F64), atol=1e-9, rtol=0)
        for x in world.random(200, 12):
            assert world.distance(x, x) <= world.distance(x, x, M) * (1 + 1e-9)


def test_the_directions_are_the_best_discriminant():
    """U maximises tr((U^T (P + mu I) U)^-1 U^T D D^T U): no random subspace is better, and the slope is zero."""
    world = World()
    A = world.PP / world.PP.trace() * len(world.PP) + 0.3 * torch.eye(12, dtype=F64)

    def worth(U):
        return torch.linalg.solve(U.T @ A @ U, U.T @ world.D @ world.D.T @ U).trace()

    best = worth(world.U)
    assert all(worth(world.random(12, 2)) < best for _ in range(500))
    U = world.U.clone().requires_grad_(True)
    worth(U).backward()
    assert U.grad.abs().max() < 1e-9


def test_without_mu_the_directions_are_leaces():
    """LEACE (arXiv 2306.03819): whiten by the covariance, here P, and project the concept's directions off."""
    world = World(mu=0.0)
    P = world.PP / world.PP.trace() * len(world.PP)
    values, vectors = torch.linalg.eigh(P)
    whiten = vectors / values.sqrt() @ vectors.T
    read = whiten @ torch.linalg.qr(whiten @ world.D)[0]  # the rows by which LEACE reads a token
    assert_close(torch.linalg.qr(read)[0] @ torch.linalg.qr(read)[0].T, world.U @ world.U.T)


def test_the_unit_of_the_text_space_changes_nothing():
    assert_close(World(unit=1.0).M, World(unit=37.0).M)


def test_the_oblique_form_sends_the_concept_to_its_target_and_the_family_lies_between():
    world = World(rank=1)
    k, t = world.K[0], world.T[0]
    maps = [
        solver.guard_map(world.Q, world.back, world.U, solver.oblique(world.U, world.D, share))
        for share in (0, 0.5, 1)
    ]
    assert_close(maps[2] @ (k - t), torch.zeros(12, dtype=F64), atol=1e-9, rtol=0)  # answered as its target is
    assert_close(maps[1], (maps[0] + maps[2]) / 2)
    for M in maps:
        assert_close(M @ M, M)
    for share in (-0.1, 1.1, True, math.nan):
        with pytest.raises(ValueError, match="oblique must be a number from 0 to 1"):
            solver.oblique(world.U, world.D, share)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_prompts_and_report_agree_on_every_family(family):
    pipe = FAMILIES[family]()
    before = {name: weight.clone() for name, weight in pipe.components[families.part(pipe)].state_dict().items()}
    eraser = rece.guard(pipe, "dog", preserve=KEPT, mu=0.5, progress=False)
    after = pipe.components[families.part(pipe)].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)  # the pipeline is read alone
    assert (eraser.pooled is None) == ("pooled" not in families.paths(pipe))
    report, (dog,), (neutral,) = eraser.provenance["report"], *(texts.at_last_words(pipe, [t]) for t in ("dog", " "))
    for W in layers.originals(pipe).values():
        assert_close((W.double() @ eraser.map) @ dog, W.double() @ (eraser.map @ dog))
    Q, _ = layers.answers(pipe)
    moved = (Q @ (dog - eraser.map @ dog)).norm() / (Q @ (dog - neutral)).norm()
    assert report["guard"]["dog"] == pytest.approx(moved.item(), rel=1e-9)  # the orthogonal form attains its bound
    for text, share in report["moved"].items():
        (x,), (n,) = (texts.at_last_words(pipe, [one], after=1) for one in (text, " "))
        assert share == pytest.approx(((Q @ (x - eraser.map @ x)).norm() / (Q @ (x - n)).norm()).item(), rel=1e-9)
    assert set(report["moved"]) == set(KEPT)
    eraser.apply(pipe)
    eraser.remove(pipe)
    assert all(torch.equal(before[name], pipe.components[families.part(pipe)].state_dict()[name]) for name in before)


def test_jointly_is_all_texts_at_once_and_taking_one_out_is_guarding_the_rest(pipe):
    both = rece.guard(pipe, ["dog", "bus"], preserve=KEPT, mu=0.5, rank=4, progress=False)
    as_one = rece.guard(pipe, "dog", synonyms=["bus"], preserve=KEPT, mu=0.5, rank=4, progress=False)
    assert_close(both.map, as_one.map)
    rest = rece.guard(pipe, ["dog", "bus", "sun"], preserve=KEPT, mu=0.5, rank=4, progress=False)
    assert not torch.allclose(rest.map, both.map)
    assert set(both.provenance["report"]["guard"]) == {"dog", "bus"}


def test_one_after_the_other_keeps_the_first_guarantee_and_not_the_second(pipe):
    """a @ b edits by a, then by b: its answers lie among a's, and a's leave a's directions alone, but not b's."""
    one, two = (rece.guard(pipe, text, preserve=KEPT, mu=0.5, progress=False) for text in ("dog", "bus"))
    together = one @ two
    certified = {text: rece.certify(pipe, together, text).guarded for text in ("dog", "bus")}
    assert certified["dog"] >= one.provenance["report"]["guard"]["dog"] * (1 - 1e-9)
    jointly = rece.guard(pipe, ["dog", "bus"], preserve=KEPT, mu=0.5, progress=False)
    assert rece.certify(pipe, jointly, ["dog", "bus"]).guarded > 0.1


def test_the_lora_is_the_edit(pipe, tmp_path):
    eraser = rece.guard(pipe, "dog", preserve=KEPT, mu=0.5, progress=False)
    eraser.save_lora(tmp_path, pipe=pipe)
    edited = tiny.sd()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        edited.load_lora_weights(tmp_path)
        edited.fuse_lora()
    fused = {name.replace(".base_layer", ""): weight for name, weight in edited.unet.state_dict().items()}
    for name, W in layers.originals(pipe).items():
        assert_close(fused[f"{name}.weight"], (W.double() @ eraser.map).float(), atol=1e-5, rtol=1e-4)
    assert eraser.rank == eraser.provenance["rank"]


def test_mu_is_the_largest_that_moves_the_preserved_texts_little(pipe, monkeypatch):
    monkeypatch.setattr(guarding, "MUS", (5.0, 0.5, 0.05))
    drift = {mu: rece.guard(pipe, "dog", preserve=KEPT, mu=mu, progress=False) for mu in guarding.MUS}
    drift = {mu: eraser.provenance["report"]["drift"] for mu, eraser in drift.items()}
    for most in (1e-9, (drift[0.5] + drift[5.0]) / 2, 10.0):
        monkeypatch.setattr(guarding, "DRIFT", most)
        fits = [mu for mu in guarding.MUS if drift[mu] <= most] or [0.05]
        assert rece.guard(pipe, "dog", preserve=KEPT, progress=False).provenance["mu"] == fits[0]


def test_gram_is_computed_once_until_a_weight_changes(pipe, monkeypatch):
    counted, gram = [], solver.gram
    monkeypatch.setattr(solver, "gram", lambda weights: counted.append(1) or gram(weights))
    own = tiny.sd()
    for _ in range(3):
        rece.guard(own, "dog", preserve=KEPT, mu=0.5, progress=False)
    rece.erase(own, "dog", rounds=1, progress=False)
    assert len(counted) == 1
    first = next(iter(layers.prompt_layers(own).values())).weight
    first.data[0, 0] += 1  # no counter of autograd sees this
    assert_close(layers.gram(own), gram(layers.originals(own)))
    assert len(counted) == 2


def test_the_everyday_list_is_kept_but_for_what_means_the_concept():
    listed = guarding.everyday()
    assert 1000 < len(listed) == len(set(listed)) < 1500 and all(text == text.strip().lower() for text in listed)
    from rece.study import config

    pipe = config.load("data/emoji-diffusion")
    kept, out = guarding.without(pipe, listed, ["dog"])
    assert sorted([*kept, *out]) == sorted(listed)
    assert "dog" in out and "a dog running on the grass" in out and {"cat", "wolf", "car"} <= set(kept)
    assert "puppy" in guarding.without(pipe, [*listed, "puppy"], ["dog"])[1]  # by meaning, not by spelling
    eraser = rece.guard(pipe, "dog", progress=False)
    assert eraser.provenance["preserve"] is None and eraser.provenance["left_out"] == out
    assert eraser.provenance["report"]["guard"]["dog"] > 0.6 and eraser.provenance["report"]["drift"] < guarding.DRIFT


@pytest.mark.parametrize("kept", [[], [""]])
def test_nothing_need_be_preserved(pipe, kept):
    eraser = rece.guard(pipe, "dog", preserve=kept, progress=False)
    assert eraser.provenance["report"]["guard"]["dog"] > 0


def test_the_studys_method_takes_the_neutral_target_for_none(pipe):
    made = methods.run("guarded", pipe, "dog", target=" ", preserve=KEPT, mu=0.5, progress=False)
    assert_close(made.map, rece.guard(pipe, "dog", preserve=KEPT, mu=0.5, progress=False).map)
    named = methods.run("guarded", pipe, "dog", target="cat", preserve=KEPT, mu=0.5, progress=False)
    assert named.provenance["oblique"] == 1.0


def test_saved_and_loaded_is_the_same(pipe, tmp_path):
    eraser = rece.guard(pipe, ["dog", "bus"], preserve=KEPT, progress=False)
    eraser.save(tmp_path / "two.safetensors")
    loaded = rece.Eraser.load(tmp_path / "two.safetensors")
    assert torch.equal(loaded.map, eraser.map) and loaded.provenance == eraser.provenance


@pytest.mark.parametrize(
    "given, message",
    [
        ({"concept": " "}, "concept must be a text"),
        ({"mu": 0}, "mu must be a positive finite number"),
        ({"mu": "much"}, "mu must be a positive finite number"),
        ({"rank": 0}, "rank must be a whole number"),
        ({"rank": True}, "rank must be a whole number"),
        ({"oblique": 2.0}, "oblique must be a number from 0 to 1"),
        ({"target": ["cat", "hat"]}, "target must be one text or one per concept"),
        ({"target": "dog"}, "its target is the same text"),
        ({"synonyms": {"cat": ["kitty"]}}, "'cat' is none of the concepts"),
        ({"concept": ["dog", "bus"], "synonyms": ["puppy"]}, "synonyms must be a dict"),
    ],
)
def test_bad_input_is_named(pipe, given, message):
    with pytest.raises(ValueError, match=message):
        rece.guard(pipe, **{"concept": "dog", "preserve": KEPT, "progress": False} | given)
    with pytest.raises(TypeError, match="preserve must be a list of texts"):
        rece.guard(pipe, "dog", preserve="cat", progress=False)


def test_a_pipeline_with_an_eraser_is_refused(pipe):
    own = tiny.sd()
    rece.erase(own, "dog", rounds=0, progress=False).apply(own)
    with pytest.raises(ValueError, match="carries an eraser"):
        rece.guard(own, "dog", preserve=KEPT, progress=False)
