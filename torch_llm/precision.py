"""bfloat16 by autocast: what is computed in it, and what is not.

Under `torch.autocast(dtype=torch.bfloat16)` the matrix products round what they read to bfloat16, and what they make:
the projections, the output layer, scores, weighted sums. The activation and the gate between two products stay in
bfloat16 too. The weights are float32, so are embeddings, and float32 + bfloat16 is float32: the residual stream is
never rounded. What adds up many numbers, or small ones to large ones, must not be rounded either: norms, rotary
angles, softmax, soft caps and the loss read `full_precision(x)`. Autocast itself is not relied on for that: on a CPU
it leaves softmax and norms in the type that they are given.
"""

import torch


def full_precision(x):
    """x in float32 if a product left it in bfloat16, else x itself.

    x: float, any shape; returns: x float32 or float64
    """
    return x.float() if x.dtype == torch.bfloat16 else x
