"""Attacks do what their equations say; what they return is what was attacked."""

from contextlib import nullcontext
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch

from rece import Eraser, attacks, erase, layers, texts
from rece.attacks import Attempts, _denoise, _tokens, unlearndiff
from rece.attacks._words import reword
from rece.images import generate

DOG = {"name": "dog", "words": ["dog", "hot dog", "hound"], "held_out": ["ape", "cur"], "pairs": [["a dog", "a"]]}
PROMPTS, SEEDS = ["a dog", "my dog", "dog b"], [7, 8, 9]


@pytest.fixture
def victim():
    pipe = tiny.sd()
    return erase(pipe, "dog", progress=False).apply(pipe)


def run(name, victim, original, prompts=PROMPTS, seeds=SEEDS, concept=DOG, **budget):
    return attacks.run(name, victim, prompts, seeds, original=original, concept=concept, **budget)


# The common part


def test_every_attack_declares_its_access_and_what_it_reads_of_the_victim():
    assert {"plain", "synonym", "paraphrase", "concept_vector", "closed_form", "unlearndiff"} <= set(attacks.names())
    for name in attacks.names():
        access, needs = attacks.access(name), attacks.needs(name)
        assert access in ("none", "black", "grey", "white")
        assert isinstance(needs, tuple) and set(needs) <= {"images", "text encoder", "weights", "map"}
        assert bool(needs) is (access not in ("none", "grey"))
    with pytest.raises(ValueError, match="choose one of"):
        attacks.needs("_denoise")


def test_attacks_that_need_nothing_of_the_victim_do_not_look_at_it(pipe):
    budgets = {"ring_a_bell": {"length": 2, "generations": 1}, "mma": {"length": 2, "steps": 1, "batch": 2}}
    for name in attacks.names():
        if not attacks.needs(name):
            assert len(run(name, None, pipe, **budgets.get(name, {}))) == 3


GRADIENT = ("inversion", "p4d_k", "p4d_n", "unlearndiff")
TOKENS = ("closed_form", "concept_vector", "mma", "ring_a_bell")


def test_which_attacks_apply_to_which_victims(victim, pipe, xl):
    pixart = tiny.pixart()
    for name in attacks.names():
        assert attacks.applies(name, victim) == ""
        assert bool(attacks.applies(name, pipe)) is (name == "reachable")
        assert ("tokens and nothing else" in attacks.applies(name, xl)) is (name in (*GRADIENT, *TOKENS))
        assert ("tokens and nothing else" in attacks.applies(name, pixart)) is (name in TOKENS)
        assert ("must have a UNet" in attacks.applies(name, pixart)) is (name in GRADIENT)
    edited = erase(xl, "dog", progress=False).apply(xl)
    assert "tokens and nothing else" in attacks.applies("reachable", edited)
    assert "must carry an eraser" in attacks.applies("reachable", pipe)
    victim.scheduler.register_to_config(prediction_type="sample")
    for name in attacks.names():
        assert ("prediction_type 'sample'" in attacks.applies(name, victim)) is (name in GRADIENT)
    with pytest.raises(ValueError, match="victim must carry an eraser"):
        run("reachable", pipe, pipe)


def test_budget_items_are_the_keywords_of_an_attack_and_of_its_settings():
    shared = [one.name for one in fields(_denoise.Settings)]
    assert attacks.budget_items("plain") == [] and attacks.budget_items("closed_form") == ["lamb"]
    assert attacks.budget_items("unlearndiff") == ["tokens", "times", *shared]
    assert attacks.budget_items("p4d_k") == ["every", *shared]
    assert attacks.budget_items("inversion") == ["space", "tokens", "images_per", *shared]
    assert {"updates", "lr", "check_every", "bf16", "repeat"} <= set(shared)


@pytest.mark.parametrize("check_every, candidates", [(None, 1), (4, 2), (5, 1), (2, 3)])
def test_candidates_come_after_every_so_many_updates_and_at_the_end(victim, pipe, check_every, candidates):
    quick = {"updates": 5, "check_every": check_every, "steps": 1, "score_times": 1, "progress": False}
    assert {len(x) for x in run("p4d_n", victim, pipe, tokens=2, **quick).losses} == {candidates}
    learnt = run("inversion", victim, pipe, images_per=1, **quick)
    assert {len(x) for x in learnt.losses} == {candidates + 1}


def test_plain_is_labelled_and_timed(victim, pipe):
    attempts = run("plain", victim, pipe)
    assert attempts.prompts == PROMPTS and attempts.seeds == SEEDS and attempts.embeds is None
    assert (attempts.attack, attempts.access, attempts.evaluations) == ("plain", "none", 0) and attempts.seconds > 0


@pytest.mark.parametrize("name", ["planes", "__init__", ""])
def test_unknown_attack(victim, pipe, name):
    with pytest.raises(ValueError, match="choose one of closed_form, concept_vector, .*unlearndiff"):
        run(name, victim, pipe)


def test_unknown_budget_item(victim, pipe):
    with pytest.raises(TypeError, match="'unlearndiff' has no budget item 'tokenz': tokens, times, updates, lr"):
        run("unlearndiff", victim, pipe, tokenz=3)
    with pytest.raises(TypeError, match="it takes none"):
        run("plain", victim, pipe, eta=3)


@pytest.mark.parametrize("prompts, seeds", [([], []), (["a dog"], [1, 2]), ("a dog", [1] * 5)])
def test_prompts_and_seeds_must_match(victim, pipe, prompts, seeds):
    with pytest.raises(ValueError, match="prompts and seeds"):
        run("plain", victim, pipe, prompts, seeds)


@pytest.mark.parametrize(
    "attempts",
    [
        Attempts(["a", 'b "é"\n'], [1, 2**40], losses=[[0.1, 1e-30], []], evaluations=7, seconds=0.1, access="white"),
        Attempts(None, [3], torch.rand(1, 4, 5, dtype=torch.float64), attack="closed_form"),
    ],
)
def test_attempts_survive_a_file(tmp_path, attempts):
    path = tmp_path / "new" / "attempts.safetensors"
    attempts.save(path)
    loaded = Attempts.load(path)
    apart = ("embeds", "seconds")  # equal attempts give equal files, whatever time they took
    assert {k: v for k, v in vars(loaded).items() if k not in apart} == {
        k: v for k, v in vars(attempts).items() if k not in apart
    }
    assert loaded.seconds == 0
    assert (loaded.embeds is None) == (attempts.embeds is None)
    if attempts.embeds is not None:
        torch.testing.assert_close(loaded.embeds, attempts.embeds, rtol=0, atol=0)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_broken_files(tmp_path):
    path = tmp_path / "attempts.safetensors"
    with pytest.raises(FileNotFoundError, match="no file of attempts"):
        Attempts.load(path)
    Attempts(None, [3], torch.rand(1, 4, 5)).save(path)
    for content in (path.read_bytes()[:-20], path.read_bytes()[:30], b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a whole file of attempts"):
            Attempts.load(path)


@pytest.mark.parametrize(
    "fields",
    [
        {"prompts": None, "seeds": [1]},
        {"prompts": ["a"], "seeds": [1], "embeds": torch.zeros(1, 2, 3)},
        {"prompts": ["a", "b"], "seeds": [1]},
        {"prompts": ["a"], "seeds": [1], "losses": [[1.0], [2.0]]},
    ],
)
def test_attempts_must_be_consistent(fields):
    with pytest.raises(ValueError, match="attempts"):
        Attempts(**fields)


# Words


def test_synonym_and_paraphrase(victim, pipe):
    prompts, seeds = ["a dog in dogma style"] * 20, list(range(20))
    synonyms, paraphrases = (run(name, victim, pipe, prompts, seeds).prompts for name in ("synonym", "paraphrase"))
    assert set(synonyms) == {"a hot dog in dogma style", "a hound in dogma style"}
    assert set(paraphrases) == {"an ape in dogma style", "a cur in dogma style"}


def test_reword_depends_on_prompt_and_seed_alone():
    prompts, seeds = [f"a dog {i}" for i in range(12)], list(range(12))
    all_words = reword(prompts, seeds, [DOG], "held_out")
    assert reword(prompts[::-1], seeds[::-1], [DOG], "held_out") == all_words[::-1]
    assert reword(prompts[3:5], seeds[3:5], [DOG], "held_out") == all_words[3:5]


def test_reword_takes_the_longest_word_and_keeps_the_rest():
    eat = {"name": "hot dog", "words": ["hot dog"], "held_out": ["frank+(ter)"]}
    assert reword(["Hot dog, a hot dog"], [1], [eat], "held_out") == ["Hot dog, a frank+(ter)"]
    joint = [
        {"name": "dog", "words": ["dog"], "held_out": ["cur"]},
        eat,
        {"name": "cat", "words": ["cat"], "held_out": ["elf"]},
    ]
    texts = ["A hot dog", "the dog.", "a cat's cat", "A cat"]
    assert reword(texts, [1] * 4, joint, "held_out") == ["A frank+(ter)", "the cur.", "an elf's elf", "An elf"]


def test_reword_refuses():
    with pytest.raises(ValueError, match="'a cat' names no word of dog"):
        reword(["a cat"], [1], [DOG], "words")
    with pytest.raises(ValueError, match="'cat' has no 'words' beside 'cat'"):
        reword(["a cat"], [1], [{"name": "cat", "words": ["cat"]}], "words")
    with pytest.raises(ValueError, match="'cat' has no 'held_out'"):
        reword(["a cat"], [1], [{"name": "cat", "words": ["cat"]}], "held_out")


# Embeddings


def test_concept_vector(victim, pipe):
    none, one, three = (run("concept_vector", victim, pipe, eta=eta).embeds for eta in (0, 1, 3))
    torch.testing.assert_close(none, texts.encode(pipe, PROMPTS), rtol=0, atol=0)
    torch.testing.assert_close(three - none, 3 * (one - none))
    having, lacking = texts.encode(pipe, ["a dog", "a"])
    torch.testing.assert_close(one - none, (having - lacking).expand_as(one))
    pairs = [["a dog", "a"], ["b dog", "b"], ["c dog", "c"]]
    several = run("concept_vector", victim, pipe, concept=[{**DOG, "pairs": pairs[:1]}, {**DOG, "pairs": pairs[1:]}])
    together = run("concept_vector", victim, pipe, concept={**DOG, "pairs": pairs})
    torch.testing.assert_close(several.embeds, together.embeds)
    with pytest.raises(ValueError, match="pairs"):
        run("concept_vector", victim, pipe, concept={"name": "dog", "words": ["dog"]})


@pytest.mark.parametrize("lamb", [0.001, 0.1, 10.0])
def test_closed_form_minimises_the_literal_objective(victim, pipe, lamb):
    attempts = run("closed_form", victim, pipe, lamb=lamb)
    both = zip(layers.prompt_layers(victim).values(), layers.prompt_layers(pipe).values(), strict=True)
    weights = [(edited.weight.double(), plain.weight.double()) for edited, plain in both]
    C = texts.encode(pipe, PROMPTS)

    def objective(X):
        return sum((X @ V.T - C @ W.T).square().sum((1, 2)) for V, W in weights) + lamb * X.square().sum((1, 2))

    X = attempts.embeds.clone().requires_grad_()
    (slope,) = torch.autograd.grad(objective(X).sum(), X)
    (scale,) = torch.autograd.grad(objective(C.requires_grad_()).sum(), C)
    assert slope.abs().max() < 1e-10 * scale.abs().max()
    literal = torch.stack([objective(C), objective(X)], 1)
    torch.testing.assert_close(torch.tensor(attempts.losses, dtype=torch.float64), literal.detach())
    assert (literal[:, 1] < literal[:, 0]).all()


def test_closed_form_undoes_an_invertible_map(pipe):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(32, 32, generator=generator, dtype=torch.float64)
    victim = Eraser(torch.eye(32, dtype=torch.float64) + 0.1 * noise).apply(tiny.sd())
    C = texts.encode(pipe, PROMPTS)
    distances = []
    for lamb in (1.0, 1e-2, 1e-4, 0.0):
        X = run("closed_form", victim, pipe, lamb=lamb).embeds
        distances.append(0.0)
        edited, plain = layers.prompt_layers(victim), layers.prompt_layers(pipe)
        for name, layer in edited.items():
            wanted = C @ plain[name].weight.double().T
            distances[-1] += ((X @ layer.weight.double().T - wanted).norm() / wanted.norm()).item()
    assert distances == sorted(distances, reverse=True) and distances[0] > 1e-2 and distances[-1] < 1e-5
    quick = {"steps": 3, "guidance": 1.0, "progress": False}  # guidance would read "" through the victim's own weights
    brought_back = generate(victim, seeds=SEEDS, embeds=X, **quick).astype(int)
    assert np.abs(brought_back - generate(pipe, PROMPTS, SEEDS, **quick)).max() <= 1
    assert np.abs(brought_back - generate(victim, PROMPTS, SEEDS, **quick)).max() > 1


def test_closed_form_reads_weights_in_a_sequential_offload(victim, pipe):
    from accelerate import cpu_offload

    found = run("closed_form", victim, pipe)
    for model in (victim, pipe):
        cpu_offload(model.unet, execution_device=torch.device("cpu"))
    assert next(iter(layers.prompt_layers(victim).values())).weight.is_meta
    again = run("closed_form", victim, pipe)
    assert torch.equal(again.embeds, found.embeds) and again.losses == found.losses


def test_closed_form_refuses(victim, pipe):
    with pytest.raises(ValueError, match="lamb must be a non-negative finite number"):
        run("closed_form", victim, pipe, lamb=-1.0)
    with pytest.raises(ValueError, match="one architecture"):
        run("closed_form", victim, tiny.sdxl())
    flat = Eraser(torch.diag((torch.arange(32) > 0).double())).apply(tiny.sd())
    nearly = Eraser(torch.diag(torch.tensor([3e-7, *[1.0] * 31]).double())).apply(tiny.sd())
    for singular in (flat, nearly):
        with pytest.raises(ValueError, match="raise lamb"):
            run("closed_form", singular, pipe, lamb=0.0)
    assert run("closed_form", flat, pipe, lamb=0.1).embeds.isfinite().all()


# UnlearnDiffAtk

QUICK = {"tokens": 3, "updates": 6, "times": 3, "steps": 2, "score_times": 2, "progress": False}


def telling(pipe, scale=20.0):
    """A random UNet hardly reads its prompt; here it does."""
    with torch.no_grad():
        for name, module in pipe.unet.named_modules():
            if name.endswith("attn2.to_out.0"):
                module.weight.mul_(scale)
    return pipe


def literal_loss(victim, original, image, prompt, noise, t):
    """The denoising loss of one image and prompt, without any of the attack's code."""
    pixels = torch.tensor(image[None]).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        x = original.vae.encode(pixels).latent_dist.mean * original.vae.config.scaling_factor
        a = victim.scheduler.alphas_cumprod[t]
        noisy = a.sqrt() * x + (1 - a).sqrt() * noise
        wanted = noise
        if victim.scheduler.config.prediction_type == "v_prediction":
            wanted = a.sqrt() * noise - (1 - a).sqrt() * x
        embeds = victim.encode_prompt(prompt, "cpu", 1, False)[0]
        return (victim.unet(noisy, t, encoder_hidden_states=embeds).sample - wanted).square().mean().item()


@pytest.mark.parametrize("shape", [(7,), (3, 50), (2, 4, 1000), (5, 1)])
def test_projection_is_the_nearest_point_of_the_simplex(shape):
    points = 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    nearest = unlearndiff.project(points)
    assert (nearest >= 0).all()
    torch.testing.assert_close(nearest.sum(-1), torch.ones(shape[:-1], dtype=torch.float64))
    # Variational inequality: <points - nearest, corner - nearest> <= 0 for every corner, hence every point, of it.
    away = points - nearest
    assert (away - (away * nearest).sum(-1, keepdim=True)).max() < 1e-12
    torch.testing.assert_close(unlearndiff.project(nearest), nearest)


def test_sampling_follows_the_weights():
    weights = torch.tensor([0.0, 0.25, 0.0, 0.75, 0.0])
    uniform = torch.tensor([[0.0], [0.2], [0.26], [0.9], [1 - 2**-24]])
    assert unlearndiff._sample(weights.expand(5, 5), uniform).tolist() == [1, 1, 3, 3, 3]


def test_words_are_exactly_the_tokens_that_stand_alone(pipe):
    words, ids = _tokens.whole_words(pipe.tokenizer)
    assert {"a", "z", "!", "7"} <= set(words) and len(set(words)) == len(words) == len(set(ids.tolist()))
    assert not set(ids.tolist()) & set(pipe.tokenizer.all_special_ids)
    shuffled = torch.randperm(len(words), generator=torch.Generator().manual_seed(0)).tolist()
    for start in range(0, len(words), 8):
        some = shuffled[start : start + 8]
        text = " ".join(words[i] for i in some)
        assert pipe.tokenizer(text, add_special_tokens=False).input_ids == [ids[i].item() for i in some]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_returned_prompts_have_the_stated_loss(victim, pipe, prediction):
    for model in (victim, pipe):
        model.scheduler.register_to_config(prediction_type=prediction)
    telling(victim)
    images = generate(pipe, PROMPTS, SEEDS, steps=2, progress=False)
    attempts = run("unlearndiff", victim, pipe, **QUICK)
    assert attempts.access == "white" and attempts.evaluations == 6 + 3 * 2
    for image, seed, prompt, plain, losses in zip(
        images, SEEDS, attempts.prompts, PROMPTS, attempts.losses, strict=True
    ):
        assert prompt.endswith(f" {plain}") and len(losses) == 3
        generator = torch.Generator().manual_seed(_denoise.mix(0, seed))
        noises = [torch.randn(1, 4, 8, 8, generator=generator) for _ in range(2)]
        literal = [
            literal_loss(victim, pipe, image, prompt, noise, t) for t, noise in zip((250, 750), noises, strict=True)
        ]
        assert min(losses) == pytest.approx(np.mean(literal), rel=1e-4)


def test_returned_prompts_tokenise_to_one_id_per_token(victim, pipe):
    attempts = run("unlearndiff", victim, pipe, **QUICK)
    words, ids = _tokens.whole_words(pipe.tokenizer)
    allowed = dict(zip(words, ids.tolist(), strict=True))
    for prompt, plain in zip(attempts.prompts, PROMPTS, strict=True):
        found, rest = pipe.tokenizer(prompt).input_ids, pipe.tokenizer(plain).input_ids
        assert found == [rest[0], *(allowed[word] for word in prompt.split()[:3]), *rest[1:]]


@pytest.mark.parametrize("word", ["q", "7", "!"])
def test_the_loss_falls_to_the_word_that_solves_it(victim, pipe, word, monkeypatch):
    # A model whose loss is (how far token 1 is from the embedding of `word`, along it)^2 + 1, behind a linear encoder.
    with torch.no_grad():
        for name, parameter in victim.text_encoder.named_parameters():
            if "out_proj" in name or "fc2" in name:
                parameter.zero_()
    goal = texts.encode(victim, [word])[0, 1].float()

    def forward(x, t, encoder_hidden_states):
        missing = 1 - encoder_hidden_states[:, 1] @ goal / (goal @ goal)
        return SimpleNamespace(sample=missing[:, None, None, None].expand(x.shape))

    monkeypatch.setattr(victim.unet, "forward", forward)
    monkeypatch.setattr(_denoise, "generate", lambda *_, **__: np.zeros((3, 16, 16, 3), np.uint8))
    budget = {**QUICK, "tokens": 1, "updates": 60, "check_every": 5, "lr": 0.05}
    attempts = run("unlearndiff", victim, pipe, **budget)
    assert attempts.prompts == [f"{word} {prompt}" for prompt in PROMPTS]
    for seed, losses in zip(SEEDS, attempts.losses, strict=True):  # nothing is left but the noise itself
        generator = torch.Generator().manual_seed(_denoise.mix(0, seed))
        noises = [torch.randn(4, 8, 8, generator=generator) for _ in range(2)]
        assert min(losses) == pytest.approx(np.mean([noise.square().mean() for noise in noises]), abs=1e-4)


def test_gradient_reaches_the_rows_and_the_forward_is_unchanged(pipe):
    encoder, ids = pipe.text_encoder, _tokens.Blanks(pipe, [["", prompt] for prompt in PROMPTS], 3, "").empty
    rows = encoder.get_input_embeddings()(ids[:, 1:4]).detach().requires_grad_()
    with texts.replaced(encoder, torch.arange(1, 4).expand(3, 3), rows):
        embeds = encoder(ids)[0]
    torch.testing.assert_close(embeds, encoder(ids)[0], rtol=0, atol=0)
    (slope,) = torch.autograd.grad(embeds[:, -1].square().sum(), rows)
    assert (slope.abs().sum(-1) > 0).all()


def test_same_seeds_same_tokens_and_prompts_do_not_touch_each_other(victim, pipe):
    first = run("unlearndiff", victim, pipe, **QUICK)
    again = run("unlearndiff", victim, pipe, **QUICK)
    assert first.prompts == again.prompts and first.losses == again.losses
    for other in (
        run("unlearndiff", victim, pipe, PROMPTS[::-1], SEEDS[::-1], **QUICK).prompts[::-1],
        run("unlearndiff", victim, pipe, **QUICK, batch_size=2).prompts,
        [run("unlearndiff", victim, pipe, [p], [s], **QUICK).prompts[0] for p, s in zip(PROMPTS, SEEDS, strict=True)],
    ):
        assert other == first.prompts
    assert run("unlearndiff", victim, pipe, **QUICK, repeat=1).prompts != first.prompts


@pytest.mark.parametrize("fails", [False, True])
def test_models_are_left_as_they_were(victim, pipe, fails, monkeypatch):
    if fails:
        monkeypatch.setattr(_denoise.Denoising, "offer", None)
    victim.unet.conv_in.weight.requires_grad_(False)
    before = {name: (p.detach().clone(), p.requires_grad) for name, p in victim.unet.named_parameters()}
    with pytest.raises(TypeError) if fails else nullcontext():
        run("unlearndiff", victim, pipe, **QUICK)
    for name, parameter in victim.unet.named_parameters():
        assert parameter.requires_grad == before[name][1] and parameter.grad is None
        torch.testing.assert_close(parameter.detach(), before[name][0], rtol=0, atol=0)
    assert all(p.requires_grad and p.grad is None for p in victim.text_encoder.parameters())


def test_bf16_runs(victim, pipe):
    attempts = run("unlearndiff", victim, pipe, **QUICK, bf16=True)
    assert np.isfinite(attempts.losses).all()


@pytest.mark.parametrize(
    "prompts, budget, message",
    [
        (
            ["a b c d e f g h i j k l m n o p q r s t", "a dog", "b"],
            {},
            "'a b c .* has 20 tokens, and with 3 more .* 22",
        ),
        (PROMPTS, {"tokens": 0}, "tokens must be"),
        (PROMPTS, {"updates": 1.5}, "updates must be"),
        (PROMPTS, {"check_every": 0}, "check_every must be"),
        (PROMPTS, {"times": 0}, "times must be"),
        (PROMPTS, {"repeat": -1}, "repeat must be a whole number, 0"),
    ],
)
def test_bad_budgets(victim, pipe, prompts, budget, message, monkeypatch):
    monkeypatch.delattr(_denoise, "generate")  # nothing may be drawn
    with pytest.raises(ValueError, match=message):
        run("unlearndiff", victim, pipe, prompts, **{**QUICK, **budget})


def test_unsupported_models(victim, pipe):
    with pytest.raises(ValueError, match="tokens and nothing else"):
        run("unlearndiff", tiny.sdxl(), pipe, **QUICK)
    victim.scheduler.register_to_config(prediction_type="sample")
    with pytest.raises(ValueError, match="prediction_type 'sample'"):
        run("unlearndiff", victim, pipe, **QUICK)


def test_the_longest_prompt_that_fits(victim, pipe):
    prompt = "a b c d e f g h i j k l m n o p q r s"
    assert run("unlearndiff", victim, pipe, [prompt], [1], **QUICK).prompts[0].endswith(f" {prompt}")
