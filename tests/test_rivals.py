"""The field's methods: each does what its equation says, changes what it may, and is taken back to the bit."""

import math

import pytest
import tiny
import torch
from diffusers import DDIMScheduler, PNDMScheduler
from torch.nn.functional import mse_loss

from rece import families, layers, methods, solver, texts
from rece.edits import Hooks, Weights
from rece.eraser import Eraser
from rece.images import fingerprint, generate
from rece.methods import _esd, _training, _watching, concept_prune, guarded_layers, mace, race, receler, sld, speed
from rece.methods._training import Pupil, Training

SHORT = {"iterations": 2, "steps": 3, "progress": False}
TEMPLATES = ("a {}", "{} b")
KEEP = {"preserve": ["cup", "sun"]}
# By method: numbers that make it quick, and the names of the only parameters that it may change.
RIVALS = {
    "esd_x": (SHORT, "unet", lambda name: "attn2" in name),
    "esd_u": (SHORT, "unet", lambda name: "attn2" not in name and "time_embed" not in name),
    "concept_ablation": (SHORT | {"pictures": 2}, "unet", lambda name: "attn2.to_k" in name or "attn2.to_v" in name),
    "mace": (SHORT | {"pictures": 2, "templates": TEMPLATES}, "unet", lambda name: "attn2.to_" in name),
    "speed": ({}, "unet", lambda name: "attn2.to_v" in name),
    "race": (SHORT | {"start": 1, "attack_steps": 2}, "unet", lambda name: "attn2" in name),
    "few_shot": (
        SHORT | {"pictures": 2, "templates": TEMPLATES},
        "text_encoder",
        lambda name: ".mlp." in name or "s.1.self_attn" in name,
    ),
    "concept_prune": ({"steps": 3, "templates": TEMPLATES, "ratio": 0.1}, "unet", lambda name: "ff.net.2" in name),
    "pruning": (SHORT | {"lr": 2.0, "penalty": 0.0}, "unet", lambda name: ".ff.net." in name or ".attn2." in name),
    "guarded_layers": ({"preserve": ["cat"]}, "unet", lambda name: "attn2.to_" in name),
    "sld": ({"warm_up": 0.0}, "unet", None),
    "receler": (SHORT | {"attack_steps": 2, "hidden": 4, "words": 2}, "unet", None),
    "double_projections": (KEEP | {"directions": 1}, "unet", "map"),
    "double_projections_target": (KEEP, "unet", "map"),
    "leace": (KEEP | {"templates": TEMPLATES}, "unet", "map"),
    "safer": ({"templates": TEMPLATES}, "unet", "map"),
    "cure": (KEEP | {"alpha": 1.0}, "unet", "map"),
    "oce": (KEEP | {"templates": TEMPLATES}, "unet", lambda name: "attn2.to_v" in name),
    "pure": (KEEP | {"steps": 2, "templates": TEMPLATES}, "unet", lambda name: "attn2.to_" in name),
    "hirm": ({"iterations": 2, "progress": False}, "text_encoder", lambda name: ".layers.0." in name),
    "adv_unlearn": (SHORT | KEEP | {"attack_steps": 2}, "text_encoder", lambda name: True),
    "stereo": (
        SHORT | KEEP | {"rounds": 1, "search": 1, "inversion": 1, "pictures": 2, "templates": TEMPLATES},
        "unet",
        lambda name: "attn2" not in name and "time_embed" not in name,
    ),
    "semantic_surgery": ({"threshold": 0.0}, "unet", None),
    "adavd": ({"threshold": 0.0}, "unet", None),
    "gloce": ({"steps": 2, "start": 0.0, "update": 2, "templates": TEMPLATES}, "unet", None),
    "safree": ({"alpha": 0.0, "ends": True}, "text_encoder", None),
}


KINDS = {None: Hooks, "map": Eraser}


@pytest.mark.parametrize("method", RIVALS)
def test_a_rival_changes_what_it_may_and_is_taken_back_to_the_bit(pipe, method, tmp_path):
    numbers, part, may = RIVALS[method]
    before = fingerprint(pipe)
    edit = methods.run(method, pipe, "dog", **numbers)
    assert fingerprint(pipe) == before, "the pipeline stays as it is"
    parts = (pipe.unet, pipe.text_encoder, pipe.vae)
    assert all(one.grad is None for part in parts for one in part.parameters())
    assert edit.parts(pipe) == (part,) and edit.provenance["method"] == method
    if may in KINDS:
        assert type(edit) is KINDS[may]
    else:
        assert isinstance(edit, Weights) and all(may(name) for name in edit.changes)
    edit.save(tmp_path / "edit.safetensors")
    plain = generate(pipe, ["a dog"], [0], steps=2, batch_size=2, progress=False)
    with type(edit).load(tmp_path / "edit.safetensors").on(pipe):
        assert (generate(pipe, ["a dog"], [0], steps=2, batch_size=2, progress=False) != plain).any()
    assert fingerprint(pipe) == before


@pytest.mark.parametrize("method", RIVALS)
def test_a_rival_repeats_itself_to_the_bit(pipe, method):
    numbers = RIVALS[method][0]
    first, second = (methods.run(method, pipe, ["dog", "cat"], **numbers) for _ in range(2))
    assert all(torch.equal(one, second.tensors()[name]) for name, one in first.tensors().items())


@pytest.mark.parametrize("method", [name for name, (numbers, *_) in RIVALS.items() if "iterations" in numbers])
def test_a_rival_refuses_unknown_and_wrong_numbers(pipe, method):
    with pytest.raises(ValueError, match="lamda: method .* takes no such keyword"):
        methods.run(method, pipe, "dog", lamda=1)
    for name, value in {"iterations": 0, "lr": -1.0, "batch_size": 1.5}.items():
        with pytest.raises(ValueError, match=name):
            methods.run(method, pipe, "dog", **{name: value})


@pytest.mark.parametrize("method", ["esd_x", "sld"])
def test_a_rival_refuses_a_model_that_it_cannot_edit(xl, method):
    with pytest.raises(TypeError, match="pipe must be a"):
        methods.run(method, xl, "dog")


COUNT, POSITIVE, SHARE = "must be a whole number", "must be a .* finite number", "must be a number (from|above) 0"
NAN = float("nan")
WRONG = [
    *[
        (method, "eta", value, POSITIVE)
        for method in ("esd_x", "esd_u", "race", "receler", "pruning")
        for value in (NAN, -1.0)
    ],
    *[("esd_x", "seed", value, COUNT) for value in (-1, 0.5)],
    *[("esd_x", "guidance", value, POSITIVE) for value in (-1.0, NAN)],
    ("race", "epsilon", 0.0, POSITIVE),
    ("race", "attack_steps", 0, COUNT),
    ("race", "start", -1, COUNT),
    *[("receler", name, 0, COUNT) for name in ("hidden", "words", "attack_steps")],
    ("receler", "attack_lr", 0.0, POSITIVE),
    ("receler", "locality", -1.0, POSITIVE),
    ("pruning", "penalty", -1.0, POSITIVE),
    ("pure", "anchors", -1, COUNT),
    ("few_shot", "pictures", 0, COUNT),
    ("mace", "pictures", 0, COUNT),
    ("mace", "lamb", 0.0, POSITIVE),
    ("concept_ablation", "pictures", 1, "must be a whole number, 2 or more"),
    ("concept_prune", "first", 1.5, SHARE),
    ("concept_prune", "ratio", 0.0, SHARE),
    ("speed", "augment", -1, COUNT),
    ("speed", "seed", -1, COUNT),
    ("sld", "warm_up", 1.5, SHARE),
    ("sld", "beta", 1.5, SHARE),
    *[("sld", name, NAN, POSITIVE) for name in ("scale", "threshold", "momentum")],
    ("adavd", "threshold", NAN, SHARE),
    *[
        (method, "templates", "a {}", "must be a list of texts")
        for method in ("leace", "safer", "oce", "pure", "gloce")
    ],
    *[
        (method, "templates", ["a dog"], "must be a list of texts")
        for method in ("mace", "few_shot", "stereo", "safree")
    ],
    ("concept_prune", "templates", ["{} {}"], "must be a list of texts"),
]


@pytest.mark.parametrize(("method", "name", "value", "message"), WRONG)
def test_a_wrong_number_is_named(pipe, method, name, value, message):
    with pytest.raises(ValueError, match=f"{name} {message}"):
        methods.run(method, pipe, ["dog", "cat"], preserve=["cup"], **{name: value})


@pytest.mark.parametrize("method", ["speed", "oce", "pure", "concept_prune"])
def test_a_rival_that_would_change_nothing_refuses(method):
    with pytest.raises(TypeError, match="pipe must have (layers of values|a UNet)"):
        methods.run(method, tiny.pixart(), "dog")


def test_half_precision_does_not_learn(pipe):
    with pytest.raises(ValueError, match="pipe must be in float32 to learn"):
        methods.run("esd_x", pipe.to(torch.bfloat16), "dog", **SHORT)


def test_provenance_holds_what_was_given(pipe):
    """And what a picture depends on."""
    assert methods.run("race", pipe, "dog", **RIVALS["race"][0]).provenance["iterations"] == SHORT["iterations"]
    for method in ("gloce", "pure", "concept_prune"):
        numbers = (
            RIVALS[method][0] | {"preserve": ["cup", "sun"]} | ({} if method == "concept_prune" else {"anchors": 1})
        )
        found = methods.run(method, pipe, "dog", **numbers).provenance
        assert found["bf16"] is False and found.get("preserve", ["cup", "sun"]) == ["cup", "sun"]


# Training


def test_a_sampler_does_not_clip_latents(pipe):
    pipe.scheduler = PNDMScheduler()
    assert not pupil_of(pipe).scheduler.config.clip_sample


def pupil_of(pipe, **numbers):
    pupil = Pupil(pipe, "dog", Training(**({"iterations": 3, "lr": 1e-3, "steps": 4, "progress": False} | numbers)))
    pupil.learn("unet", lambda name: "attn2" in name)
    return pupil


def test_a_killed_training_goes_on_as_if_it_had_not_been(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(_training, "EVERY", 2)
    numbers = SHORT | {"iterations": 5, "lr": 1e-3}
    whole = methods.run("esd_x", pipe, "dog", **numbers)
    keep, path = _training._keep, tmp_path / "training.safetensors"

    def killed(*given):
        keep(*given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(_training, "_keep", killed)
        methods.run("esd_x", pipe, "dog", checkpoint=path, **numbers)
    assert path.exists()
    with pytest.raises(ValueError, match="checkpoint: .* another training"):
        methods.run("esd_x", pipe, "cat", checkpoint=path, **numbers)
    with pytest.raises(ValueError, match="checkpoint: .* another training"):
        methods.run("esd_x", pipe, "dog", eta=2.0, checkpoint=path, **numbers)
    resumed = methods.run("esd_x", pipe, "dog", checkpoint=path, **numbers)
    assert not path.exists() and resumed.provenance == whole.provenance
    assert all(torch.equal(one, resumed.changes[name]) for name, one in whole.changes.items())


def test_latents_come_from_the_step_that_their_time_is_of(pipe):
    """Without steps left they are noise; all are of a time within the share of the step that comes next."""
    pupil = pupil_of(pipe)
    for seed in range(8):
        random = torch.Generator().manual_seed(seed)
        z, time, noise = pupil.sampled(pupil.unet, pupil.empty, random)
        left = int(torch.randint(4, (), generator=torch.Generator().manual_seed(seed)))
        assert round(left * 250) <= time < round((left + 1) * 250)
        assert torch.equal(z, noise) == (left == 3)


def test_noise_in_a_prediction_is_what_was_added(pipe):
    z, random = torch.randn(2, 4, 8, 8), torch.Generator().manual_seed(0)
    for kind in ("epsilon", "v_prediction"):
        pipe.scheduler = DDIMScheduler(prediction_type=kind)
        pupil = pupil_of(pipe)
        noise, time = torch.randn(z.shape, generator=random), torch.tensor([300, 700])
        noisy = pupil.scheduler.add_noise(z, noise, time)
        said = noise if kind == "epsilon" else pupil.scheduler.get_velocity(z, noise, time)
        share = pupil.scheduler.alphas_cumprod[time].view(-1, 1, 1, 1)
        found = said if kind == "epsilon" else share.sqrt() * said + (1 - share).sqrt() * noisy
        torch.testing.assert_close(found, noise, rtol=1e-4, atol=1e-4)
        one = families.noise_in(pupil.scheduler, said[:1], noisy[:1], time[0])
        torch.testing.assert_close(one, noise[:1], rtol=1e-4, atol=1e-4)


# Their equations, in a few literal lines


def test_esd_learns_its_equation(pipe):
    pupil, random = pupil_of(pipe), torch.Generator()
    found = _esd.loss(pupil, pupil.unet, 1.5, random.manual_seed(3))
    random.manual_seed(3)
    c = pupil.one_of(random)
    z, t, _ = pupil.sampled(pupil.unet, c, random)

    def e(embeds):
        return pipe.unet(z, t, encoder_hidden_states=embeds).sample

    wanted = e(pupil.empty) - 1.5 * (e(c) - e(pupil.empty))
    torch.testing.assert_close(found, (e(c) - wanted).square().mean(), rtol=1e-4, atol=1e-7)


def test_race_disturbs_within_its_ball_and_against_its_own_prediction(pipe):
    pupil, random = pupil_of(pipe), torch.Generator().manual_seed(0)
    c = pupil.one_of(random)
    z, time, noise = pupil.sampled(pupil.unet, c, random)
    begin = random.get_state()

    def miss(read):
        return mse_loss(
            families.noise_in(pupil.scheduler, pupil.predict(pupil.unet, z, time, read), z, time), noise
        ).item()

    found = {}
    for steps in (0, 10):
        random.set_state(begin)
        read = race.disturbed(pupil, c, z, time, noise, random, epsilon=0.1, steps=steps)
        found[steps] = miss(read)
        assert (read - c).abs().max() <= 0.1 + 1e-6
        assert steps == 0 or (read.min() >= c.min() and read.max() <= c.max())
    assert found[10] < found[0]


def test_concept_prune_takes_the_largest_scores_of_each_row():
    scores = torch.tensor([[1.0, 5.0, 3.0, 2.0], [4.0, 0.0, 0.0, 9.0]])
    assert concept_prune.best(scores, 0.5).tolist() == [[False, True, True, False], [True, False, False, True]]


def test_concept_prune_counts_as_its_card_says(pipe):
    """Against a loop over one layer: what goes is among the best for the concept, and better than for the target."""
    numbers = {"steps": 3, "templates": TEMPLATES, "progress": False}
    edit = methods.run("concept_prune", pipe, "dog", target="cat", ratio=0.1, first=0.34, **numbers)
    name, indices = next(iter(edit.changes.items()))
    layer = pipe.unet.get_submodule(name.removeprefix("unet.").removesuffix(".weight"))
    norms = {}
    for text in ("dog", "cat"):
        seen = []
        handle = layer.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].flatten(0, 1)))
        prompts = [template.format(text) for template in TEMPLATES]
        generate(pipe, prompts, [0, 0], steps=3, guidance=7.5, batch_size=2, progress=False)
        handle.remove()
        norms[text] = (seen[0] / seen[0].norm(dim=1, keepdim=True)).square().sum(0).sqrt()
    rows, columns = layer.weight.shape
    k, wanted = round(0.1 * columns), []
    for row in range(rows):
        ours, other = (layer.weight[row].abs() * norms[text] for text in ("dog", "cat"))
        for column in ours.topk(k).indices.sort().values.tolist():
            if ours[column] > other[column]:
                wanted.append(row * columns + column)
    assert indices.tolist() == wanted and 0 < len(wanted) <= rows * k


def test_the_learnt_mask_is_hard_and_has_a_gradient():
    from rece.methods.pruning import mask

    numbers = torch.tensor([-1.0, 0.5, 2.0], requires_grad=True)
    mask(numbers).sum().backward()
    assert mask(numbers).tolist() == [0.0, 1.0, 1.0]
    torch.testing.assert_close(numbers.grad, numbers.sigmoid().mul(1 - numbers.sigmoid()).detach())


def test_mace_solves_both_of_its_least_squares():
    random = torch.Generator().manual_seed(0)
    E, F, P = (torch.randn(n, 6, generator=random, dtype=torch.float64) for n in (4, 4, 9))
    W = torch.randn(5, 6, generator=random, dtype=torch.float64)
    PP = 0.3 * P.T @ P

    def first(V):
        kept = 0.3 * ((V - W) @ P.T).square().sum() + 2.0 * (V - W).square().sum()
        return ((V @ E.T) - W @ F.T).square().sum() + kept

    V = (W @ solver.edit_map(E, F, PP, lamb=2.0)).requires_grad_()
    assert torch.autograd.grad(first(V), V)[0].abs().max() < 1e-9

    Cs = [torch.randn(3, 6, generator=random, dtype=torch.float64) for _ in "ab"]
    sides = [[torch.randn(*shape, generator=random).double() for shape in ((5, 1), (1, 6))] for _ in "ab"]
    loras = [{"x": tuple(pair)} for pair in sides]

    def second(V):
        kept = 0.3 * (V @ P.T).square().sum() + 2.0 * V.square().sum()
        return kept + sum(((V - up @ down) @ C.T).square().sum() for (up, down), C in zip(sides, Cs, strict=True))

    V = mace.fused(loras, Cs, PP, 2.0)["x"].requires_grad_()
    assert torch.autograd.grad(second(V), V)[0].abs().max() < 1e-9


def test_mace_matches_what_stands_around_the_concept(pipe):
    E, F = mace.rows_of(pipe, "dog", "cat", ("a {} b",))
    own, other = texts.encode(pipe, ["a dog b", "a cat b"])
    at = texts.last_position(pipe, "a dog") + 1
    torch.testing.assert_close(E[0], own[at])
    torch.testing.assert_close(F[0], other[texts.last_position(pipe, "a cat") + 1])
    assert len(E) == len(F) == len(own) - at


def test_speed_is_its_closed_form_for_one_concept():
    """Without invariant tokens W' - W = W (a - c) w^T with w = P c / (ridge + c^T P c)."""
    random = torch.Generator().manual_seed(0)
    C, R = (torch.randn(n, 6, generator=random, dtype=torch.float64) for n in (1, 3))
    P = speed.null_space(R, 1e-9, 6)
    found = C @ P @ speed.refined(C, P, torch.zeros(0, 6, dtype=torch.float64), 2.0, 0.5)
    torch.testing.assert_close(found, C @ P / (2.0 + (C @ P @ C.T)))
    torch.testing.assert_close(found @ R.T, torch.zeros(1, 3, dtype=torch.float64))  # preserved tokens see nothing


def test_speed_keeps_invariant_tokens_as_lamb_falls():
    random = torch.Generator().manual_seed(0)
    C, K = (torch.randn(n, 6, generator=random, dtype=torch.float64) for n in (2, 2))
    P = torch.eye(6, dtype=torch.float64)
    moved = [(C @ P @ speed.refined(C, P, K, 1.0, lamb) @ K.T).norm().item() for lamb in (1e3, 1.0, 1e-9)]
    assert moved[0] > moved[1] > moved[2] and moved[2] < 1e-6


def test_guarded_layers_hold_their_bound_in_every_layer(pipe):
    edit = methods.run("guarded_layers", pipe, "dog", preserve=["cat", "a bird"], mu=1.0)
    c = texts.last_tokens(pipe, ["dog"])[0]
    before = layers.originals(pipe)
    for name, edited in edit.readers(pipe).items():
        V, U = before[name].double(), -edit.changes[f"unet.{name}.weight"][0].double()
        W, wanted = V - U @ (U.T @ V), V @ c
        torch.testing.assert_close(edited.double(), W, rtol=0, atol=1e-5)
        best = torch.linalg.pinv(W, rtol=1e-6) @ wanted  # rounded weights have an inverse, of a million lengths
        H = torch.cat([torch.randn(500, len(c), dtype=torch.float64) * 5, c[None], best[None]])
        reached = (H @ W.T - wanted).norm(dim=1).min()
        torch.testing.assert_close(reached, (U.T @ wanted).norm(), rtol=1e-4, atol=1e-6)
    U = guarded_layers.directions(V, torch.eye(len(c)).double(), c[None], 1.0, 3)
    torch.testing.assert_close(U.T @ U, torch.eye(U.shape[1], dtype=torch.float64))


def test_sld_is_its_equations_step_by_step():
    random = torch.Generator().manual_seed(0)
    settings = {"scale": 3.0, "threshold": 0.1, "momentum": 0.3, "beta": 0.4, "warm_up": 0.2}
    hook = sld.Hook({"safety": torch.zeros(1, 2, 2), "empty": torch.zeros(1, 2, 2)}, **settings)
    hook.nu, nu = None, torch.zeros(1, 3)
    for step in range(10):
        u, p, s = (torch.randn(1, 3, generator=random) for _ in range(3))
        hook.step = step
        found = hook.away(u, p, s, 10)
        wanted = []
        for i in range(3):
            phi = 0.0 if p[0, i] - s[0, i] >= 0.1 else min(abs(3.0 * (p[0, i] - s[0, i]).item()), 1.0)
            g = phi * (s[0, i] - u[0, i]).item() + 0.3 * nu[0, i].item()
            nu[0, i] = 0.4 * nu[0, i] + 0.6 * g
            wanted.append(g if step >= 2 else 0.0)
        assert found[0].tolist() == pytest.approx(wanted, abs=1e-5)


def test_sld_leaves_a_pass_without_guidance_alone(pipe):
    z, c = torch.randn(2, 4, 8, 8), texts.encode(pipe, ["dog", "cat"]).float()
    empty = texts.encode(pipe, ["", ""]).float()
    with methods.run("sld", pipe, "dog", warm_up=0.0).on(pipe):
        acted = [pipe.unet(z, torch.tensor(500), encoder_hidden_states=embeds).sample for embeds in (c, empty)]
    for embeds, found in zip((c, empty), acted, strict=True):
        assert torch.equal(pipe.unet(z, torch.tensor(500), encoder_hidden_states=embeds).sample, found)


def test_sld_begins_anew_with_every_drawing_wherever_its_sampler_starts(pipe):
    """A drawing that begins in the middle has not the momentum of the one before, of as many rows or of others."""
    both, later = texts.encode(pipe, ["", "dog"]).float(), [torch.tensor(500), torch.tensor(100)]
    pipe.scheduler.set_timesteps(10)
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def drawn(rows: torch.Tensor) -> list[torch.Tensor]:
        embeds = both.repeat_interleave(len(rows), 0)
        return [pipe.unet(torch.cat([rows, rows]), time, encoder_hidden_states=embeds).sample for time in later]

    with methods.run("sld", pipe, "dog", warm_up=0.0).on(pipe):
        first, other, second = drawn(z[:1]), drawn(z), drawn(z[:1])
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one, two)
    torch.testing.assert_close(other[1][::2], first[1], rtol=1e-4, atol=1e-5)


def test_sld_keeps_its_momentum_where_a_sampler_repeats_a_time(pipe, monkeypatch):
    pipe.scheduler, began, away = PNDMScheduler(skip_prk_steps=True, steps_offset=1), [], sld.Hook.away
    monkeypatch.setattr(sld.Hook, "away", lambda hook, *given: began.append(hook.nu is None) or away(hook, *given))
    with methods.run("sld", pipe, "dog").on(pipe):
        for _ in range(2):
            generate(pipe, ["dog"], [0], steps=4, batch_size=1, progress=False)
    assert began == [True, False, False, False, False] * 2


@pytest.mark.parametrize("method", ["sld", "semantic_surgery"])
def test_concepts_that_no_text_holds_together_are_refused(pipe, method):
    with pytest.raises(ValueError, match="concept: .* tokens more than this model reads"):
        methods.run(method, pipe, ["abcdefghijklmno", "pqrstuvwxyzabcd"])


def test_receler_is_silent_at_first_and_speaks_outside_of_its_mask_at_a_price(pipe):
    width, n = 32, 2
    said = {0: torch.randn(n, 16, width)}
    seen = torch.zeros(n, 1, 2, 2, dtype=torch.bool)
    seen[:, :, 0, 0] = True  # a quarter of the picture: rows 0, 1, 4, 5 of the sixteen places
    out = [place for place in range(16) if place not in (0, 1, 4, 5)]
    wanted = said[0].square().mean(2)[:, out].mean()
    torch.testing.assert_close(receler.outside(said, seen), wanted)
    state = {"down.0": torch.randn(4, width), "inner.0": torch.randn(4), "up.0": torch.zeros(width, 4)}
    hook = receler.Hook(state | {"outer.0": torch.zeros(width)})
    x = torch.randn(n, 16, width)
    assert torch.equal(hook.adding(0, {})(None, None, x), x)


def test_attention_is_that_of_the_layers(pipe):
    """The shares that are read give the layers' own outputs."""
    c, z = texts.encode(pipe, ["dog"]).float(), torch.randn(1, 4, 8, 8)
    outputs, name = {}, next(n for n, _ in pipe.unet.named_modules() if n.endswith(".attn2"))
    layer = pipe.unet.get_submodule(name)
    handle = layer.register_forward_hook(lambda _, args, found: outputs.update(found=found))
    shares = _watching.attention(pipe.unet, lambda: pipe.unet(z, torch.tensor(5), encoder_hidden_states=c))[name]
    handle.remove()
    assert shares.sum(3).allclose(torch.ones(())) and math.sqrt(shares.shape[2]).is_integer()
    values = layer.to_v(c).unflatten(2, (layer.heads, -1)).transpose(1, 2)
    found = layer.to_out[0]((shares @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(found, outputs["found"], rtol=1e-4, atol=1e-5)


def test_where_a_token_is_seen():
    shares = {"a": torch.zeros(1, 2, 16, 3), "b": torch.zeros(1, 2, 4, 3)}
    shares["a"][0, :, 5, 1], shares["a"][0, :, 6, 1] = 1.0, 0.05
    seen = _watching.where(shares, range(1, 2), 16)
    assert seen.shape == (1, 1, 4, 4) and seen.flatten().nonzero().flatten().tolist() == [5]
