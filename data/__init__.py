"""Text to tokens to batches: corpora, tokenizers, preparation, windows."""
