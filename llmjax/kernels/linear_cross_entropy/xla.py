"""Cross entropy over chunks of tokens, with the gradient computed along with the loss.

The loss is a sum, so its gradient with respect to the logits is known as soon as they are:
softmax minus target. Each chunk of logits is therefore used for the loss and for both gradients
while it exists, and never computed again: three matrix products in all, and one chunk of
memory. Without differentiation only the first product runs.
"""

import functools

import jax
import jax.numpy as jnp

from llmjax import mesh

CHUNK_BYTES = 64 * 2**20  # of one chunk of logits on one device, on CPUs


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def token_losses(
    hidden, weight, bias, targets, label_smoothing, z_loss, cap
) -> tuple[jax.Array, jax.Array]:
    """(sum of losses, loss of every token [B, S]); only the sum has a gradient."""
    losses, *_ = _run(hidden, weight, bias, targets, label_smoothing, z_loss, cap, grads=False)
    return jnp.sum(losses), losses


def _forward(hidden, weight, bias, targets, label_smoothing, z_loss, cap):
    losses, *grads = _run(hidden, weight, bias, targets, label_smoothing, z_loss, cap, grads=True)
    return (jnp.sum(losses), losses), grads


def _backward(label_smoothing, z_loss, cap, grads, cotangents):
    cotangent, _ = cotangents
    scaled = jax.tree.map(lambda grad: cotangent.astype(grad.dtype) * grad, tuple(grads))
    return *scaled, None


token_losses.defvjp(_forward, _backward)


def chunks(batch: int, length: int, vocab: int) -> int:
    """Into how many pieces the sequence is cut: the fewest that divide it and fit."""
    rows = -(-batch // mesh.size("batch")) * -(-vocab // mesh.size("vocab"))
    # An H100 takes 21 ms with chunks of 64 MB where it takes 9 with larger ones; CPUs do not care.
    limit = CHUNK_BYTES if jax.default_backend() == "cpu" else 8 * CHUNK_BYTES
    fit = max(1, limit // (4 * rows))
    return next(n for n in range(1, length + 1) if length % n == 0 and length // n <= fit)


def _run(hidden, weight, bias, targets, label_smoothing, z_loss, cap, grads):
    """Losses [B, S], and the sum's gradients by `hidden`, `weight` and `bias`, or None."""
    batch, length, _ = hidden.shape
    count = chunks(batch, length, weight.shape[0])
    one = functools.partial(
        _chunk,
        # The width is gathered here, once, rather than for every chunk.
        weight=mesh.place(weight.astype(hidden.dtype), ("vocab", None)),
        bias=bias,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        cap=cap,
        grads=grads,
    )
    if count == 1:
        losses, grad_hidden, grad_head = one(_rows(hidden), _rows(targets))
    else:

        def body(total, chunk):
            losses, grad_hidden, grad_head = one(*(_rows(x) for x in chunk))
            return jax.tree.map(jnp.add, total, grad_head), (losses, grad_hidden)

        start = jax.tree.map(jnp.zeros_like, (weight, bias)) if grads else (None, None)
        cut = functools.partial(_cut, count=count)
        grad_head, outs = jax.lax.scan(body, start, (cut(hidden), cut(targets)))
        losses, grad_hidden = jax.tree.map(functools.partial(_join, batch=batch), outs)
    restore = mesh.sharded(jnp.reshape, ("batch", None))
    losses = restore(losses, targets.shape)
    if grads:
        restore = mesh.sharded(jnp.reshape, ("batch", None, None))
        grad_hidden = restore(grad_hidden, hidden.shape)
    return losses, grad_hidden, *grad_head


def _chunk(hidden, targets, weight, bias, label_smoothing, z_loss, cap, grads):
    """Losses [N], gradients [N, D], and ([V, D], [V] or None), of N tokens."""
    accumulate = jnp.promote_types(hidden.dtype, jnp.float32)
    product = functools.partial(jnp.einsum, preferred_element_type=accumulate)
    logits = mesh.sharded(product, ("batch", "vocab"))("nd,vd->nv", hidden, weight)
    # Looked up in the weight, not in the logits: that works on a sharded vocabulary, and saves a
    # pass over them.
    rows = mesh.sharded(weight.at[jnp.maximum(targets, 0)].get, ("batch", None))()
    picked = product("nd,nd->n", hidden, rows)
    if bias is not None:
        bias = jnp.asarray(bias, accumulate)
        logits += bias
        picked += mesh.sharded(bias.at[jnp.maximum(targets, 0)].get, ("batch",))()
    logits, slope = _bend(logits, cap)
    picked, _ = _bend(picked, cap)
    highest = jnp.max(logits, axis=-1, keepdims=True)
    powers = jnp.exp(logits - highest)
    total = jnp.sum(powers, axis=-1, keepdims=True)
    log_sum = (highest + jnp.log(total))[:, 0]
    expected = (1 - label_smoothing) * picked
    if label_smoothing:
        expected += label_smoothing * jnp.mean(logits, axis=-1)
    counted = targets >= 0
    losses = jnp.where(counted, log_sum - expected + z_loss * log_sum**2, 0.0)
    if not grads:
        return losses, None, (None, None)
    scale = jnp.where(counted, 1 + 2 * z_loss * log_sum, 0.0)[:, None] / total
    at_target = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1) == targets[:, None]
    grad = powers * scale - jnp.where(at_target, 1 - label_smoothing, 0.0)
    if label_smoothing:
        grad -= jnp.where(counted, label_smoothing / logits.shape[-1], 0.0)[:, None]
    grad = (grad * slope).astype(hidden.dtype)
    grad_hidden = mesh.sharded(jnp.einsum, ("batch", None))("nv,vd->nd", grad, weight)
    grad_weight = mesh.sharded(product, ("vocab", "embed"))("nv,nd->vd", grad, hidden)
    grad_bias = None
    if bias is not None:
        # A product, since XLA:CPU sums columns slowly.
        ones = jnp.ones_like(targets, grad.dtype)
        grad_bias = mesh.sharded(product, ("vocab",))("nv,n->v", grad, ones).astype(bias.dtype)
    return losses, grad_hidden, (grad_weight, grad_bias)


def _bend(logits, cap):
    """cap·tanh(logits / cap) and its slope; without a cap the logits themselves."""
    if not cap:
        return logits, 1.0
    bent = jnp.tanh(logits / cap)
    return cap * bent, 1.0 - jnp.square(bent)


def _rows(x):
    """[B, s, ...] to [N, ...]."""
    return x.reshape(-1, *x.shape[2:])


def _cut(x, count):
    """[B, S, ...] to [count, B, S/count, ...]."""
    batch, length, *rest = x.shape
    return jnp.moveaxis(x.reshape(batch, count, length // count, *rest), 1, 0)


def _join(x, batch):
    """Chunks [count, N, ...] to [B, S, ...]."""
    count, rows, *rest = x.shape
    split = mesh.sharded(jnp.reshape, (None, "batch", *(None for _ in (rows, *rest))))
    x = jnp.moveaxis(split(x, (count, batch, rows // batch, *rest)), 0, 1)
    return x.reshape(batch, count * (rows // batch), *rest)
