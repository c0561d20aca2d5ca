"""The attacks through the UNet, beside UnlearnDiffAtk: P4D and concept inversion, and what all of them share."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F

from rece import attacks, erase, texts
from rece.attacks import _denoise, _tokens, p4d_n
from rece.images import generate

DOG = {"name": "dog", "words": ["dog", "hot dog"]}
CAT = {"name": "cat", "words": ["cat"]}
PROMPTS, SEEDS = ["a dog", "my dog b c", "dog b"], [7, 8, 9]
QUICK = {"updates": 4, "check_every": 2, "steps": 2, "score_times": 2, "progress": False}
BUDGETS = {"p4d_n": {**QUICK, "tokens": 4}, "p4d_k": QUICK, "inversion": {**QUICK, "images_per": 3, "lr": 0.1}}


@pytest.fixture
def victim():
    """An erased pipeline whose UNet, unlike a random one, heeds its prompt."""
    pipe = tiny.sd()
    return telling(erase(pipe, "dog", progress=False).apply(pipe))


def telling(pipe, scale=20.0):
    with torch.no_grad():
        for name, module in pipe.unet.named_modules():
            if name.endswith("attn2.to_out.0"):
                module.weight.mul_(scale)
    return pipe


def run(name, victim, original, prompts=PROMPTS, seeds=SEEDS, concept=DOG, **budget):
    return attacks.run(name, victim, prompts, seeds, original=original, concept=concept, **BUDGETS[name] | budget)


def predicts(kind, *pipes):
    for pipe in pipes:
        pipe.scheduler.register_to_config(prediction_type=kind)


def task(victim, original=None, **other):
    settings = replace(p4d_n.SETTINGS, **{"score_times": 2, "batch_size": 2, "steps": 2, "progress": False} | other)
    return _denoise.Denoising(victim, original or victim, PROMPTS, SEEDS, settings, taught=original is not None)


def draws(seed, repeat=0):
    """The generator of a latent whose image has this seed, past the noise of the candidates' scores."""
    generator = torch.Generator().manual_seed(_denoise.mix(repeat, seed))
    torch.randn(2, 4, 8, 8, generator=generator)
    return generator


def latents_of(pipe, images):
    pixels = torch.tensor(images).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        return pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor


# What they share


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_noising_is_the_schedulers(victim, kind):
    predicts(kind, victim)
    denoising = task(victim)
    torch.testing.assert_close(
        denoising.latents, latents_of(victim, generate(victim, PROMPTS, SEEDS, steps=2, progress=False))
    )
    generators = [draws(seed) for seed in SEEDS]
    ts = torch.cat([torch.randint(1000, (1,), generator=generator) for generator in generators])
    noise = torch.stack([torch.randn(4, 8, 8, generator=generator) for generator in generators])
    noisy, found, wanted = denoising.noised([0, 1, 2])
    assert torch.equal(found, ts)
    torch.testing.assert_close(noisy, victim.scheduler.add_noise(denoising.latents, noise, ts))
    a = victim.scheduler.alphas_cumprod[ts].view(3, 1, 1, 1)
    velocity = a.sqrt() * noise - (1 - a).sqrt() * denoising.latents
    torch.testing.assert_close(wanted, noise if kind == "epsilon" else velocity)


@pytest.mark.parametrize("taught", [False, True])
def test_the_loss_and_its_gradient_are_literal(victim, pipe, taught):
    embeds = texts.encode(victim, PROMPTS).float().requires_grad_()
    asked = texts.encode(pipe, PROMPTS).float()
    denoising = task(victim, pipe if taught else None)
    rows, literal = [2, 0, 1], torch.zeros(3)
    noised = denoising.noised(rows)
    slope = torch.zeros_like(embeds)
    slope[rows] = denoising.slope(noised, embeds.detach()[rows], lambda soft: soft)
    for row in rows:
        generator = draws(SEEDS[row])
        t, noise = torch.randint(1000, (1,), generator=generator), torch.randn(1, 4, 8, 8, generator=generator)
        noisy = victim.scheduler.add_noise(denoising.latents[row : row + 1], noise, t)
        wanted = pipe.unet(noisy, t, encoder_hidden_states=asked[row : row + 1]).sample if taught else noise
        found = victim.unet(noisy, t, encoder_hidden_states=embeds[row : row + 1]).sample
        literal[row] = (found - wanted).square().mean()
    (wanted,) = torch.autograd.grad(literal.sum(), embeds)
    torch.testing.assert_close(denoising.losses_of(embeds[rows], *noised), literal[rows])
    torch.testing.assert_close(slope, wanted, rtol=1e-4, atol=1e-6 * wanted.abs().max().item())
    assert wanted.abs().max() > 0


def test_the_score_is_the_mean_loss_at_the_fixed_points(victim):
    embeds = texts.encode(victim, PROMPTS).float()
    denoising = task(victim)
    generators = [torch.Generator().manual_seed(_denoise.mix(0, seed)) for seed in SEEDS]
    literal = 0
    with denoising.underway():
        for t in (250, 750):
            noise = torch.stack([torch.randn(4, 8, 8, generator=generator) for generator in generators])
            noisy = victim.scheduler.add_noise(denoising.latents, noise, torch.tensor([t] * 3))
            found = victim.unet(noisy, t, encoder_hidden_states=embeds).sample
            literal = literal + (found - noise).square().mean((1, 2, 3)) / 2
        denoising.offer(list("abc"), lambda rows: embeds[rows])
    torch.testing.assert_close(torch.tensor(denoising.losses)[:, 0], literal)


def test_the_best_candidate_has_the_lowest_score(victim):
    denoising, embeds = task(victim), texts.encode(victim, PROMPTS).float()
    with denoising.underway():
        for candidates, factor in (("abc", 3), ("def", 1), ("ghi", 2)):
            denoising.offer(list(candidates), lambda rows, factor=factor: factor * embeds[rows])
    for best, losses, names in zip(denoising.best, denoising.losses, ("adg", "beh", "cfi"), strict=True):
        assert len(losses) == 3 and best == names[losses.index(min(losses))]


def test_timesteps_are_uniform_and_each_latents_own(victim):
    denoising, again = task(victim), task(victim)
    drawn = torch.stack([denoising.noised([0, 1, 2])[1] for _ in range(400)])
    assert drawn.min() < 25 and drawn.max() > 974 and abs(drawn.float().mean() - 499.5) < 40
    torch.testing.assert_close(torch.stack([again.noised([1])[1] for _ in range(400)])[:, 0], drawn[:, 1])


@pytest.mark.parametrize("bf16", [False, True])
def test_models_come_back_as_they_were(victim, bf16):
    def state():
        kinds = {name: type(processor) for name, processor in victim.unet.attn_processors.items()}
        needed = [p.requires_grad for model in (victim.unet, victim.text_encoder) for p in model.parameters()]
        return kinds, victim.text_encoder.config._attn_implementation, needed

    victim.unet.conv_in.weight.requires_grad_(False)
    before = state()
    with pytest.raises(KeyError), task(victim, bf16=bf16).underway():
        during = state()
        raise KeyError
    assert state() == before and not any(during[2])
    assert (during[:2] != before[:2]) is bf16


# P4D


def test_projection_is_the_brute_force_nearest_word(pipe):
    table = F.normalize(pipe.text_encoder.get_input_embeddings().weight.detach(), dim=-1)
    vectors = 3 * torch.randn(2, 5, table.shape[1], generator=torch.Generator().manual_seed(0))
    found = p4d_n.nearest(vectors, table)
    for row in range(2):
        for slot in range(5):
            cosines = [F.cosine_similarity(vectors[row, slot], word, dim=0).item() for word in table]
            assert found[row, slot] == int(np.argmax(cosines))


def test_one_update_is_a_literal_adamw_step_straight_through(victim, pipe, monkeypatch):
    images = generate(pipe, PROMPTS[:1], SEEDS[:1], steps=2, progress=False)
    seen = {}

    class Spy(torch.optim.AdamW):
        def step(self):
            (vectors,) = self.param_groups[0]["params"]
            seen.setdefault("before", vectors.clone()), seen.setdefault("slope", vectors.grad.clone())
            super().step()
            seen.setdefault("after", vectors.clone())

    monkeypatch.setattr(torch.optim, "AdamW", Spy)
    run("p4d_n", victim, pipe, PROMPTS[:1], SEEDS[:1], updates=1, lr=0.2, weight_decay=0.3)
    words, known = _tokens.whole_words(victim.tokenizer)
    embedding = victim.text_encoder.get_input_embeddings()
    generator = draws(SEEDS[0])
    picks = torch.randint(len(known), (4,), generator=generator)
    torch.testing.assert_close(seen["before"], embedding(known[picks])[None].detach())
    t, noise = torch.randint(1000, (1,), generator=generator), torch.randn(1, 4, 8, 8, generator=generator)
    noisy = victim.scheduler.add_noise(latents_of(pipe, images), noise, t)
    ids = _tokens.Blanks(victim, [["", ""]], 4, "").empty
    ids[0, 1:5] = known[picks]
    soft = embedding(known[picks])[None].detach().requires_grad_()
    with texts.replaced(victim.text_encoder, torch.arange(1, 5)[None], soft):
        embeds = victim.text_encoder(ids)[0]
    with torch.no_grad():
        asked = pipe.encode_prompt(PROMPTS[0], "cpu", 1, False)[0]
        wanted = pipe.unet(noisy, t, encoder_hidden_states=asked).sample
    loss = (victim.unet(noisy, t, encoder_hidden_states=embeds).sample - wanted).square().mean()
    (slope,) = torch.autograd.grad(loss, soft)
    torch.testing.assert_close(seen["slope"], slope, rtol=1e-3, atol=1e-4 * slope.abs().max().item())
    step = 0.2 * seen["slope"] / (seen["slope"].abs() + 1e-8)
    torch.testing.assert_close(seen["after"], seen["before"] * (1 - 0.2 * 0.3) - step, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["p4d_n", "p4d_k"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_returned_prompts_have_the_stated_loss(victim, pipe, name, kind):
    predicts(kind, victim, pipe)
    images = generate(pipe, PROMPTS, SEEDS, steps=2, progress=False)
    attempts = run(name, victim, pipe)
    assert attempts.access == "white" and attempts.evaluations == 4 + 2 * 2
    latents = latents_of(pipe, images)
    for row, (prompt, losses) in enumerate(zip(attempts.prompts, attempts.losses, strict=True)):
        generator, literal = torch.Generator().manual_seed(_denoise.mix(0, SEEDS[row])), 0.0
        for t in (250, 750):
            noise = torch.randn(1, 4, 8, 8, generator=generator)
            noisy = victim.scheduler.add_noise(latents[row : row + 1], noise, torch.tensor([t]))
            with torch.no_grad():
                found, wanted = (
                    model.unet(noisy, t, encoder_hidden_states=model.encode_prompt(text, "cpu", 1, False)[0]).sample
                    for model, text in ((victim, prompt), (pipe, PROMPTS[row]))
                )
            literal += (found - wanted).square().mean().item() / 2
        assert len(losses) == 2 and min(losses) == pytest.approx(literal, rel=1e-4)


def test_p4d_n_returns_its_words_alone(victim, pipe):
    words, ids = _tokens.whole_words(pipe.tokenizer)
    allowed = dict(zip(words, ids.tolist(), strict=True))
    for prompt in run("p4d_n", victim, pipe).prompts:
        assert len(prompt.split()) == 4
        assert pipe.tokenizer(prompt, add_special_tokens=False).input_ids == [allowed[w] for w in prompt.split()]


@pytest.mark.parametrize(
    "prompt, every, cuts",
    [
        ("", 3, [0]),
        ("a b c d", 3, [0, 3]),
        ("a b c", 3, [0, 3]),
        ("a b c d", 9, [0]),
        ("A dog, the b", 2, None),
        ("ab cd efgh", 3, [0, 4, 8]),
        ("ab cd efgh", 1, [0, 2, 2, 4, 4, 8, 8, 8, 8]),
    ],
)
def test_p4d_k_keeps_the_prompt_its_order_and_its_words(victim, pipe, prompt, every, cuts):
    own = pipe.tokenizer(prompt, add_special_tokens=False).input_ids
    pieces = pipe.tokenizer.convert_ids_to_tokens(own)
    ends = [0, *(i for i, piece in enumerate(pieces, 1) if piece.endswith("</w>"))]
    cuts = cuts or [min(end for end in ends if end >= at) for at in range(0, len(own) + 1, every)]
    assert len(cuts) == len(own) // every + 1
    (found,) = run("p4d_k", victim, pipe, [prompt], [5], every=every).prompts
    found = pipe.tokenizer(found, add_special_tokens=False).input_ids
    places = [cut + i for i, cut in enumerate(cuts)]
    assert [i for place, i in enumerate(found) if place not in places] == own
    assert {found[place] for place in places} <= set(_tokens.whole_words(pipe.tokenizer)[1].tolist())


def linear_encoder(pipe):
    """No attention and no MLP: a position's embedding depends on its own token alone."""
    with torch.no_grad():
        for name, parameter in pipe.text_encoder.named_parameters():
            if "out_proj" in name or "fc2" in name:
                parameter.zero_()


@pytest.mark.parametrize("name, word, at", [("p4d_n", "q", 1), ("p4d_k", "7", 1), ("p4d_k", "!", 5)])
def test_p4d_finds_the_word_that_solves_it(victim, pipe, name, word, at, monkeypatch):
    # The original predicts 1 and the victim how far along the embedding of `word` the token at position `at` is.
    linear_encoder(victim)
    ids = victim.tokenizer([""], padding="max_length", return_tensors="pt").input_ids
    ids[0, at] = victim.tokenizer.convert_tokens_to_ids(f"{word}</w>")
    goal = victim.text_encoder(ids)[0][0, at].detach()

    def forward(x, t, encoder_hidden_states):
        found = encoder_hidden_states[:, at] @ goal / (goal @ goal)
        return SimpleNamespace(sample=found[:, None, None, None].expand(x.shape))

    monkeypatch.setattr(victim.unet, "forward", forward)
    monkeypatch.setattr(pipe.unet, "forward", lambda x, t, encoder_hidden_states: SimpleNamespace(sample=x * 0 + 1))
    prompts = ["a b c d", "a b c"]
    monkeypatch.setattr(_denoise, "generate", lambda *_, **__: np.zeros((2, 16, 16, 3), np.uint8))
    budget = {"updates": 80, "check_every": 5, "weight_decay": 0.0}
    attempts = run(name, victim, pipe, prompts, [1, 2], **budget | {"lr": 0.5})
    for prompt, losses in zip(attempts.prompts, attempts.losses, strict=True):
        assert victim.tokenizer(prompt).input_ids[at] == ids[0, at]
        assert min(losses) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", ["p4d_n", "p4d_k"])
def test_same_seeds_same_prompts_whatever_the_company(victim, pipe, name):
    first = run(name, victim, pipe)
    again = run(name, victim, pipe)
    assert first.prompts == again.prompts and first.losses == again.losses
    for other in (
        run(name, victim, pipe, PROMPTS[::-1], SEEDS[::-1]).prompts[::-1],
        run(name, victim, pipe, batch_size=2).prompts,
        [run(name, victim, pipe, [p], [s]).prompts[0] for p, s in zip(PROMPTS, SEEDS, strict=True)],
    ):
        assert other == first.prompts
    assert run(name, victim, pipe, repeat=1).prompts != first.prompts


# Concept inversion


def another(pipe, seed):
    """The pipeline with another UNet that heeds its prompt."""
    return telling(type(pipe)(**{**pipe.components, "unet": tiny.sd(seed).unet}, requires_safety_checker=False))


@pytest.mark.parametrize("space, tokens, lr", [("word", 1, 0.5), ("word", 2, 0.5), ("rows", 1, 0.1)])
def test_inversion_lowers_the_loss_and_states_it(victim, pipe, space, tokens, lr):
    for model in (victim, another(pipe, 5)):
        attempts = run("inversion", model, pipe, space=space, tokens=tokens, lr=lr, updates=30, check_every=10)
        assert attempts.prompts is None and attempts.embeds.shape == (3, tiny.POSITIONS, 32)
        assert attempts.embeds.dtype == torch.float32 and attempts.embeds.isfinite().all()
        assert attempts.losses[0] == attempts.losses[1] == attempts.losses[2] and len(attempts.losses[0]) == 4
        assert min(attempts.losses[0]) < attempts.losses[0][0]
        assert attempts.evaluations == 3 * (30 + 4 * 2)


def test_a_word_stands_where_the_concepts_word_stood(victim, pipe):
    linear_encoder(victim)
    prompts = ["a dog b", "my hot dog, c", "dog"]
    attempts = run("inversion", victim, pipe, prompts, tokens=2, updates=2)
    for embeds, rest in zip(attempts.embeds, ["a ?? b", "my ??, c", "??"], strict=True):
        spelt = victim.tokenizer(rest.replace("??", "x y"), padding="max_length", return_tensors="pt").input_ids
        with torch.no_grad():
            plain = victim.text_encoder(spelt)[0][0]
        first = len(victim.tokenizer(rest.split("??")[0]).input_ids) - 1
        there = (embeds - plain).abs().amax(1) > 1e-3
        assert there.nonzero()[:, 0].tolist() == [first, first + 1]


def test_the_word_is_one_for_all_prompts_and_solves_the_task(victim, pipe, monkeypatch):
    # What lowers the victim's loss is a first coordinate of 2 at position 2, in the encoder's input.
    with torch.no_grad():
        for name, parameter in victim.text_encoder.named_parameters():
            if "out_proj" in name or "fc2" in name:
                parameter.zero_()
    monkeypatch.setattr(victim.text_encoder, "forward", lambda ids: (victim.text_encoder.get_input_embeddings()(ids),))

    def forward(x, t, encoder_hidden_states):
        missing = 2 - encoder_hidden_states[:, 2, 0]
        return SimpleNamespace(sample=x * 0 + 10 * missing[:, None, None, None])

    monkeypatch.setattr(victim.unet, "forward", forward)
    attempts = run("inversion", victim, pipe, ["a dog", "b dog c"], [1, 2], updates=80, check_every=80, lr=0.2)
    torch.testing.assert_close(attempts.embeds[0, 2], attempts.embeds[1, 2])
    assert attempts.embeds[0, 2, 0].item() == pytest.approx(2, abs=0.02)


def test_rows_add_one_matrix_to_the_prompt_without_the_word(victim, pipe):
    prompts = ["a dog b", "hot dog, c"]
    attempts = run("inversion", victim, pipe, prompts, [1, 2], space="rows")
    added = attempts.embeds - texts.encode(pipe, ["a b", ", c"]).float()
    assert added.abs().max() > 0.01
    torch.testing.assert_close(added[0], added[1], atol=1e-5, rtol=0)


def test_members_are_learnt_apart_and_order_is_nothing(victim, pipe):
    prompts, seeds = [*PROMPTS, "a cat", "cat b"], [*SEEDS, 10, 11]
    both = [CAT, DOG]
    first = run("inversion", victim, pipe, prompts, seeds, both)
    assert torch.equal(run("inversion", victim, pipe, prompts, seeds, both).embeds, first.embeds)
    assert first.losses[0] == first.losses[2] != first.losses[3] == first.losses[4]
    for other in (
        run("inversion", victim, pipe, prompts[::-1], seeds[::-1], both[::-1]).embeds.flip(0),
        torch.cat(
            [run("inversion", victim, pipe, prompts[a:b], seeds[a:b], both).embeds for a, b in ((0, 3), (3, 5))]
        ),
        run("inversion", victim, pipe, prompts, seeds, both, batch_size=4).embeds,
    ):
        torch.testing.assert_close(other, first.embeds, rtol=1e-3, atol=1e-3)
    redrawn = run("inversion", victim, pipe, prompts, seeds, both, repeat=1).embeds
    assert (redrawn - first.embeds).abs().max() > 0.01


def test_lessons_are_the_originals_images_of_the_prompts_by_other_seeds(victim, pipe, monkeypatch):
    drawn = {}

    def spy(original, prompts, seeds, **drawing):
        drawn.update(original=original, prompts=prompts, seeds=seeds)
        return generate(original, prompts, seeds, **drawing)

    monkeypatch.setattr(_denoise, "generate", spy)
    run("inversion", victim, pipe, images_per=7)
    assert drawn["original"] is pipe and len(set(drawn["seeds"])) == 7 and not set(drawn["seeds"]) & set(SEEDS)
    assert {drawn["prompts"].count(prompt) for prompt in PROMPTS} == {2, 3} and len(drawn["prompts"]) == 7


# All


@pytest.mark.parametrize("name", BUDGETS)
def test_models_are_left_alone_and_bf16_runs(victim, pipe, name):
    before = copy.deepcopy([part.state_dict() for part in (victim.unet, pipe.unet, pipe.text_encoder)])
    attempts = run(name, victim, pipe, bf16=True)
    assert np.isfinite(attempts.losses).all()
    for part, weights in zip((victim.unet, pipe.unet, pipe.text_encoder), before, strict=True):
        assert all(torch.equal(value, weights[key]) for key, value in part.state_dict().items())
        assert all(p.requires_grad and p.grad is None for p in part.parameters())


@pytest.mark.parametrize("name", BUDGETS)
@pytest.mark.parametrize(
    "budget, message",
    [
        ({"updates": 0}, "updates must be"),
        ({"check_every": 1.5}, "check_every must be"),
        ({"lr": -1}, "lr must be a non-negative"),
        ({"weight_decay": float("nan")}, "weight_decay must be"),
    ],
)
def test_bad_budgets(victim, pipe, name, budget, message, monkeypatch):
    monkeypatch.delattr(_denoise, "generate")  # nothing may be drawn
    with pytest.raises(ValueError, match=message):
        run(name, victim, pipe, **budget)


LONG = "dog a b c d e f g h i j k l m n o p q"


@pytest.mark.parametrize(
    "name, prompts, budget, message",
    [
        ("p4d_n", PROMPTS, {"tokens": 23}, "'' has 0 tokens, and with 23 more .* 22"),
        ("p4d_n", PROMPTS, {"tokens": True}, "tokens must be"),
        ("p4d_k", [LONG, "a", "b"], {"every": 3}, "'dog a b .* has 20 tokens, and with 7 more .* 22 .* every"),
        ("p4d_k", PROMPTS, {"every": 0}, "every must be"),
        ("inversion", [LONG, "a dog", "dog"], {"tokens": 8}, "has 17 tokens, and with 8 more .* 22 .* lower tokens"),
        ("inversion", PROMPTS, {"space": "words"}, "space must be 'word' or 'rows', not 'words'"),
        ("inversion", PROMPTS, {"images_per": 0}, "images_per must be"),
        ("inversion", ["a dog", "a bird", "dog"], {}, "'a bird' names no word of dog"),
    ],
)
def test_bad_calls(victim, pipe, name, prompts, budget, message, monkeypatch):
    monkeypatch.delattr(_denoise, "generate")
    with pytest.raises(ValueError, match=message):
        run(name, victim, pipe, prompts, **budget)


@pytest.mark.parametrize("name", BUDGETS)
def test_unsupported_models(victim, pipe, name):
    with pytest.raises(ValueError, match="tokens and nothing else"):
        run(name, tiny.sdxl(), pipe)
    if name != "inversion":
        predicts("v_prediction", victim)
        with pytest.raises(ValueError, match="victim must predict what original does"):
            run(name, victim, pipe)
    predicts("sample", victim)
    with pytest.raises(ValueError, match="prediction_type 'sample'"):
        run(name, victim, pipe)
