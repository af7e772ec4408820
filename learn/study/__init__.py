"""The study page: manual backpropagation beside autograd, from one pass of both twins."""
