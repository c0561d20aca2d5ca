"""Methods that project tokens or answers, that misdirect the text encoder, or that act at a gate: each does what its
equation says, beside a literal second computation."""

import math

import pytest
import tiny
import torch
from torch.nn.functional import mse_loss

import rece
from rece import layers, methods, texts
from rece.methods import _tokens, adavd, adv_unlearn, double_projections, gloce, hirm, leace, oce, pure, safree, stereo
from rece.methods._training import Pupil, Training

KEPT = ["cup", "sun", "red"]


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def last(pipe, *some):
    return texts.last_tokens(pipe, list(some))


# What tokens span


def test_words_and_frames_are_the_tokens_they_say(pipe):
    found = _tokens.words(pipe, ["a dog", "cat"])
    a_dog, cat = (texts.encode(pipe, [text])[0] for text in ("a dog", "cat"))
    end = texts.last_position(pipe, "a dog")
    torch.testing.assert_close(found, torch.cat([a_dog[1 : end + 1], cat[1 : texts.last_position(pipe, "cat") + 1]]))
    framed = _tokens.framed(pipe, ["dog", "cat"], ("{}", "a {} b"))
    assert framed.shape[:2] == (2, 2)
    torch.testing.assert_close(framed[:, 0], last(pipe, "dog", "cat"))
    at = texts.last_position(pipe, "a cat")
    torch.testing.assert_close(framed[1, 1], texts.encode(pipe, ["a cat b"])[0, at])


def test_words_begin_where_a_tokenizer_opens_no_text():
    pipe = tiny.pixart()
    n = len(texts.ids(pipe, "a big dog")[0])
    torch.testing.assert_close(_tokens.words(pipe, ["a big dog"]), texts.encode(pipe, ["a big dog"])[0, :n])


def test_expanded_is_its_formula_and_becomes_the_projector():
    E = rows(3, 6)
    _, sizes, right = torch.linalg.svd(E, full_matrices=False)
    wanted, total = torch.zeros(6, 6, dtype=torch.float64), sum(size**2 for size in sizes)
    for size, v in zip(sizes, right, strict=True):
        r = size**2 / total
        wanted += 5 * r / ((5 - 1) * r + 1) * torch.outer(v, v)
    torch.testing.assert_close(_tokens.expanded(E, 5.0), wanted)
    V = _tokens.spanned(E)
    torch.testing.assert_close(_tokens.expanded(E, 1e12), V @ V.T, atol=1e-9, rtol=0)


# Projections of tokens


def test_double_projections_is_its_formula_for_one_concept():
    """M = I + (c* - c) x^T U2^T / |x|^2 with x = U2^T c, and U2 a basis of the preserved span's complement."""
    c, P, S = rows(1, 8), rows(3, 8, seed=1), rows(2, 8, seed=2)
    U2 = torch.linalg.svd(P)[2][3:].T
    x, star = U2.T @ c[0], S.T @ torch.linalg.pinv(S @ S.T) @ S @ c[0]
    wanted = torch.eye(8).double() + torch.outer(star - c[0], U2 @ x) / x.square().sum()
    found = double_projections.edit(c, _tokens.spanned(P), _tokens.spanned(S))
    torch.testing.assert_close(found, wanted)


def test_double_projections_sends_every_concept_to_its_aim_and_moves_nothing_kept(pipe):
    for method in ("double_projections", "double_projections_target"):
        M = methods.run(method, pipe, ["dog", "bird"], preserve=KEPT).map
        C, P = last(pipe, "dog", "bird"), last(pipe, *KEPT)
        safe = _tokens.spanned(P if method == "double_projections" else last(pipe, " "))
        torch.testing.assert_close(C @ M.T, C @ safe @ safe.T)
        torch.testing.assert_close(P @ M.T, P)


def test_only_a_safe_subspace_inside_of_what_is_kept_is_guarded(pipe):
    """The inner variant is singular, so no embedding is answered as the concept was; the outer one can be inverted."""
    inner, outer = (
        methods.run(method, pipe, "dog", preserve=KEPT)
        for method in ("double_projections", "double_projections_target")
    )
    smallest = [torch.linalg.svdvals(edit.map)[-1].item() for edit in (inner, outer)]
    assert smallest[0] < 1e-12 < 1e-4 < smallest[1]
    bounds = [rece.certify(pipe, edit, "dog").guarded for edit in (inner, outer)]
    assert bounds[0] > 1e-3 > 1e-9 > bounds[1]


def test_double_projections_refuses_a_concept_that_is_kept(pipe):
    with pytest.raises(ValueError, match="preserve spans a concept"):
        methods.run("double_projections", pipe, "dog", preserve=["dog", "cup"])
    with pytest.raises(ValueError, match="preserve must hold"):
        methods.run("double_projections", pipe, "dog")
    with pytest.raises(ValueError, match="directions must be a whole number"):
        methods.run("double_projections", pipe, "dog", preserve=KEPT, directions=0)


@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_leace_is_its_closed_form_and_leaves_no_covariance(ridge):
    X, Z = rows(40, 6), (rows(40, 2, seed=1) > 0).double()
    X[:, 0] += Z[:, 0]
    M = leace.projection(X, Z, ridge)
    centred = X - X.mean(0)
    A, S = centred.T @ centred / 40, centred.T @ (Z - Z.mean(0)) / 40
    A = A + ridge * torch.linalg.eigvalsh(A).mean() * torch.eye(6).double()
    B = torch.linalg.inv(A)
    torch.testing.assert_close(M, torch.eye(6).double() - S @ torch.linalg.inv(S.T @ B @ S) @ S.T @ B)
    torch.testing.assert_close(M @ S, torch.zeros_like(S))
    torch.testing.assert_close(M @ M, M)


def test_after_leace_no_linear_rule_does_better_than_a_constant(pipe):
    """Least squares of what tokens name on the tokens themselves: before it tells the concept, after it does not."""
    M = methods.run("leace", pipe, "dog", preserve=KEPT).map
    X = _tokens.framed(pipe, ["dog", *KEPT], _tokens.TEMPLATES).flatten(0, 1)
    z = torch.zeros(len(X), dtype=torch.float64)
    z[: len(_tokens.TEMPLATES)] = 1.0
    explained = []
    for some in (X, X @ M.T):
        design = torch.cat([some - some.mean(0), torch.ones(len(X), 1).double()], 1)
        rest = z - design @ (torch.linalg.pinv(design, rtol=1e-9) @ z)
        explained.append(1 - (rest.square().sum() / (z - z.mean()).square().sum()).item())
    assert explained[0] > 0.5 and abs(explained[1]) < 1e-6


def test_safer_projects_the_concepts_embeddings_away(pipe):
    edit = methods.run("safer", pipe, "dog")
    C = _tokens.framed(pipe, ["dog"], _tokens.TEMPLATES).flatten(0, 1)
    torch.testing.assert_close(C @ edit.map.T, torch.zeros_like(C), atol=1e-6, rtol=0)
    torch.testing.assert_close(edit.map @ edit.map, edit.map)
    one = methods.run("safer", pipe, "dog", rank=1)
    left = [(C @ edit.map.T).norm() for edit in (one, edit)]
    v = torch.linalg.eigh(C.T @ C)[1][:, -1]
    torch.testing.assert_close(one.map, torch.eye(len(v)).double() - torch.outer(v, v))
    assert one.rank == 1 < edit.rank and left[0] > left[1]


def test_cure_without_retained_texts_is_a_projection_and_with_them_gives_way(pipe):
    """The published symptom: the more is retained, the less of the concept is erased."""
    c = _tokens.words(pipe, ["dog"])
    left = []
    for kept in ([], KEPT, [*KEPT, "cat", "bird", "a big house", "dog"]):
        M = methods.run("cure", pipe, "dog", preserve=kept, alpha=1e9).map
        left.append((c @ M.T).norm().item())
    assert left[0] < 1e-5 < left[1] < left[2] and left[2] == pytest.approx(c.norm().item(), rel=1e-4)


# Projections of answers


def test_oces_rotation_is_the_nearest_to_its_sum():
    """It keeps lengths and does not turn space inside out. But for that no orthogonal matrix agrees with it more."""
    W, C, A = rows(5, 7), rows(2, 7, seed=1), rows(1, 7, seed=2)
    PP = rows(7, 7, seed=3)
    PP = PP.T @ PP
    scales = {"erase_scale": 20.0, "preserve_scale": 0.3, "lamb": 0.1}
    R = oce.rotation(W, C, A, PP, **scales)
    torch.testing.assert_close(R @ R.T, torch.eye(5).double())
    assert torch.linalg.det(R).item() == pytest.approx(1.0)
    E, aim = ((X @ W.T).T for X in (C, A))
    project = [Y @ torch.linalg.pinv(Y) for Y in (E, aim)]
    total = -20.0 * project[0] @ (torch.eye(5).double() - project[1]) + 0.3 * W @ PP @ W.T + 0.1 * W @ W.T
    turned = torch.linalg.svd(total)
    wanted = turned[0] @ turned[2]
    if torch.linalg.det(wanted) < 0:
        wanted[:, -1] = -wanted[:, -1]
    torch.testing.assert_close(R, wanted)
    best = (turned[0] @ turned[2] * total).sum()
    assert all((torch.linalg.qr(rows(5, 5, seed=seed))[0] * total).sum() <= best for seed in range(200))


def test_pures_layers_answer_nothing_in_the_concepts_subspace(pipe):
    numbers = {"templates": ("a {}",), "steps": 2, "progress": False}
    edit = methods.run("pure", pipe, "dog", forget=0.8, **numbers)
    for name, W in edit.readers(pipe).items():
        F = -edit.changes[f"unet.{name}.weight"][0].double()
        torch.testing.assert_close(F.T @ F, torch.eye(F.shape[1]).double(), atol=1e-5, rtol=0)
        torch.testing.assert_close(F.T @ W.double(), torch.zeros(F.shape[1], W.shape[1]).double(), atol=1e-5, rtol=0)
    kept = methods.run("pure", pipe, "dog", forget=0.8, retain=1.0, preserve=KEPT, **numbers)
    for name, before in layers.originals(pipe).items():
        up, down = (side.double() for side in kept.changes[f"unet.{name}.weight"])
        R = pure.main(
            pure.answered(pipe, KEPT, 0, steps=2, guidance=7.5, progress=False)[name.rpartition(".")[0]], 1.0
        )
        wanted = up @ (up.T @ (torch.eye(len(R)).double() - R @ R.T) @ before.double())
        torch.testing.assert_close(up @ down, -wanted, atol=1e-5, rtol=0)


def test_pure_takes_the_fewest_directions():
    X = torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    assert [pure.main(X, share).shape[1] for share in (0.5, 9 / 14, 0.9, 0.99)] == [1, 1, 2, 3]


# The text encoder


def test_hirm_brings_the_last_attention_to_where_it_shall_go(pipe):
    encoder = pipe.text_encoder
    with torch.no_grad():
        before, aim = (hirm.misdirected(pipe, encoder, [text]) for text in ("dog", "cup"))
    edit = methods.run("hirm", pipe, "dog", target="cup", toward="target", iterations=30, lr=1e-3, progress=False)
    with edit.on(pipe), torch.no_grad():
        after = hirm.misdirected(pipe, encoder, ["dog"])
    assert mse_loss(after, aim) < 0.5 * mse_loss(before, aim)
    random = methods.run("hirm", pipe, "dog", scale=3.0, iterations=30, lr=3e-3, progress=False)
    away = torch.randn(before.shape[-1], generator=torch.Generator().manual_seed(0))
    aim = (3 * away / away.norm()).expand_as(before)
    with random.on(pipe), torch.no_grad():
        assert mse_loss(hirm.misdirected(pipe, encoder, ["dog"]), aim) < 0.5 * mse_loss(before, aim)


def test_adv_unlearns_attack_takes_signed_steps_towards_what_is_wanted():
    A, wanted = rows(4, 3).float(), torch.ones(4)
    first = torch.zeros(1, 1, 3)
    found = adv_unlearn.disturbed(lambda soft: A @ soft.flatten(), first, wanted, 20, 0.01)
    assert mse_loss(A @ found.flatten(), wanted) < mse_loss(A @ first.flatten(), wanted)
    one = adv_unlearn.disturbed(lambda soft: A @ soft.flatten(), first, wanted, 1, 0.01)
    torch.testing.assert_close(one.flatten(), 0.01 * (A.T @ wanted).sign())


def test_replaced_tokens_are_those_of_a_word(pipe):
    """A free token that is a word's own gives the prompt with that word."""
    encoder = pipe.text_encoder
    ids = pipe.tokenizer(["a dog", "a cat"], padding="max_length", return_tensors="pt").input_ids
    slot = (ids[0] != ids[1]).nonzero().T
    word = encoder.get_input_embeddings().weight[ids[1, slot]]
    with torch.no_grad(), texts.replaced(encoder, slot, word):
        found = encoder(ids[:1])[0]
    with torch.no_grad():
        assert torch.equal(found, encoder(ids[1:])[0])


# Gates


def test_semantic_surgery_cuts_what_it_finds_and_nothing_else(pipe):
    settings = {"threshold": 0.0, "width": 0.02}
    edit = methods.run("semantic_surgery", pipe, "dog", **settings)
    hook = edit._module().Hook(edit.state, **edit.settings)
    D = (texts.encode(pipe, ["dog"]) - texts.encode(pipe, [""])).float()
    e = texts.encode(pipe, ["a dog", "red cup"]).float()
    found = hook.cut(pipe, e)
    for own, cut in zip(e, found, strict=True):
        near = (own.flatten() @ D.flatten() / own.norm() / D.norm()).item()
        rho = 1 / (1 + math.exp(-(near - 0.0) / 0.02))
        torch.testing.assert_close(cut, own - rho * D[0] if rho >= 0.5 else own, atol=1e-5, rtol=1e-4)
    far = methods.run("semantic_surgery", pipe, "dog", threshold=2.0)
    z = torch.randn(2, 4, 8, 8)
    plain = pipe.unet(z, torch.tensor(5), encoder_hidden_states=e).sample
    with far.on(pipe):
        assert torch.equal(pipe.unet(z, torch.tensor(5), encoder_hidden_states=e).sample, plain)
    empty = texts.encode(pipe, ["", ""]).float()
    plain = pipe.unet(z, torch.tensor(5), encoder_hidden_states=empty).sample
    with methods.run("semantic_surgery", pipe, "dog", threshold=-2.0).on(pipe):
        assert torch.equal(pipe.unet(z, torch.tensor(5), encoder_hidden_states=empty).sample, plain)
        assert not torch.equal(pipe.unet(z, torch.tensor(5), encoder_hidden_states=e).sample, plain)


def test_semantic_surgery_takes_two_concepts_as_one_text(pipe):
    edit = methods.run("semantic_surgery", pipe, ["dog", "cat"], threshold=-2.0)
    hook = edit._module().Hook(edit.state, **edit.settings)
    e = texts.encode(pipe, ["a dog"]).float()
    both = (texts.encode(pipe, ["dog, cat"]) - texts.encode(pipe, [""])).float()
    torch.testing.assert_close(hook.cut(pipe, e), e - both)


def test_adavd_is_its_formula_token_by_token(pipe):
    edit = methods.run("adavd", pipe, ["dog", "cat"], threshold=0.1, sharpness=5.0)
    hook = adavd.Hook(edit.state, **edit.settings)
    layer = layers.prompt_layers(pipe)[next(name for name in layers.prompt_layers(pipe) if name.endswith("to_v"))]
    with torch.no_grad():
        values = layer(texts.encode(pipe, ["a dog"]).float())
        found = hook.shifted(layer, None, values)
        t = [layer(word) for word in last(pipe, "dog", "cat").float()]
    q = [t[0] / t[0].norm()]
    q.append(t[1] - (t[1] @ q[0]) * q[0])
    q[1] = q[1] / q[1].norm()
    for place, v in enumerate(values[0]):
        left = v.clone()
        for one, direction in zip(t, q, strict=True):
            share = 2 / (1 + math.exp(-5.0 * (torch.cosine_similarity(v, one, dim=0).item() - 0.1)))
            left -= share * (v @ direction) * direction
        torch.testing.assert_close(found[0, place], v if place == 0 else left, atol=1e-4, rtol=1e-4)


def test_gloce_is_its_formula_and_waits_for_its_steps(pipe):
    x, d = rows(1, 4, 6).float(), 6
    m, t, b = (rows(d, seed=n).float() for n in (1, 2, 3))
    V, T, S = (torch.linalg.qr(rows(d, n, seed=n + 3).float())[0] for n in (1, 2, 3))
    g = torch.tensor([3.0, 0.2])
    state = {f"{name}.0.0": one for name, one in zip("mVtTbSg", (m, V, t, T, b, S, g), strict=True)}
    found = gloce.Hook(state, 0.5).replaced(0, x)
    for place in range(4):
        away, left = x[0, place] - m, x[0, place] - t
        share = (V.T @ away).norm() ** 2 / away.norm() ** 2
        s = 1 / (1 + math.exp(-3.0 * (share.item() - 0.2)))
        y = b + S @ S.T @ (left - T @ T.T @ left)
        torch.testing.assert_close(found[0, place], (1 - s) * x[0, place] + s * y, atol=1e-5, rtol=1e-4)
    edit = methods.run("gloce", pipe, "dog", steps=2, start=0.5, update=2, templates=("a {}",), progress=False)
    z, e = torch.randn(1, 4, 8, 8), texts.encode(pipe, ["a dog"]).float()
    for time, same in ((900, True), (100, False)):
        plain = pipe.unet(z, torch.tensor(time), encoder_hidden_states=e).sample
        with edit.on(pipe):
            hooked = pipe.unet(z, torch.tensor(time), encoder_hidden_states=e).sample
        assert torch.equal(plain, hooked) == same


@pytest.mark.parametrize("ends", [False, True])
def test_safree_is_its_formula_with_prompts_that_are_really_masked(pipe, ends):
    """Prompts of two lengths in one batch: each gives what it gives alone, computed here from masked token ids."""
    prompts = ["a red dog", "cat"]
    edit = methods.run("safree", pipe, "dog", alpha=0.0, ends=ends)
    C = edit.state["basis"].float()
    with edit.on(pipe):
        found = texts.encode(pipe, prompts)
    ids = pipe.tokenizer(prompts, padding="max_length", return_tensors="pt").input_ids
    for row, prompt in enumerate(prompts):
        own, end = texts.encode(pipe, [prompt])[0].float(), texts.last_position(pipe, prompt)
        summaries = []
        for place in range(1, end + 1):
            masked = ids[row : row + 1].clone()
            masked[0, place] = 0
            with torch.no_grad():
                summaries.append(pipe.text_encoder(masked)[0][0, -1])
        far = [(s - C @ (C.T @ s)).norm().item() for s in summaries]
        wanted = own.clone()
        trigger = [len(far) > 1 and far[n] > (sum(far) - far[n]) / (len(far) - 1) for n in range(len(far))]
        P = torch.stack(summaries).T @ torch.linalg.pinv(torch.stack(summaries).T)
        for place in range(1, len(own)):
            if (place <= end and trigger[place - 1]) or (ends and place > end and any(trigger)):
                h = P @ own[place]
                wanted[place] = h - C @ (C.T @ h)
        torch.testing.assert_close(found[row].float(), wanted, atol=1e-4, rtol=1e-3)
        assert (wanted != own).any() == any(trigger)


@pytest.mark.parametrize(("dtype", "pad"), [("float32", "!"), ("bfloat16", "<|endoftext|>"), ("float16", "!")])
def test_safree_knows_words_from_what_fills_a_prompt(pipe, monkeypatch, dtype, pad):
    pipe.tokenizer.pad_token, seen = pad, []
    pipe.to(getattr(torch, dtype))
    edit = methods.run("safree", pipe, "dog")
    monkeypatch.setattr(safree.Hook, "cut", lambda hook, rows, without, written: seen.append(written) or rows)
    with edit.on(pipe):
        texts.encode(pipe, ["a red dog"])
    assert seen[0].nonzero().flatten().tolist() == list(range(1, texts.last_position(pipe, "a red dog") + 1))


def test_gates_compute_in_float32_under_autocast(pipe):
    x, d = rows(1, 4, 32).float(), 32
    state = {f"{name}.0.0": rows(d, *shape).float() for name, shape in zip("mVtTbS", ((), (1,)) * 3, strict=True)}
    gate = gloce.Hook(state | {"g.0.0": torch.tensor([3.0, 0.2])}, 0.0)
    layer = next(layer for name, layer in layers.prompt_layers(pipe).items() if name.endswith("to_v"))
    values = adavd.Hook({"words": last(pipe, "dog").float()}, threshold=0.1, sharpness=5.0)
    prompt = safree.Hook({"basis": _tokens.spanned(rows(2, d)).float()}, 0.0, True)
    written = torch.tensor([False, True, True, False])
    for act in (
        lambda: gate.replaced(0, x),
        lambda: values.shifted(layer, None, rows(1, 4, layer.out_features).float()),
        lambda: prompt.cut(x[0], x[0] + 1, written),
    ):
        plain = act()
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(act(), plain)


def test_an_attack_through_a_gate_feels_it(pipe):
    """The slope of a loss by the embedding that a model with a gate is given differs from the original's."""
    z, e = torch.randn(1, 4, 8, 8), texts.encode(pipe, ["a dog"]).float()
    for method, numbers in {"semantic_surgery": {"threshold": 0.0}, "adavd": {"threshold": 0.0}}.items():
        slopes = []
        edit = methods.run(method, pipe, "dog", **numbers)
        for victim in (False, True):
            given = e.clone().requires_grad_()
            if victim:
                edit.apply(pipe)
            pipe.unet(z, torch.tensor(5), encoder_hidden_states=given).sample.square().mean().backward()
            slopes.append(given.grad)
        edit.remove(pipe)
        assert slopes[1].isfinite().all() and not torch.allclose(*slopes, rtol=1e-2)


def test_an_attack_on_free_tokens_passes_safree(pipe):
    """SAFREE sees free tokens as it sees words: their slopes pass its projection."""
    encoder = pipe.text_encoder
    ids = pipe.tokenizer(["a dog", "red dog"], padding="max_length", return_tensors="pt").input_ids
    slots = torch.ones(2, 1, dtype=torch.long)
    word = encoder.get_input_embeddings().weight[ids[:, 1:2]].detach().clone().requires_grad_()
    with methods.run("safree", pipe, "dog", alpha=0.0, ends=True).on(pipe):
        plain = encoder(ids)[0]
        with texts.replaced(encoder, slots, word):
            found = encoder(ids)[0]
        torch.testing.assert_close(found, plain)
        found.sum().backward()
    assert word.grad.isfinite().all() and word.grad.any()


def test_stereos_words_depend_on_its_seed(pipe, monkeypatch):
    seeds = []
    monkeypatch.setattr(stereo, "inverted", lambda *given: seeds.append(given[-1]) or torch.zeros(1, 24, 32))
    numbers = {"rounds": 2, "search": 1, "pictures": 1, "templates": ("a {}",), "iterations": 1, "steps": 2}
    methods.run("stereo", pipe, "dog", seed=5, progress=False, **numbers)
    assert seeds == [5, 6]


def test_stereos_words_denoise_better_and_its_target_is_its_sum(pipe, monkeypatch):
    templates = ("a {}", "{} b")
    pupil = Pupil(pipe, "dog", Training(iterations=1, lr=1e-3, steps=4, batch_size=4, progress=False))
    drawn = pupil.pictures(["a dog"], 4)

    def loss(read):
        z, times, wanted = pupil.noised(drawn.repeat(16, 1, 1, 1), torch.Generator().manual_seed(5))
        with torch.no_grad():
            return mse_loss(pupil.predict(pupil.unet, z, times, read[:1]), wanted).item()

    before = stereo.inverted(pupil, "dog", drawn, templates, 0, 0.05, 0)
    torch.testing.assert_close(before, pupil.encode(["a dog", "dog b"]))
    assert loss(stereo.inverted(pupil, "dog", drawn, templates, 30, 0.05, 0)) < loss(before)

    seen = {}
    monkeypatch.setattr(stereo, "mse_loss", lambda found, wanted: seen.update(wanted=wanted) or found.sum())
    predicted = [rows(1, 4, 8, 8, seed=n).float() for n in range(4)]
    monkeypatch.setattr(pupil, "original", lambda *given: predicted)
    words = [before, before]
    stereo._loss(pupil, words, None, 2.0, torch.Generator().manual_seed(0))
    plain, kept, one, two = predicted
    away = ((one - plain) + (two - plain)) / 2
    torch.testing.assert_close(seen["wanted"], plain + 2 * (kept - plain) - 2 * away)
