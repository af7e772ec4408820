# ruff: noqa
"""Exercise block: attention and a feed-forward layer, each on a normed copy of the stream, each added to it.

    middle = x + attention(norm_1(x))
    y = middle + feed_forward(norm_2(middle)),   feed_forward(x) = gelu(x W_upᵀ + b_up) W_downᵀ + b_down

Write `block_backward`.
"""

from types import SimpleNamespace

from numpy_llm.attention import attention_backward, attention_forward  # earlier steps
from numpy_llm.layers import (
    gelu_backward,
    gelu_forward,
    layer_norm_backward,
    layer_norm_forward,
    linear_backward,
    linear_forward,
)

EXERCISE = "block"
SEED = 3
EPS = 1e-5


def block_forward(x, weights, n_head):
    """Given. returns: y, and the cache that block_backward gets."""
    config = SimpleNamespace(n_head=n_head, head_size=x.shape[-1] // n_head, dropout=0.0)
    normed, norm_1_cache = layer_norm_forward(x, weights["norm_1.weight"], weights["norm_1.bias"], EPS)
    branch, attention_cache = attention_forward(normed, weights, "attention", config)
    middle = x + branch
    normed, norm_2_cache = layer_norm_forward(middle, weights["norm_2.weight"], weights["norm_2.bias"], EPS)
    up, down = "feed_forward.up", "feed_forward.down"
    hidden, up_cache = linear_forward(normed, weights[f"{up}.weight"], weights[f"{up}.bias"])
    active, gelu_cache = gelu_forward(hidden)
    branch, down_cache = linear_forward(active, weights[f"{down}.weight"], weights[f"{down}.bias"])
    y = middle + branch
    return y, (norm_1_cache, attention_cache, norm_2_cache, up_cache, gelu_cache, down_cache)


def block_backward(dy, cache):
    """dy: the gradient of the loss with respect to y.

    returns: dx, and a dict of the weights' gradients by the names that they have in `weights`

    attention_backward(dy, its cache) returns dx and such a dict, its names beginning with "attention.";
    layer_norm_backward and linear_backward return dx, dweight, dbias; gelu_backward returns dx.
    """
    norm_1_cache, attention_cache, norm_2_cache, up_cache, gelu_cache, down_cache = cache
    gradients = {}
    dactive, gradients["feed_forward.down.weight"], gradients["feed_forward.down.bias"] = linear_backward(
        dy, down_cache
    )
    dhidden = gelu_backward(dactive, gelu_cache)
    dnormed, gradients["feed_forward.up.weight"], gradients["feed_forward.up.bias"] = linear_backward(
        dhidden, up_cache
    )
    dmiddle, gradients["norm_2.weight"], gradients["norm_2.bias"] = layer_norm_backward(dnormed, norm_2_cache)
    dmiddle = dmiddle + dy
    dnormed, attention_gradients = attention_backward(dmiddle, attention_cache)
    dx, gradients["norm_1.weight"], gradients["norm_1.bias"] = layer_norm_backward(dnormed, norm_1_cache)
    dx = dx + dmiddle
    return dx, gradients | attention_gradients
