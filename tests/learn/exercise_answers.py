"""What students hand in: for each exercise a right answer.

The answers are written as a student would, apart from the project's own functions, to which grading holds them.
"""

from textwrap import indent

from learn.exercises.start import BLANK, starter

ANSWERS = {
    "relu": "return dy * (y > 0)",
    "linear": """
drows = dy.reshape(-1, dy.shape[-1])
dx = dy @ weight
dweight = drows.T @ rows
dbias = drows.sum(axis=0)
return dx, dweight, dbias
""",
    "embedding": """
dweight = np.zeros(shape)
np.add.at(dweight, tokens, dy)
return dweight
""",
    "position": """
dtable = np.zeros(shape)
dtable[start : start + T] = dy.sum(axis=0)
return dy, dtable
""",
    "residual": """
dx = dy + dy @ weight
dweight = (dy.reshape(len(rows), -1).T @ rows)
return dx, dweight, dy.sum(axis=(0, 1))
""",
    "softmax": "return y * (dy - (dy * y).sum(axis=-1, keepdims=True))",
    "cross-entropy": """
N, V = targets.size, probabilities.shape[-1]
dlogits = probabilities.reshape(N, V).copy()
dlogits[np.arange(N), targets.reshape(-1)] -= 1
return (dlogits * dloss / N).reshape(probabilities.shape)
""",
    "gelu": """
du = np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)
first = 0.5 * (1 + tanh)
second = x / 2 * (1 - tanh**2) * du
return dy * (first + second)
""",
    "layer-norm": """
dnormal = dy * weight
mean = dnormal.mean(axis=-1, keepdims=True)
deviation = normal * (dnormal * normal).mean(axis=-1, keepdims=True)
dx = inverse_deviation * (dnormal - mean - deviation)
return dx, (dy * normal).sum(axis=(0, 1)), dy.sum(axis=(0, 1))
""",
    "rms-norm": """
dnormal = dy * weight
through = normal * (dnormal * normal).mean(axis=-1, keepdims=True)
return (dnormal - through) * inverse_rms, (dy * normal).sum(axis=(0, 1))
""",
    "split-heads": "return dy.transpose(1, 3, 0, 2, 4).reshape(B, T, -1)",
    "merge-heads": "B, H, T, D = shape\nreturn dy.reshape(B, T, H, D).swapaxes(1, 2)",
    "scores": """
scale = 1 / np.sqrt(query.shape[-1])
dscores = softmax_backward(dy, softmax_cache)
dscores = dscores * scale
return dscores @ key, dscores.swapaxes(-1, -2) @ query
""",
    "tied-output": """
dhidden, output, _ = linear_backward(dy, output_cache)
dx, dmix, _ = linear_backward(dhidden, mix_cache)
tokens, shape = lookup_cache
lookup = np.zeros(shape)
np.add.at(lookup, tokens, dx)
return lookup + output, dmix
""",
    "adam": """
m = beta1 * m + (1 - beta1) * gradient
v = beta2 * v + (1 - beta2) * gradient**2
first, second = m / (1 - beta1**step), v / (1 - beta2**step)
decay = learning_rate * weight_decay * weight
return weight - decay - learning_rate * first / (np.sqrt(second) + eps), m, v
""",
    "attention": """
B, H, T, D = query.shape
dmerged, doutput_weight, doutput_bias = linear_backward(dy, output_cache)
dheads = dmerged.reshape(B, T, H, D).swapaxes(1, 2)
dprobabilities = dheads @ value.swapaxes(-1, -2)
dvalue = probabilities.swapaxes(-1, -2) @ dheads
dscores = softmax_backward(dprobabilities, softmax_cache)
dscores = dscores / np.sqrt(D)
dquery = dscores @ key
dkey = dscores.swapaxes(-1, -2) @ query
dqkv = np.stack([dquery, dkey, dvalue]).transpose(1, 3, 0, 2, 4).reshape(B, T, -1)
dx, dqkv_weight, dqkv_bias = linear_backward(dqkv, qkv_cache)
return dx, {
    "query_key_value.weight": dqkv_weight,
    "query_key_value.bias": dqkv_bias,
    "output.weight": doutput_weight,
    "output.bias": doutput_bias,
}
""",
    "attention-in-blocks": """
T, D = query.shape
y, log_totals = np.empty((T, D)), np.empty(T)
for start in range(0, T, rows):
    stop = min(start + rows, T)
    m, total, gathered = -np.inf, 0, 0
    for at in range(0, stop, columns):
        keys = np.arange(at, min(at + columns, stop))
        scores = query[start:stop] @ key[keys].T / np.sqrt(D)
        scores[np.arange(start, stop)[:, None] < keys] = -np.inf
        new = np.maximum(m, scores.max(axis=1, keepdims=True))
        weights, kept = np.exp(scores - new), np.exp(m - new)
        total = total * kept + weights.sum(axis=1, keepdims=True)
        gathered = gathered * kept + weights @ value[keys]
        m = new
    y[start:stop] = gathered / total
    log_totals[start:stop] = (m + np.log(total))[:, 0]
return y, (query, key, value, y, log_totals, rows, columns)
---
T, D = query.shape
dquery, dkey, dvalue = np.zeros((3, T, D))
delta = (dy * y).sum(axis=1, keepdims=True)
for start in range(0, T, rows):
    stop = min(start + rows, T)
    dhead = dy[start:stop]
    for at in range(0, stop, columns):
        keys = np.arange(at, min(at + columns, stop))
        scores = query[start:stop] @ key[keys].T / np.sqrt(D)
        scores[np.arange(start, stop)[:, None] < keys] = -np.inf
        p = np.exp(scores - log_totals[start:stop, None])
        dp = dhead @ value[keys].T
        dscores = p * (dp - delta[start:stop]) / np.sqrt(D)
        dquery[start:stop] += dscores @ key[keys]
        dkey[keys] += dscores.T @ query[start:stop]
        dvalue[keys] += p.T @ dhead
return dquery, dkey, dvalue
""",
    "block": """
gradients = {}
dactive, gradients["feed_forward.down.weight"], gradients["feed_forward.down.bias"] = linear_backward(dy, down_cache)
dhidden = gelu_tanh_backward(dactive, gelu_cache)
dnormed, gradients["feed_forward.up.weight"], gradients["feed_forward.up.bias"] = linear_backward(dhidden, up_cache)
dmiddle, gradients["norm_2.weight"], gradients["norm_2.bias"] = layer_norm_backward(dnormed, norm_2_cache)
dmiddle = dmiddle + dy
dnormed, attention_gradients = attention.attention_backward(dmiddle, attention_cache)
dx, gradients["norm_1.weight"], gradients["norm_1.bias"] = layer_norm_backward(dnormed, norm_1_cache)
dx = dx + dmiddle
return dx, gradients | attention_gradients
""",
    "dropout": "return dy * kept / (1 - rate)",
    "soft-cap": "return dy * (1 - tanh**2)",
    "rotary": """
first, second = np.split(dy, 2, axis=-1)
return np.concatenate([first * cosine + second * sine, second * cosine - first * sine], axis=-1)
""",
    "qk-norm": """
first, second = np.split(dy, 2, axis=-1)
dnormed = np.concatenate([first * cosine + second * sine, second * cosine - first * sine], axis=-1)
dnormal = dnormed * weight
through = normal * (dnormal * normal).mean(axis=-1, keepdims=True)
return (dnormal - through) * inverse_rms, (dnormed * normal).sum(axis=(0, 1, 2))
""",
    "swiglu": """
dgated, ddown, _ = linear_backward(dy, down_cache)
dactive, db = dgated * b, dgated * a * sigmoid
da = dactive * (sigmoid + a * sigmoid * (1 - sigmoid))
dx_gate, dgate, _ = linear_backward(da, gate_cache)
dx_up, dup, _ = linear_backward(db, up_cache)
return dx_gate + dx_up, dgate, dup, ddown
""",
    "grouped-queries": """
B, H, T, D = query.shape
dprobabilities = dy @ values.swapaxes(-1, -2)
dvalues = probabilities.swapaxes(-1, -2) @ dy
dscores = softmax_backward(dprobabilities, softmax_cache) / np.sqrt(D)
dquery = dscores @ keys
dkeys = dscores.swapaxes(-1, -2) @ query
dkey = dkeys.reshape(B, -1, group, T, D).sum(axis=2)
dvalue = dvalues.reshape(B, -1, group, T, D).sum(axis=2)
return dquery, dkey, dvalue
""",
    "gradient-clipping": """
norm = np.sqrt((first**2).sum() + (second**2).sum())
factor = min(1, max_norm / norm)
return first * factor, second * factor, norm
""",
    "accumulation": """
total = 0
for mean, count in zip(gradients, tokens):
    total = total + count * mean
return total / tokens.sum()
""",
    "key-value-cache": """
P, T, D = past_key.shape[2], query.shape[2], query.shape[3]
angle = (P + np.arange(T))[:, None] * theta ** (-np.arange(0, D, 2) / D)
cosine, sine = np.cos(angle), np.sin(angle)
turned = []
for x in (query, key):
    first, second = np.split(x, 2, axis=-1)
    turned.append(np.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1))
query, key = turned
keys, values = np.concatenate([past_key, key], axis=2), np.concatenate([past_value, value], axis=2)
scores = query @ keys.swapaxes(-1, -2) / np.sqrt(D)
scores = scores + np.triu(np.full((T, P + T), -np.inf), k=P + 1)
weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
return weights / weights.sum(axis=-1, keepdims=True) @ values, keys, values
""",
    "modern-block": """
gate_cache, silu_cache, active, up, up_cache, down_cache = feed_forward_caches
gradients, own = {}, "feed_forward."
dgated, gradients[own + "down.weight"], _ = linear_backward(dy, down_cache)
dgate = silu_backward(dgated * up, silu_cache)
dnormed, gradients[own + "gate.weight"], _ = linear_backward(dgate, gate_cache)
of_up, gradients[own + "up.weight"], _ = linear_backward(dgated * active, up_cache)
dnormed = dnormed + of_up
dmiddle, gradients["norm_2.weight"] = rms_norm_backward(dnormed, norm_2_cache)
dmiddle = dmiddle + dy
dnormed, attention_gradients = attention.attention_backward(dmiddle, attention_cache)
dx, gradients["norm_1.weight"] = rms_norm_backward(dnormed, norm_1_cache)
dx = dx + dmiddle
return dx, gradients | {name: each for name, each in attention_gradients.items() if each is not None}
""",
}


def filled_in(exercise, seed, answer=None):
    """The text of a student's file: the starter with an answer in its blank, or several, between lines of ---."""
    bodies = (ANSWERS[exercise.name] if answer is None else answer).strip().split("\n---\n")
    text = starter(exercise, seed)
    assert text.count(BLANK) == len(bodies)
    for body in bodies:
        text = text.replace(BLANK, indent(f"{body}\n", "    "), 1)
    return text
