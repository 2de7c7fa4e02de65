"""Train TopK sparse autoencoders on language-model activations, and index their features."""
