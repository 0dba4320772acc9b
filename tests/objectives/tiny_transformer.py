"""A one-layer encoder and the losses on it in float64 NumPy, written from the papers.

Pre-norm with RMSNorm (Zhang & Sennrich 2019), attention of one head within segments (Vaswani et al.
2017), a GELU MLP, an MLM head (Devlin et al. 2019) and a head for replaced tokens (Clark et al.
2020). Shares no code with the library; parameters are named as there.
"""

import math

import numpy as np

EPSILON = 1e-5


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def norm(x, params):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPSILON) * params["scale"]


def softmax(x):
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def hidden(params, tokens, segment_ids):
    """Tokens [B, S] to hidden states [B, S, D]; `params` of one layer, stacked."""
    layer = params["layers"]
    query, key, value = (layer["attention"][n][0, :, 0] for n in ("query", "key", "value"))
    x = params["embedding"][tokens]
    y = norm(x, {"scale": layer["attention_norm"]["scale"][0]})
    scores = np.einsum("bsc,btc->bst", y @ query, y @ key) / math.sqrt(query.shape[1])
    apart = segment_ids[:, :, None] != segment_ids[:, None]
    attended = softmax(np.where(apart, -1e30, scores)) @ (y @ value)
    x = x + attended @ layer["attention"]["out"][0, 0]
    y = norm(x, {"scale": layer["mlp_norm"]["scale"][0]})
    x = x + gelu(y @ layer["mlp"]["up"][0]) @ layer["mlp"]["down"][0]
    return norm(x, params["final_norm"])


def mlm_loss(params, masked_tokens, segment_ids, targets):
    """(Σ -log P(target), number of targets); targets [B, S] are -1 where there is none."""
    head = params["head"]
    states = norm(gelu(hidden(params, masked_tokens, segment_ids) @ head["dense"]), head["norm"])
    shares = softmax(states @ params["embedding"].T + head["bias"])
    rows, places = np.nonzero(targets >= 0)
    return -np.log(shares[rows, places, targets[rows, places]]).sum(), len(rows)


def discriminator_loss(params, corrupted, originals, segment_ids):
    """(Σ over tokens of -log P(what it is), number of tokens, of replaced ones, of right ones)."""
    head = params["head"]
    states = gelu(hidden(params, corrupted, segment_ids) @ head["dense"])
    replaced_share = 1 / (1 + np.exp(-(states @ head["out"] + head["out_bias"])[..., 0]))
    replaced = corrupted != originals
    losses = -np.log(np.where(replaced, replaced_share, 1 - replaced_share))
    there = segment_ids != 0
    right = (replaced_share > 0.5) == replaced
    return losses[there].sum(), there.sum(), replaced[there].sum(), right[there].sum()


def gradient(function, x, step=1e-5):
    """Central differences of a function of an array."""
    found = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        found[index] = (function(up) - function(down)) / (2 * step)
    return found
