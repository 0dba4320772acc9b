"""The order of gradients in time."""

from collections.abc import Callable

import jax

from llmjax.kernels.linear_cross_entropy.statistics import instantiated, primals


def gradients_together(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """function(*arrays), whose gradients are all complete before any of them is used.

    A compiler may put off a gradient that only the optimizer needs, and keep in memory what it is
    computed from: a head's gathered weight until all layers have run backward, which for Llama 3 8B
    is 1 GB on each chip. Gradients that are not needed are still not computed.
    """

    @jax.custom_vjp
    def wrapped(*arrays):
        return function(*arrays)

    def forward(*arguments):
        arrays = primals(arguments)
        # A tree without leaves, as a residual cannot hold a bool.
        trained = [() if argument.perturbed else None for argument in arguments]

        def of_trained(*some):
            rest = iter(some)
            pairs = zip(trained, arrays, strict=True)
            return function(*(array if it is None else next(rest) for it, array in pairs))

        some = [array for it, array in zip(trained, arrays, strict=True) if it is not None]
        found, pull = jax.vjp(of_trained, *some)
        return found, (pull, trained)

    def backward(kept, cotangent):
        pull, trained = kept
        gradients = iter(jax.lax.optimization_barrier(pull(instantiated(cotangent))))
        return tuple(None if it is None else next(gradients) for it in trained)

    wrapped.defvjp(forward, backward, symbolic_zeros=True)
    return wrapped
