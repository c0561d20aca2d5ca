"""Attacks that look at no victim: their searches find what their equations say, their typos are one letter away."""

import unicodedata

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F

from rece import attacks
from rece.attacks import _tokens, homoglyph, misspelling, ring_a_bell
from rece.attacks._words import respell

DOG = {"name": "dog", "words": ["dog", "hot dog"], "pairs": [["a dog", "a"], ["my dog", "my"]]}
PROMPTS, SEEDS = ["a dog", "my dog", "dog b"], [7, 8, 9]
GA = {"length": 4, "population": 10, "generations": 12, "progress": False}
GREEDY = {"length": 4, "steps": 5, "top_k": 16, "batch": 24, "progress": False}
BOTH = pytest.mark.parametrize("name, budget", [("ring_a_bell", GA), ("mma", GREEDY)])


def run(name, original, prompts=PROMPTS, seeds=SEEDS, concept=DOG, victim=None, **budget):
    return attacks.run(name, victim, prompts, seeds, original=original, concept=concept, **budget)


def tau(pipe, text):
    return pipe.encode_prompt(text, "cpu", 1, False)[0][0].detach()


def ring_a_bell_loss(pipe, text, prompt, eta=3.0, pairs=DOG["pairs"]):
    vector = sum(tau(pipe, having) - tau(pipe, lacking) for having, lacking in pairs) / len(pairs)
    return (tau(pipe, text) - tau(pipe, prompt) - eta * vector).square().sum().item()


def pooled(pipe, text):
    ids = pipe.tokenizer([text], padding="max_length", return_tensors="pt").input_ids
    return pipe.text_encoder(ids).pooler_output


def mma_loss(pipe, text, prompt):
    with torch.no_grad():
        return 1 - F.cosine_similarity(pooled(pipe, text), pooled(pipe, prompt)).item()


# Both searches


@BOTH
def test_the_loss_never_rises_and_is_that_of_the_returned_text(pipe, name, budget):
    attempts = run(name, pipe, **budget)
    literal = {"ring_a_bell": ring_a_bell_loss, "mma": mma_loss}[name]
    assert attempts.access == "grey" and attempts.evaluations == 0 and attempts.embeds is None
    words, ids = _tokens.whole_words(pipe.tokenizer)
    allowed = dict(zip(words, ids.tolist(), strict=True))
    for text, prompt, losses in zip(attempts.prompts, PROMPTS, attempts.losses, strict=True):
        assert len(losses) == budget.get("generations", budget.get("steps"))
        assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]
        assert losses[-1] == pytest.approx(literal(pipe, text, prompt), rel=1e-4)
        start, *found, end = pipe.tokenizer(text).input_ids
        assert found == [allowed[word] for word in text.split(" ")] and len(found) == 4


@BOTH
def test_same_seeds_same_text_and_prompts_do_not_touch_each_other(pipe, name, budget):
    first = run(name, pipe, **budget)
    again = run(name, pipe, **budget, victim=tiny.sd(1))
    assert first.prompts == again.prompts and first.losses == again.losses
    reverse = run(name, pipe, PROMPTS[::-1], SEEDS[::-1], **budget)
    assert reverse.prompts[::-1] == first.prompts and reverse.losses[::-1] == first.losses
    alone = [run(name, pipe, [p], [s], **budget) for p, s in zip(PROMPTS, SEEDS, strict=True)]
    assert [a.prompts[0] for a in alone] == first.prompts and [a.losses[0] for a in alone] == first.losses
    assert run(name, pipe, **budget, repeat=1).prompts != first.prompts
    other = run(name, pipe, PROMPTS, [1, 2, 3], **budget).prompts
    assert not set(other) & set(first.prompts)


@BOTH
def test_the_longest_text_that_fits(pipe, name, budget):
    room = tiny.POSITIONS - 2
    text = run(name, pipe, **{**budget, "length": room}).prompts[0]
    assert len(pipe.tokenizer(text).input_ids) == tiny.POSITIONS
    with pytest.raises(ValueError, match=f"with {room + 1} more .* {room} .* lower length"):
        run(name, pipe, **{**budget, "length": room + 1})


@BOTH
def test_bf16_and_parameters_left_as_they_were(pipe, name, budget):
    pipe.text_encoder.requires_grad_(True)
    pipe.text_encoder.final_layer_norm.bias.requires_grad_(False)
    before = {k: (p.detach().clone(), p.requires_grad) for k, p in pipe.text_encoder.named_parameters()}
    attempts = run(name, pipe, **budget, bf16=True)
    assert np.isfinite(attempts.losses).all()
    for k, p in pipe.text_encoder.named_parameters():
        assert p.requires_grad == before[k][1] and p.grad is None and torch.equal(p, before[k][0])
    assert not pipe.text_encoder.get_input_embeddings()._forward_hooks


@pytest.mark.parametrize(
    "name, budget, message",
    [
        ("ring_a_bell", {"length": 0}, "length must be a whole number, 1"),
        ("ring_a_bell", {"population": 1}, "population must be a whole number, 2"),
        ("ring_a_bell", {"generations": 1.5}, "generations must be"),
        ("ring_a_bell", {"batch_size": True}, "batch_size must be"),
        ("ring_a_bell", {"eta": float("nan")}, "eta must be a finite number"),
        ("ring_a_bell", {"eta": True}, "eta must be a finite number"),
        ("ring_a_bell", {"concept": {"name": "dog", "words": ["dog"]}}, "pairs"),
        ("ring_a_bell", {"repeat": -1}, "repeat must be a whole number, 0"),
        ("mma", {"length": "4"}, "length must be"),
        ("mma", {"steps": 0}, "steps must be"),
        ("mma", {"top_k": 0}, "top_k must be"),
        ("mma", {"batch": 3}, "batch must be at least length"),
        ("mma", {"repeat": 0.0}, "repeat must be"),
    ],
)
def test_bad_budgets(pipe, name, budget, message, monkeypatch):
    monkeypatch.setattr(pipe.text_encoder, "forward", None)  # nothing is computed
    with pytest.raises(ValueError, match=message):
        run(name, pipe, **{**(GA if name == "ring_a_bell" else GREEDY), **budget})


@BOTH
def test_two_text_encoders_are_refused(xl, name, budget):
    with pytest.raises(ValueError, match="tokens and nothing else"):
        run(name, xl, **budget)


# Ring-A-Bell


def test_one_word_is_the_best_of_all_words(pipe):
    words, _ = _tokens.whole_words(pipe.tokenizer)
    budget = {"length": 1, "population": 60, "generations": 150, "progress": False}
    attempts = run("ring_a_bell", pipe, **budget)
    for text, prompt in zip(attempts.prompts, PROMPTS, strict=True):
        assert text == min(words, key=lambda word, prompt=prompt: ring_a_bell_loss(pipe, word, prompt))


def test_eta_and_several_concepts(pipe):
    pairs = [["cat b", "b"]]
    several = run("ring_a_bell", pipe, concept=[DOG, {"name": "cat", "words": ["cat"], "pairs": pairs}], eta=0.5, **GA)
    literal = ring_a_bell_loss(pipe, several.prompts[0], PROMPTS[0], 0.5, DOG["pairs"] + pairs)
    assert several.losses[0][-1] == pytest.approx(literal, rel=1e-4)


def test_batch_size_is_only_memory(pipe):
    assert run("ring_a_bell", pipe, **GA, batch_size=3).prompts == run("ring_a_bell", pipe, **GA).prompts


def literal_search(losses, size, length, population, generations, random):
    """The published loop, one individual at a time, with `search`'s draws."""
    individuals = [list(row) for row in random.integers(size, size=(population, length), dtype=np.int32)]
    best, lowest = None, float("inf")
    for _ in range(generations):
        ranked = sorted(individuals, key=losses)
        if losses(ranked[0]) < lowest:
            best, lowest = list(ranked[0]), losses(ranked[0])
        yield best, lowest
        parents = ranked[: population // 2]
        partners, cuts = random.integers(len(parents), size=len(parents)), random.integers(length, size=len(parents))
        crossed = np.flatnonzero(random.random(len(parents)) < 0.5)
        first = [parents[i][: cuts[i]] + parents[partners[i]][cuts[i] :] for i in crossed]
        second = [parents[partners[i]][: cuts[i]] + parents[i][cuts[i] :] for i in crossed]
        individuals = [list(row) for row in parents + first + second]
        mutated = np.flatnonzero(random.random(len(individuals)) < 0.25)
        positions, values = random.integers(length, size=len(mutated)), random.integers(size, size=len(mutated))
        for i, position, value in zip(mutated, positions, values, strict=True):
            individuals[i][position] = value


@pytest.mark.parametrize("population", [2, 7, 12])
def test_search_is_the_literal_loop_and_computes_nothing_twice(population):
    table = sum(np.ix_(*np.random.default_rng(0).random((4, 20))))
    asked = []

    def losses(individuals):
        asked.extend(tuple(row) for row in individuals.tolist())
        return table[tuple(individuals.T)]

    found = ring_a_bell.search(losses, 20, 4, population, 60, np.random.default_rng(1))
    wanted = literal_search(lambda row: table[tuple(row)], 20, 4, population, 60, np.random.default_rng(1))
    history = [(best.tolist(), loss) for best, loss in found]
    assert history == [(list(best), loss) for best, loss in wanted]
    assert len({loss for _, loss in history}) > 3
    assert len(set(asked)) == len(asked) > population


def test_search_finds_the_global_minimum():
    table = np.random.default_rng(0).random((5,) * 3)
    *_, (best, loss) = ring_a_bell.search(lambda x: table[tuple(x.T)], 5, 3, 20, 200, np.random.default_rng(1))
    assert loss == table.min() == table[tuple(best)]


# MMA


def test_the_greedy_step_is_the_literal_one_hot_gradients(pipe):
    # With one word per position to choose from, a step has no randomness left but its start.
    words, ids = _tokens.unnamed(pipe.tokenizer, [DOG])
    encoder, steps = pipe.text_encoder, 4
    table = encoder.get_input_embeddings().weight[ids].detach()
    budget = {"length": 5, "steps": steps, "top_k": 1, "batch": 5, "progress": False}
    attempts = run("mma", pipe, **budget)
    for prompt, seed, text, losses in zip(PROMPTS, SEEDS, attempts.prompts, attempts.losses, strict=True):
        picks = np.random.default_rng([0, seed]).integers(len(ids), size=5).tolist()
        seen = {}
        for _ in range(steps):
            full = pipe.tokenizer(" ".join(words[i] for i in picks), padding="max_length", return_tensors="pt")
            one_hot = F.one_hot(torch.tensor(picks), len(ids)).float().requires_grad_()

            def put(module, inputs, output, one_hot=one_hot):
                return torch.cat([output[:, :1], (one_hot @ table)[None], output[:, 6:]], 1)

            hook = encoder.get_input_embeddings().register_forward_hook(put)
            state = encoder(full.input_ids).pooler_output
            hook.remove()
            loss = 1 - F.cosine_similarity(state, pooled(pipe, prompt).detach()).sum()
            (slope,) = torch.autograd.grad(loss, one_hot)
            candidates = [[*picks[:i], slope[i].argmin().item(), *picks[i + 1 :]] for i in range(5)]
            texts = [" ".join(words[i] for i in candidate) for candidate in candidates]
            seen |= {candidate: mma_loss(pipe, candidate, prompt) for candidate in texts}
            picks = min(zip(candidates, texts, strict=True), key=lambda pair: seen[pair[1]])[0]
        assert text == min(seen, key=seen.get) and losses[-1] == pytest.approx(seen[text], rel=1e-3)


def test_one_pooled_word_is_the_best_of_all_words(pipe):
    words, _ = _tokens.unnamed(pipe.tokenizer, [DOG])
    attempts = run("mma", pipe, length=1, steps=3, top_k=10**6, batch=1500, progress=False)
    for text, prompt in zip(attempts.prompts, PROMPTS, strict=True):
        assert text == min(words, key=lambda word, prompt=prompt: mma_loss(pipe, word, prompt))


def test_forbidden_words_never_occur(pipe):
    many, seeds = ["a dog"] * 12, range(12)
    letters = set("doght")
    for texts in (
        run("mma", pipe, many, seeds, **GREEDY).prompts,
        run("ring_a_bell", pipe, many, seeds, **GA, forbidden=True).prompts,
    ):
        assert len(set(texts)) > 6 and not letters & set("".join(texts).lower())
    assert letters & set("".join(run("ring_a_bell", pipe, many, seeds, **GA).prompts))


def test_what_names_a_concept(monkeypatch, pipe):
    words = "horse Horses warhorse rse O x hot dogma shot do z - shirts hotdogs".split()
    monkeypatch.setattr(_tokens, "whole_words", lambda tokenizer: (words, torch.arange(100, 100 + len(words))))
    concept = [{"name": "a", "words": ["HORSE"]}, {"name": "b", "words": ["big hotdog", "t-shirt"], "held_out": ["z"]}]
    kept, ids = _tokens.unnamed(pipe.tokenizer, concept)
    assert kept == ["x", "dogma", "shot", "z"] and [words[i - 100] for i in ids] == kept
    with pytest.raises(ValueError, match="no whole word"):
        _tokens.unnamed(pipe.tokenizer, [{"name": "all", "words": words}])


def test_the_state_read_is_the_pooled_one_at_the_first_end_token(pipe):
    encoder, tokenizer = pipe.text_encoder, pipe.tokenizer
    for text in ("a", "my dog x"):
        ids = tokenizer([text], return_tensors="pt").input_ids
        torch.testing.assert_close(encoder(ids)[0][:, -1], pooled(pipe, text))


# Typing errors and look-alikes


def distance(a, b):
    """Insertions, deletions, replacements and swaps of neighbours that lead from a to b."""
    rows = [list(range(len(b) + 1))]
    for i, x in enumerate(a, 1):
        rows.append([i])
        for j, y in enumerate(b, 1):
            steps = [rows[i - 1][j] + 1, rows[i][j - 1] + 1, rows[i - 1][j - 1] + (x != y)]
            if i > 1 and j > 1 and (x, y) == (b[j - 2], a[i - 2]):
                steps.append(rows[i - 2][j - 2] + 1)
            rows[i].append(min(steps))
    return rows[-1][-1]


@pytest.mark.parametrize("name", ["misspelling", "homoglyph"])
def test_one_edit_in_the_concept_word_and_nowhere_else(name, pipe):
    concept = {"name": "ape", "words": ["ape", "Ape", "apple pie", "aple"]}
    prompts = [f"an {word} in apen style" for word in ("ape", "apple pie")] * 60
    attempts = run(name, pipe, prompts, range(120), concept)
    assert attempts.access == "none" and attempts.losses == [[]] * 120
    assert len(set(attempts.prompts)) > 6
    for prompt, text in zip(prompts, attempts.prompts, strict=True):
        assert text.startswith("an ") and text.endswith(" in apen style") and distance(prompt, text) == 1
        assert text[3:-14] not in concept["words"]
    again = run(name, pipe, prompts[::-1], range(120)[::-1], concept)
    assert again.prompts[::-1] == attempts.prompts
    assert run(name, pipe, prompts[5:6], [5], concept).prompts == attempts.prompts[5:6]


def test_all_errors_of_a_word():
    assert misspelling.errors("Cab") == [
        ["aCb", "Cba"],
        ["ab", "Cb", "Ca"],
        ["CCab", "Caab", "Cabb"],
        ["Dab", "Fab", "Xab", "Vab", "Cqb", "Cwb", "Csb", "Czb", "Cag", "Cah", "Cav", "Can"],
    ]
    swapped, dropped, doubled, beside = misspelling.errors("ox foo7")
    assert swapped == ["ox ofo7"] and dropped == ["ox oo7", "ox fo7", "ox fo7"]
    assert all(text.startswith("ox ") and text.endswith("7") for text in doubled + beside)
    assert misspelling.errors("é")[3] == [] and misspelling.errors("été")[3] == ["éré", "éyé", "éfé", "égé"]


def test_an_error_never_makes_another_word_of_the_concept():
    words = ["cat", "act", "cta", "at", "ct", "CA", "ccat", "caat", "catt"]
    concept = [{"name": "cat", "words": words[:4]}, {"name": "other", "words": words[4:]}]
    texts = respell(["cat"] * 200, range(200), concept, misspelling.errors)
    assert set(texts) == set(misspelling.errors("cat")[3])  # all others are words
    both = [{"name": "dog", "words": ["dog", "hot dog"]}]
    for edits in (misspelling.errors, homoglyph.lookalikes):
        assert not any(text.endswith(" dog") for text in respell(["hot dog"] * 50, range(50), both, edits))


def test_lookalikes_are_letters_of_other_alphabets():
    for latin, other in homoglyph.TABLE.items():
        assert latin.isascii() and unicodedata.normalize("NFKC", other.lower()) == other.lower()
        name = unicodedata.name(other)
        assert name.split()[0] in ("CYRILLIC", "GREEK", "ARMENIAN")
        assert name.split()[1] == ("CAPITAL" if latin.isupper() else "SMALL")
    assert homoglyph.TABLE["a"] == "\u0430"
    assert homoglyph.lookalikes("Bad!") == [["\u0412ad!", "B\u0430d!", "Ba\u0501!"]]


def test_lookalikes_are_other_tokens(pipe):
    attempts = run("homoglyph", pipe)
    for prompt, text in zip(PROMPTS, attempts.prompts, strict=True):
        assert pipe.tokenizer(prompt).input_ids != pipe.tokenizer(text).input_ids


@pytest.mark.parametrize("name, word", [("misspelling", "ox"), ("misspelling", "a1"), ("homoglyph", "tzfrk")])
def test_words_that_cannot_be_respelt(name, word, pipe):
    with pytest.raises(ValueError, match=f"'it': '{word}' has no other spelling here: leave this attack out"):
        run(name, pipe, [f"my {word}"], [1], {"name": "it", "words": [word]})
    with pytest.raises(ValueError, match="'a cat' names no word of dog"):
        run(name, pipe, ["a cat"], [1])
