"""The guarded eraser: its theorems on random matrices, then on pipelines of every family."""

import math
from itertools import product

import pytest
import tiny
import torch
from torch.testing import assert_close

import rece
from rece import families, guarding, layers, loading, methods, solver, texts

F64 = torch.float64
KEPT = ["cat", "a hat", "house", "the sea"]
FAMILIES = {"sd": tiny.sd, "sdxl": tiny.sdxl, "sd3": tiny.sd3, "flux": tiny.flux, "pixart": tiny.pixart}
FAMILIES["pixart sigma"] = lambda: tiny.pixart(sigma=True)
SEEN = pytest.mark.parametrize("outputs", [(5, 9, 14), (4, 3)], ids=["all directions seen", "G singular"])


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


@SEEN
def test_the_map_is_a_projection_and_its_answers_leave_a_subspace_alone(outputs):
    world = World(outputs=outputs)
    assert_close(world.Q.T @ world.Q, world.G)
    assert_close(world.Q @ world.back, torch.eye(len(world.Q), dtype=F64))
    assert len(world.Q) == min(12, sum(outputs))
    assert_close(world.M @ world.M, world.M)
    assert torch.linalg.matrix_rank(world.M - torch.eye(12, dtype=F64)) == 2
    assert_close(world.U.T @ world.Q @ world.M, torch.zeros(2, 12, dtype=F64), atol=1e-10, rtol=0)


@SEEN
def test_no_embedding_comes_nearer_than_the_concepts_own_token(outputs):
    world = World(outputs=outputs)
    for c in world.K:
        least = world.bound(c)
        assert_close(world.distance(c, c), least)  # attained: asking plainly is the best attack
        tries = world.random(5000, 12) * 10 ** torch.linspace(-2, 2, 5000, dtype=F64)[:, None]
        assert min(world.distance(h, c) for h in tries) >= least * (1 - 1e-9)
        for lamb, reg in product((1e-9, 0.1, 10.0), ("zero", "surrogate2", "both")):
            (derived,) = solver.derive(world.M, world.G, c[None], lamb=lamb, reg=reg)
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
    tokens = world.random(200, 12)
    moved = ((tokens - tokens @ world.M.T) @ world.Q.T).norm(dim=1)
    for M in others:
        assert_close(world.U.T @ world.Q @ M, torch.zeros(2, 12, dtype=F64), atol=1e-9, rtol=0)
        assert (moved <= ((tokens - tokens @ M.T) @ world.Q.T).norm(dim=1) * (1 + 1e-9)).all()


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


def test_without_mu_the_directions_are_leaces_and_the_oblique_form_is_leace():
    """LEACE (arXiv 2306.03819): whiten by the covariance, here P, project the directions off, and colour again."""
    world = World(mu=0.0)
    values, vectors = torch.linalg.eigh(world.PP)
    whiten, colour = vectors / values.sqrt() @ vectors.T, vectors * values.sqrt() @ vectors.T
    whitened = torch.linalg.qr(whiten @ world.D)[0]
    leace = torch.eye(12, dtype=F64) - colour @ whitened @ whitened.T @ whiten
    reads = torch.linalg.qr((torch.eye(12, dtype=F64) - leace).T @ world.D)[0]  # the rows by which LEACE reads a token
    assert_close(reads @ reads.T, world.U @ world.U.T)
    E = solver.oblique(world.U, world.D, 1.0)
    assert_close(world.Q @ solver.guard_map(world.Q, world.back, world.U, E) @ world.back, leace)
    nearly = solver.discriminant(world.D, world.PP, mu=1e-9)
    assert_close(nearly @ nearly.T, reads @ reads.T, atol=1e-6, rtol=0)


def test_the_map_in_the_space_of_tokens_without_any_root():
    """W = (P + mu G^-1)^-1 D, E = G^-1 W (W^T G^-1 W)^-1 and M = I - E W^T, P having mean diagonal 1 as answers."""
    world = World()
    P, inverse = world.P.T @ world.P * 12 / world.PP.trace(), torch.linalg.inv(world.G)
    W = torch.linalg.solve(P + 0.3 * inverse, world.back @ world.D)
    E = inverse @ W @ torch.linalg.inv(W.T @ inverse @ W)
    assert_close(torch.eye(12, dtype=F64) - E @ W.T, world.M)
    bound = ((W.T @ world.K[0]) @ torch.linalg.inv(W.T @ inverse @ W) @ (W.T @ world.K[0])).sqrt()
    assert_close(bound, world.bound(world.K[0]))


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


def literal(pipe, pairs, kept, mu, path="tokens", rank=None):
    """The whole method with the symmetric root of G and all rows at once: the map, its directions, and root."""
    G = sum(W.double().T @ W.double() for W in layers.originals(pipe, path).values())
    values, vectors = torch.linalg.eigh(G)
    seen = values > 1e-12 * values[-1]
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    back = (vectors[:, seen] / values[seen].sqrt()) @ vectors[:, seen].T
    read = lambda some: texts.encode(pipe, some, path=path)  # noqa: E731
    rows = []
    for C, T in (read([text, aim]) for text, aim in pairs):
        there, last = C.any(-1), int(T.any(-1).sum()) - 1
        rows.append((C - T[torch.arange(len(T)).clamp(max=last)])[there])
    _, sizes, right = torch.linalg.svd(torch.cat(rows) @ root, full_matrices=False)
    if rank is None:
        energy = sizes.square().cumsum(0) / sizes.square().sum()
        enough = max(len(pairs), int((energy < guarding.ENERGY).sum()) + 1)
        rank = min(enough, max(1, int(seen.sum()) // 2), int((sizes > 1e-7 * sizes[0]).sum()))
    P, N = (read(some).flatten(0, 1) @ root for some in (kept, [" ", ""]))
    A = (1 - guarding.NEUTRAL) * P.T @ P / len(kept) + guarding.NEUTRAL * N.T @ N / 2
    A = A * seen.sum() / A.trace() + mu * torch.eye(len(A), dtype=F64)
    U = torch.linalg.qr(vectors[:, seen] @ vectors[:, seen].T @ torch.linalg.solve(A, right[:rank].T))[0]
    return torch.eye(len(G), dtype=F64) - back @ U @ U.T @ root, U, root


@pytest.fixture(params=FAMILIES)
def any_pipe(request):
    return FAMILIES[request.param]()


@pytest.mark.parametrize("concepts", [["dog"], ["dog", "big cat", "a"]])
def test_the_map_is_the_literal_method_on_every_family_and_path(any_pipe, concepts):
    eraser = rece.guard(any_pipe, concepts, preserve=KEPT, mu=0.5, progress=False)
    maps = {"tokens": eraser.map, "pooled": eraser.pooled}
    for path in families.paths(any_pipe):
        M, U, root = literal(any_pipe, [(text, " ") for text in concepts], KEPT, 0.5, path)
        assert_close(maps[path], M, atol=1e-6, rtol=1e-5)
        assert_close(maps[path] @ maps[path], maps[path])
        assert torch.linalg.matrix_rank(maps[path] - torch.eye(len(M), dtype=F64), rtol=1e-9) == U.shape[1]
    assert (eraser.pooled is None) == (len(families.paths(any_pipe)) == 1)
    assert rece.guard(any_pipe, concepts, preserve=KEPT, mu=0.5, pooled=False, progress=False).pooled is None


def test_the_report_is_measured_on_the_map_and_the_pipeline_is_not_changed(any_pipe):
    pipe = any_pipe
    before = {name: weight.clone() for name, weight in families.model(pipe).state_dict().items()}
    eraser = rece.guard(pipe, "dog", preserve=KEPT, mu=0.5, progress=False)
    report, (dog, neutral) = eraser.provenance["report"], texts.last_tokens(pipe, ["dog", " "])
    Q, _ = layers.answers(pipe)
    moved = (Q @ (dog - eraser.map @ dog)).norm() / (Q @ (dog - neutral)).norm()
    assert report["guard"]["dog"] == pytest.approx(moved.item(), rel=1e-9)  # the orthogonal form attains its bound
    *X, end = texts.last_tokens(pipe, [*KEPT, " "], after=1)
    shares = {
        text: ((Q @ (x - eraser.map @ x)).norm() / (Q @ (x - end)).norm()).item()
        for text, x in zip(KEPT, X, strict=True)
    }
    assert report["moved"] == pytest.approx(shares)
    assert report["drift"] == pytest.approx(sum(shares.values()) / len(shares))
    eraser.apply(pipe)
    eraser.remove(pipe)
    assert all(torch.equal(before[name], weight) for name, weight in families.model(pipe).state_dict().items())


def test_further_texts_are_rows_like_those_of_concepts(pipe):
    both = rece.guard(pipe, ["dog", "bus"], preserve=KEPT, mu=0.5, rank=4, progress=False)
    as_one = rece.guard(pipe, "dog", synonyms=["bus"], preserve=KEPT, mu=0.5, rank=4, progress=False)
    each = rece.guard(pipe, ["dog", "sun"], synonyms={"dog": ["bus"]}, preserve=KEPT, mu=0.5, rank=4, progress=False)
    assert_close(both.map, as_one.map)
    assert_close(each.map, literal(pipe, [(text, " ") for text in ("dog", "bus", "sun")], KEPT, 0.5, rank=4)[0])
    assert set(both.provenance["report"]["guard"]) == {"dog", "bus"}
    assert set(as_one.provenance["report"]["guard"]) == {"dog"}
    assert each.provenance["synonyms"] == {"dog": ["bus"]} and both.provenance["synonyms"] == {}


def test_taking_one_of_several_concepts_out_is_guarding_the_others_alone(pipe):
    """The order of concepts and what was guarded before leave no trace, and no Gram matrix is computed again."""
    three = rece.guard(pipe, ["dog", "bus", "sun"], preserve=KEPT, mu=0.5, progress=False)
    turned = rece.guard(pipe, ["sun", "dog", "bus"], preserve=KEPT, mu=0.5, progress=False)
    assert_close(three.map, turned.map)
    three.apply(pipe)
    three.remove(pipe)
    two = rece.guard(pipe, ["dog", "bus"], preserve=KEPT, mu=0.5, progress=False)
    assert torch.equal(two.map, rece.guard(tiny.sd(), ["dog", "bus"], preserve=KEPT, mu=0.5, progress=False).map)


@pytest.mark.parametrize("first, second", [("dog", "bus"), ("bus", "dog"), ("dog", "doge")])
def test_one_after_the_other_keeps_the_first_guarantee_and_not_the_second(pipe, first, second):
    """a @ b edits by a, then by b. Its answers are among those that a allows, but not among those that b does."""
    a, b = (rece.guard(pipe, text, preserve=KEPT, mu=0.5, progress=False) for text in (first, second))
    guards = {text: each.provenance["report"]["guard"][text] for text, each in ((first, a), (second, b))}
    certified = {text: rece.certify(pipe, a @ b, text).guarded for text in guards}
    assert certified[first] >= guards[first] * (1 - 1e-9)
    assert 0 < certified[second] < guards[second] * 0.95
    assert (a @ b).rank <= a.rank + b.rank
    jointly = rece.guard(pipe, [first, second], preserve=KEPT, mu=0.5, progress=False)
    certified = {text: rece.certify(pipe, jointly, text).guarded for text in guards}
    assert certified == pytest.approx(jointly.provenance["report"]["guard"], rel=1e-9)


def test_a_target_is_what_the_concept_is_answered_as():
    """The oblique form answers every row of the concept as it answers that row of the target, M k = M t.

    That is t itself as far as the target is preserved: the rest goes down with mu, where there is room for both.
    """
    pipe = tiny.sd(width=128)
    dog, cat = texts.encode(pipe, ["dog", "cat"])
    Q, _ = layers.answers(pipe)

    def made(**settings):
        settings = {"target": "cat", "preserve": ["cat"], "rank": 23, "mu": 1e-6} | settings
        return rece.guard(pipe, "dog", progress=False, **settings)

    def away(eraser):
        return ((dog @ eraser.map.T - cat) @ Q.T).norm().item() / ((dog - cat) @ Q.T).norm().item()

    assert made().provenance["oblique"] == 1.0 and made().provenance["target"] == ["cat"]
    for mu in (1.0, 1e-3, 1e-6):
        assert_close((dog - cat) @ made(mu=mu).map.T @ Q.T, torch.zeros(24, 128, dtype=F64), atol=1e-9, rtol=0)
    left = [away(made(mu=mu)) for mu in (1.0, 1e-3, 1e-6, 1e-9)]
    assert left == sorted(left, reverse=True) and left[-1] < 1e-6
    shares = [away(made(oblique=share)) for share in (1.0, 0.75, 0.5, 0.0)]
    assert shares == sorted(shares) and shares[0] < 1e-4 and shares[-1] > 0.5


def test_every_share_of_the_oblique_form_has_one_guarantee(pipe):
    settings = {"target": "cat", "preserve": KEPT, "mu": 0.5, "progress": False}
    made = {share: rece.guard(pipe, "dog", oblique=share, **settings) for share in (0.0, 0.5, 1.0)}
    found = {share: rece.certify(pipe, eraser, "dog", target="cat") for share, eraser in made.items()}
    guards = [eraser.provenance["report"]["guard"]["dog"] for eraser in made.values()]
    assert [one.guarded for one in found.values()] == pytest.approx(guards) and max(guards) == pytest.approx(
        min(guards)
    )
    edited = [one.words.edited.item() for one in found.values()]
    assert edited[0] == pytest.approx(found[0.0].words.embedding.item()) and edited == sorted(edited)
    for targets in (["cat", "sun"], ["cat", " "]):
        several = rece.guard(pipe, ["dog", "bus"], target=targets, preserve=KEPT, progress=False)
        assert several.provenance["target"] == targets and several.provenance["oblique"] == 1.0


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
    listed = texts.everyday()
    assert 1000 < len(listed) == len(set(listed)) < 1500 and all(text == text.strip().lower() for text in listed)
    pipe = loading.load("data/emoji-diffusion")
    eraser = rece.guard(pipe, "dog", progress=False)
    out = eraser.provenance["left_out"]
    assert eraser.provenance["preserve"] is None and set(out) < set(listed)
    assert {"dog", "a dog running on the grass"} <= set(out) and not {"cat", "wolf", "car"} & set(out)
    assert eraser.provenance["report"]["guard"]["dog"] > 0.6 and eraser.provenance["report"]["drift"] < guarding.DRIFT


@pytest.mark.parametrize("kept", [[], [""]])
def test_nothing_need_be_preserved(pipe, kept):
    eraser = rece.guard(pipe, "dog", preserve=kept, mu=0.5, progress=False)
    assert eraser.provenance["report"]["guard"]["dog"] > 0
    assert rece.guard(pipe, "dog", preserve=kept, progress=False).provenance["report"]["guard"]["dog"] > 0


def test_the_studys_method_takes_the_neutral_target_for_none(pipe):
    made = methods.run("guarded", pipe, "dog", target=" ", preserve=KEPT, mu=0.5, progress=False)
    assert_close(made.map, rece.guard(pipe, "dog", preserve=KEPT, mu=0.5, progress=False).map)
    named = methods.run("guarded", pipe, "dog", target="cat", preserve=KEPT, mu=0.5, progress=False)
    assert named.provenance["oblique"] == 1.0


def test_saved_composed_and_removed(any_pipe, tmp_path):
    one, two = (rece.guard(any_pipe, text, preserve=KEPT, progress=False) for text in ("dog", "big cat"))
    (one @ two).save(tmp_path / "two.safetensors")
    loaded = rece.Eraser.load(tmp_path / "two.safetensors")
    assert torch.equal(loaded.map, one.map @ two.map) and loaded.provenance["composed"][0] == one.provenance
    if one.pooled is not None:
        assert torch.equal(loaded.pooled, one.pooled @ two.pooled)
    before = {name: weight.clone() for name, weight in families.model(any_pipe).state_dict().items()}
    loaded.remove(loaded.apply(any_pipe))
    assert all(torch.equal(before[name], weight) for name, weight in families.model(any_pipe).state_dict().items())


@pytest.mark.parametrize(
    "given, message",
    [
        ({"concept": " "}, "concept must be a text"),
        ({"mu": 0}, "mu must be a positive finite number"),
        ({"mu": "much"}, "mu must be a positive finite number"),
        ({"rank": 0}, "rank must be a whole number"),
        ({"rank": True}, "rank must be a whole number"),
        ({"target": ["cat", "hat"]}, "target must be one text or one per concept"),
        ({"target": 5}, "target must be a list of texts"),
        ({"preserve": "cat"}, "preserve must be a list of texts"),
        ({"preserve": [5]}, "preserve must be a list of texts"),
        ({"preserve": ["x" * 50]}, "preserve: 'x+' has 28 tokens more"),
        ({"synonyms": "puppy"}, "synonyms must be a list of texts"),
        ({"synonyms": {"cat": ["kitty"]}}, "synonyms: 'cat' is none of the concepts"),
        ({"concept": ["dog", "bus"], "synonyms": ["puppy"]}, "synonyms must be a dict"),
    ],
)
def test_bad_input_is_named_before_anything_is_computed(pipe, given, message, monkeypatch):
    monkeypatch.setattr(texts, "encode", lambda *_, **__: pytest.fail("encoded a text first"))
    monkeypatch.setattr(layers, "answers", lambda *_, **__: pytest.fail("computed the Gram matrix first"))
    with pytest.raises((ValueError, TypeError), match=message) as error:
        rece.guard(pipe, **{"concept": "dog", "preserve": KEPT, "progress": False} | given)
    assert "\n" not in str(error.value)


def test_a_target_that_is_the_concept_and_a_share_out_of_range_are_named(pipe):
    with pytest.raises(ValueError, match="target: 'dog' names the concept 'dog'"):
        rece.guard(pipe, "dog", target="dog", preserve=KEPT, progress=False)
    for share in (2.0, math.nan):
        with pytest.raises(ValueError, match="oblique must be a number from 0 to 1"):
            rece.guard(pipe, "dog", oblique=share, preserve=KEPT, progress=False)


def test_a_pipeline_with_an_eraser_is_refused(pipe):
    own = tiny.sd()
    rece.erase(own, "dog", rounds=0, progress=False).apply(own)
    with pytest.raises(ValueError, match="carries an eraser"):
        rece.guard(own, "dog", preserve=KEPT, progress=False)


def test_what_the_pooled_path_chose_is_kept(xl):
    made = rece.guard(xl, "dog", preserve=KEPT, progress=False)
    found = made.provenance["pooled_report"]
    dog, target = (texts.last_tokens(xl, [text], "pooled")[0] for text in ("dog", " "))
    Q, _ = layers.answers(xl, "pooled")
    guard = (Q @ (made.pooled @ dog - dog)).norm() / (Q @ (dog - target)).norm()
    assert found["guard"]["dog"] == pytest.approx(guard.item()) and found["rank"] == 1
    assert found["drift"] <= guarding.DRIFT or found["mu"] == guarding.MUS[-1]
    alone = rece.guard(xl, "dog", preserve=KEPT, pooled=False, progress=False)
    assert "pooled_report" not in alone.provenance
