"""DeBERTa in NumPy, written from the papers, one query, key and head at a time.

He et al. 2021, "DeBERTa: Decoding-enhanced BERT with disentangled attention": equations 2 to 4 and
section 3.2; He et al. 2023, "DeBERTaV3". Where the papers are silent (buckets, convolution), or
differ from the models that their authors released (the position-to-content term), the released
models count, and it is said. Arrays are float64 and named as llmjax names them.
"""

import math

import numpy as np

_erf = np.vectorize(math.erf)


def bucket(distance, buckets, max_distance):
    """DeBERTaV2's buckets: exact up to half of them, then thresholds in geometric sequence.

    The n-th threshold of the far half is middle · ratio^(n / (middle - 1)), ratio being that of
    the farthest distance to the middle; a distance is in the bucket of the thresholds it exceeds.
    """
    middle = buckets // 2
    if abs(distance) <= middle:
        return distance
    ratio = (max_distance - 1) / middle
    exceeded = 0
    while middle * ratio ** (exceeded / (middle - 1)) < abs(distance) - 1e-9:
        exceeded += 1
    return int(math.copysign(middle + exceeded, distance))


def delta(i, j, options):
    """Equation 3: the row of relative position i - j in a table of 2k."""
    k = options.span
    distance = bucket(i - j, options.buckets, options.max_distance) if options.buckets else i - j
    if distance <= -k:
        return 0
    if distance >= k:
        return 2 * k - 1
    return distance + k


def project(params, name, state, head):
    return state @ params[name][:, head] + params[f"{name}_bias"][head]


def attention(params, options, table, hidden, queries, allowed):
    """Equation 4, of one row.

    Args:
        params: projections [D, H, C], biases [H, C], "out" [H, C, D] and "out_bias" [D].
        options: `models.Disentangled`.
        table: [2k, D], relative positions.
        hidden: [S, D], which keys and values are of.
        queries: [S, D].
        allowed: bool [S, S], whether query i may look at key j.
    """
    length, (_, heads, channels) = len(hidden), params["query"].shape
    key_name, query_name = (
        ("key", "query") if options.shared else ("position_key", "position_query")
    )
    out = np.tile(params["out_bias"], (length, 1))
    for head in range(heads):
        for i in range(length):
            seen = [j for j in range(length) if allowed[i, j]]
            if not seen:
                continue
            query = project(params, "query", queries[i], head)
            scores = []
            for j in seen:
                key = project(params, "key", hidden[j], head)
                # The paper has δ(j, i) in the last term; the released models have δ(i, j).
                position = table[delta(i, j, options)]
                score = query @ key
                if "c2p" in options.terms:
                    score += query @ project(params, key_name, position, head)
                if "p2c" in options.terms:
                    score += key @ project(params, query_name, position, head)
                scores.append(score / math.sqrt((1 + len(options.terms)) * channels))
            weights = np.exp(np.array(scores) - max(scores))
            weights /= weights.sum()
            values = np.array([project(params, "value", hidden[j], head) for j in seen])
            out[i] += (weights @ values) @ params["out"][head]
    return out


def norm(params, x, epsilon):
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    return centred / np.sqrt(variance + epsilon) * params["scale"] + params["bias"]


def layer(params, options, table, queries, hidden, allowed, epsilon):
    """A whole layer, norms behind the sums; its residual stream is the queries."""
    mixed = attention(params["attention"], options, table, hidden, queries, allowed)
    x = norm(params["attention_norm"], queries + mixed, epsilon)
    mlp = params["mlp"]
    inner = x @ mlp["up"] + mlp["up_bias"]
    inner = inner * (1 + _erf(inner / math.sqrt(2))) / 2
    return norm(params["mlp_norm"], x + inner @ mlp["down"] + mlp["down_bias"], epsilon)


def mask_decoder(params, options, table, positions, hidden, allowed, epsilon):
    """Section 3.2: n decoding layers that share the last layer's weights.

    I, the first input, is H and the absolute positions; H, the last but one layer's output, is
    what every decoding layer takes keys and values from.
    """
    x = hidden + positions
    for _ in range(options.mask_decoder):
        x = layer(params, options, table, x, hidden, allowed, epsilon)
    return x


def convolution(params, inputs, outputs, segments, activation, epsilon):
    """The released v2-xlarge's convolution, of one row: a token sees its own segment only."""
    length, width = len(inputs), len(params["kernel"])
    out = np.zeros_like(outputs)
    for s in range(length):
        if segments[s] == 0:
            continue
        inner = params["bias"].copy()
        for k in range(width):
            neighbour = s + k - width // 2
            if 0 <= neighbour < length and segments[neighbour] == segments[s]:
                inner += inputs[neighbour] @ params["kernel"][k]
        out[s] = norm(params["norm"], outputs[s] + activation(inner), epsilon)
    return out
