"""What models say of rollouts, against whole logits of one answer at a time."""

import jax
import numpy as np
import pytest

from llmjax import models, tree
from llmjax.objectives import Critic
from llmjax.rl import ModelReward, Players, RolloutConfig
from llmjax.rl.estimates import Estimator
from llmjax.rl.samples import rows
from tests.rl.small import CONFIG, Asked, drawn, writer

SIZES = [(3, 4), (1, 2), (5, 6), (2, 1), (4, 3)]
LENGTH = 14
REWARD = models.with_head(CONFIG, "reward")


def log_probs(params, tokens: np.ndarray, temperature: float) -> np.ndarray:
    """Of each next token of rows [B, S], [B, S - 1]; what is right of it does not matter."""
    hidden, _ = models.apply(params, tokens, CONFIG)
    scaled = np.asarray(models.logits(params, hidden, CONFIG), np.float64)[:, :-1] / temperature
    found = scaled - np.log(np.sum(np.exp(scaled), axis=-1, keepdims=True))
    return np.take_along_axis(found, tokens[:, 1:, None], axis=-1)[..., 0]


def values(params, tokens: np.ndarray, config) -> np.ndarray:
    """Of the state behind each token."""
    hidden, _ = models.apply(params, tokens, config)
    return np.asarray(models.logits(params, hidden, config))


@pytest.fixture(scope="module")
def params(draw):
    """Of a policy, a reference and a critic."""
    critic = Critic(models.with_head(CONFIG, "value"))
    made = draw(critic.spec(CONFIG) | {"reference": models.spec(CONFIG)})
    return made, critic


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_and_values_equal_those_of_whole_logits(params, temperature):
    params, critic = params
    players = Players(CONFIG, critic.policy, lambda params: params["reference"], critic)
    samples = drawn(SIZES)
    made = rows(samples, LENGTH)
    again = temperature != 1
    # 5 rows, 2 at a time; of one temperature, with logits at answers alone.
    found = Estimator(players, 2, temperature, 6 if again else None)(params, made, again=again)
    assert (found["old_log_probs"] is made["old_log_probs"]) != again
    tokens = made["tokens"]
    reference = log_probs(params["reference"], tokens, temperature)
    policy = log_probs(params["policy"], tokens, temperature)
    worth = values(params["critic"], tokens, critic.config)
    for row, sample in enumerate(samples):
        first = len(sample.prompt.tokens)
        drawn_at = np.s_[row, first : first + len(sample.tokens)]
        before = np.s_[row, first - 1 : first + len(sample.tokens) - 1]
        np.testing.assert_array_equal(tokens[drawn_at], sample.tokens)
        np.testing.assert_allclose(
            found["reference_log_probs"][before], reference[before], atol=1e-5
        )
        if again:
            np.testing.assert_allclose(found["old_log_probs"][before], policy[before], atol=1e-5)
        # V of the state in which a token is chosen: it does not know that token.
        np.testing.assert_allclose(found["old_values"][before], worth[before], atol=1e-5)
    elsewhere = made["targets"] < 0
    assert not found["reference_log_probs"][elsewhere].any()


def test_without_a_reference_there_is_nothing_to_ask(params):
    """Neither rows nor the model are touched; with a critic, values alone are new."""
    params, critic = params
    made = rows(drawn(SIZES), LENGTH)
    nobody = Players(CONFIG, critic.policy, None)
    assert Estimator(nobody, 2)(None, made, again=False) is made
    found = Estimator(Players(CONFIG, critic.policy, None, critic), 2)(params, made, again=False)
    assert set(found) - set(made) == {"old_values"}


def test_a_head_on_the_policy_reads_its_states(params):
    params, critic = params
    shared = Critic(critic.config, shared=True)
    both = params["policy"] | {"value_head": params["critic"]["head"]}
    players = Players(CONFIG, shared.policy, lambda _: params["reference"], shared)
    made = rows(drawn(SIZES[:2]), LENGTH)
    found = Estimator(players, 2)(both, made, again=False)
    hidden, _ = models.apply(params["policy"], made["tokens"], CONFIG)
    expected = models.logits({"head": params["critic"]["head"]}, hidden, critic.config)
    np.testing.assert_allclose(found["old_values"][0, :7], expected[0, :7], atol=1e-5)


def test_what_the_sampler_says_is_what_the_estimator_says(params):
    """Within 1e-5, also of a policy whose draws were filtered, and with the token that ends."""
    params, critic = params
    settings = RolloutConfig(prompts=6, samples=2, max_new_tokens=8, top_k=20, top_p=0.9)
    write = writer(settings)
    samples = write(write.ready(params["policy"]), next(Asked(6)), jax.random.key(0))
    assert len({sample.prompt.text for sample in samples[::2]}) == 6
    assert all(one.prompt is other.prompt for one, other in zip(*[iter(samples)] * 2, strict=True))
    made = rows(samples, LENGTH)
    players = Players(CONFIG, critic.policy, lambda params: params["reference"])
    found = Estimator(players, 4)(params, made, again=True)
    np.testing.assert_allclose(made["old_log_probs"], found["old_log_probs"], atol=1e-5)


def test_texts_and_ends(params):
    params, _ = params
    write = writer(RolloutConfig(prompts=8, samples=8, max_new_tokens=12))
    samples = write(write.ready(params["policy"]), next(Asked(8)), jax.random.key(1))
    ended = [sample for sample in samples if sample.ended]
    assert 0 < len(ended) < len(samples)
    for sample in samples:
        assert sample.ended == (sample.tokens[-1] == 3)
        assert (3 not in sample.tokens[:-1]) and (sample.ended or len(sample.tokens) == 12)
        kept = sample.tokens[:-1] if sample.ended else sample.tokens
        assert sample.text == " ".join(map(str, kept))


@pytest.mark.parametrize(("size", "length"), [(2, 11), (5, 32), (8, 20)])
def test_a_reward_is_that_at_the_last_token(draw, size, length):
    """Whatever padding there is and however many are judged at a time; of several the mean."""
    spec = models.spec(REWARD)
    several = [draw(spec), tree.map_with_path(lambda path, leaf: leaf * 0.9, draw(spec))]
    samples = drawn(SIZES)
    found = ModelReward(several, REWARD, batch_size=size, length=length)(samples)
    assert found.shape == (5,)
    for value, sample in zip(found, samples, strict=True):
        whole = np.concatenate([sample.prompt.tokens, sample.tokens])
        left = 13 - len(whole)  # of padding, on the left here
        tokens = np.pad(whole, (left, 0))[None]
        ids = (np.arange(13) >= left).astype(int)[None]
        positions = np.maximum(np.arange(13) - left, 0)[None]
        each = []
        for params in several:
            hidden, _ = models.apply(params, tokens, REWARD, segment_ids=ids, positions=positions)
            each.append(float(models.segment_rewards(params, hidden, REWARD, ids, 1)[0][0, 0]))
        assert value == pytest.approx(np.mean(each), abs=1e-5)


def test_what_is_no_reward_model_is_refused():
    with pytest.raises(ValueError, match="needs head.kind=reward, not lm"):
        ModelReward([{}], CONFIG, batch_size=2, length=8)
    with pytest.raises(ValueError, match="up to 32 tokens, but rows have 33"):
        ModelReward([{}], REWARD, batch_size=2, length=33)
