"""JAX: a trained network (cuBLASLt matrix products, cuDNN convolutions, scans), exact integer work; in jit, so that XLA
captures CUDA graphs. Run once per way to allocate.

    jax_ways.py [SECTION...]

Fixed algorithms, and graphs as small as they come, are asked for by the runner in XLA_FLAGS; the way to allocate by
XLA_PYTHON_CLIENT_PREALLOCATE and XLA_PYTHON_CLIENT_ALLOCATOR.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

import sections

ON_GPU = jax.devices()[0].platform in ("gpu", "cuda")
WIDTH = 2048 if ON_GPU else 64


def take(digest, *arrays):
    for array in jax.tree.leaves(arrays):
        digest.update(np.asarray(array).tobytes())


def weights(key, *sizes):
    keys = jax.random.split(key, len(sizes) - 1)
    return [jax.random.normal(k, (a, b), jnp.float32) * a**-0.5 for k, a, b in zip(keys, sizes, sizes[1:])]


def network(digest):
    """Steps of gradient descent on a perceptron: matrix products with epilogues in two precisions."""
    parameters = weights(jax.random.key(1), WIDTH, 2 * WIDTH, 2 * WIDTH, WIDTH)
    momentum = jax.tree.map(jnp.zeros_like, parameters)

    def loss_of(parameters, x, y):
        for i, w in enumerate(parameters):
            bf16 = i % 2 == 1
            x = jax.nn.gelu((x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)).astype(jnp.float32) if bf16 else x @ w + 0.01)
        return ((x - y) ** 2).mean()

    @jax.jit
    def step(parameters, momentum, x, y):
        loss, gradient = jax.value_and_grad(loss_of)(parameters, x, y)
        momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, gradient)
        return loss, jax.tree.map(lambda p, m: p - 0.1 * m, parameters, momentum), momentum

    for i in range(6):
        x = jax.random.normal(jax.random.key(10 + i), (512, WIDTH), jnp.float32)
        loss, parameters, momentum = step(parameters, momentum, x, jnp.flip(x, 1))
        take(digest, loss)
    take(digest, parameters, momentum)


def convolutions(digest):
    kernels = [jax.random.normal(jax.random.key(i), s, jnp.float32) * 0.1
               for i, s in enumerate([(3, 3, 8, 64), (3, 3, 64, 64), (3, 3, 64, 128)])]

    @jax.jit
    def gradient(kernels, x):
        def loss(kernels):
            h = x
            for k in kernels:
                h = jax.nn.relu(jax.lax.conv_general_dilated(h, k, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))
            return (h**2).mean()

        return jax.value_and_grad(loss)(kernels)

    for i in range(3):
        x = jax.random.normal(jax.random.key(20 + i), (16 if ON_GPU else 2, 128, 128, 8), jnp.float32)
        loss, g = gradient(kernels, x)
        kernels = [k - 0.1 * d for k, d in zip(kernels, g)]
        take(digest, loss, g)
    take(digest, kernels)


def recurrent(digest):
    """A loop on the device, and attention over what it gave."""
    w = weights(jax.random.key(3), WIDTH, WIDTH)[0]

    @jax.jit
    def roll(state):
        def step(s, i):
            s = jnp.tanh(s @ w + i)
            return s, s[:, : WIDTH // 2]

        return jax.lax.scan(step, state, jnp.arange(40, dtype=jnp.float32) / 40)

    @jax.jit
    def attend(history):
        h = history.transpose(1, 0, 2)
        scores = jax.nn.softmax(jnp.einsum("bqd,bkd->bqk", h, h) / 32)
        return jnp.einsum("bqk,bkd->bqd", scores, h)

    last, history = roll(jax.random.normal(jax.random.key(4), (128, WIDTH), jnp.float32))
    take(digest, last, attend(history))


def integers(digest):
    n = 1 << (24 if ON_GPU else 14)

    @jax.jit
    def make(k):
        x = jnp.arange(n, dtype=jnp.uint32) * jnp.uint32(2654435761) + k
        x = (x ^ (x >> 15)) * jnp.uint32(0x85EBCA6B)
        return x ^ (x >> 13)

    arrays = [make(jnp.uint32(k)) for k in range(6)]
    total = sum(a * jnp.uint32(k + 1) for k, a in enumerate(arrays))
    take(digest, total[::7], jnp.sort(total[: n >> 3])[::5], jnp.cumsum(arrays[1][: n >> 4], dtype=jnp.uint32),
         arrays[3][arrays[2][: n >> 3] % jnp.uint32(n)], jnp.zeros(4099, jnp.uint32).at[total % 4099].add(arrays[0]))
    # Donated buffers are reused in place; copies come from the host.
    grow = jax.jit(lambda a, b: (a ^ b) + 1, donate_argnums=0)
    host = np.arange(n, dtype=np.uint32)
    for _ in range(4):
        total = grow(total, jax.device_put(host))
    take(digest, total)


status = sections.run(
    {s.__name__: s for s in (network, convolutions, recurrent, integers)}, sys.argv[1:], platform=jax.devices()[0].platform)
sys.exit(status)
