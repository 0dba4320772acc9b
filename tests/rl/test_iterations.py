"""Whole iterations with steps: on a mesh as on one device, and to a criterion of learning."""

import jax
import numpy as np
import pytest

from llmjax import mesh, models, optim, train
from llmjax import spec as specs
from llmjax.mesh import MeshConfig
from llmjax.objectives import Critic, PolicyConfig, policy
from llmjax.rl import (
    Credit,
    Experience,
    KLConfig,
    LearningConfig,
    ModelReward,
    Players,
    RolloutConfig,
    WeightedReward,
)
from llmjax.train.loop import fit
from tests.rl.small import CONFIG, Asked, share, writer

CRITIC = Critic(models.with_head(CONFIG, "value"))
REWARD = models.with_head(CONFIG, "reward")
OPTIMIZER = optim.OptimizerConfig(
    learning_rate=1e-2, schedule="constant", warmup_steps=0, weight_decay=0.0, decays=()
)


def placed(params, spec):
    """Where the current mesh has them."""
    return specs.move(params, spec) if mesh.current_mesh() else params


def iterate(draw):
    """An iteration of PPO with a reward model, and a step: its batch and metrics."""
    spec = CRITIC.spec(CONFIG)
    params = placed(draw(spec), spec)
    reference = placed(draw(models.spec(CONFIG)), models.spec(CONFIG))
    judge = placed(draw(models.spec(REWARD)), models.spec(REWARD))
    found = Experience(
        Asked(8),
        writer(RolloutConfig(prompts=8, max_new_tokens=6)),
        Players(CONFIG, CRITIC.policy, lambda _: reference, CRITIC),
        {"model": WeightedReward(ModelReward([judge], REWARD, batch_size=8, length=16))},
        Credit(LearningConfig("gae", epochs=1), KLConfig(0.1)),
        batch_size=8,
        length=16,
        seed=0,
        steps=100,
    )
    optimizer = optim.make(OPTIMIZER, spec, 100)
    state = train.start_state(jax.random.key(0), params, optimizer)
    found.ready(state)
    batch = next(found)
    step = train.make_step(policy(CONFIG, critic=CRITIC), optimizer)
    _, metrics = step(state, mesh.shard_batch(batch))
    return batch, jax.device_get(metrics)


@pytest.mark.slow
def test_a_mesh_equals_one_device(draw):
    """Answers are the same tokens, and what follows from them is within 1e-4 of its scale."""
    batch, metrics = iterate(draw)
    with jax.set_mesh(mesh.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        other, spread = iterate(draw)
    np.testing.assert_array_equal(batch["tokens"], other["tokens"])
    assert metrics["grad_norm"] > 0
    for one, two in ((batch, other), (metrics, spread)):
        assert one.keys() == two.keys()
        for name, value in one.items():
            np.testing.assert_allclose(two[name], value, rtol=1e-4, atol=1e-4, err_msg=name)


METHODS = {
    "ppo": (LearningConfig("gae", epochs=2), PolicyConfig(), CRITIC),
    "grpo": (
        LearningConfig("grpo", whiten=False, epochs=2),
        PolicyConfig(aggregation="sequence", kl_coefficient=0.01),
        None,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", METHODS)
def test_a_policy_learns_what_is_rewarded(name, seed):
    """From one token in 64 by chance to more than half of all, in 24 iterations of 8 steps."""
    learning, settings, critic = METHODS[name]
    spec = models.spec(CONFIG) if critic is None else critic.spec(CONFIG)
    params = specs.init(jax.random.key(seed), spec)
    own = critic.policy if critic else lambda params: params
    reference = jax.tree.map(np.array, own(params))
    rewards: list[float] = []
    found = Experience(
        Asked(16),
        writer(RolloutConfig(prompts=16, samples=4, max_new_tokens=6)),
        Players(CONFIG, own, lambda _: reference, critic),
        {"share": WeightedReward(share)},
        Credit(learning, KLConfig(0.01 if critic else 0.0)),
        batch_size=16,
        length=16,
        seed=seed,
        steps=1000,
        record=lambda step, found: rewards.append(found["reward"]),
    )
    optimizer = optim.make(OPTIMIZER, spec, 1000)
    state = train.start_state(jax.random.key(seed), params, optimizer)
    step = train.make_step(policy(CONFIG, settings, critic=critic), optimizer)
    found.ready(state)
    state = fit(state, step, found, steps=8 * 24, hooks=[found])
    assert rewards[0] < 0.05
    assert np.mean(rewards[-2:]) > 1 / 2, [round(x, 2) for x in rewards]
