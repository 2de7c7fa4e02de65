"""How much is processed at once. These sizes determine memory, never results."""

TOKENS_PER_FORWARD = 4096
"""Tokens that the language model reads in one call."""
TOKENS_PER_BLOCK = 32_768
"""Tokens that are extracted and shuffled together; an activation waits for at most two blocks."""
LOGITS_PER_CHUNK = 2**26
"""Largest number of logits held at once while measuring cross-entropy (256 MiB in float32)."""
