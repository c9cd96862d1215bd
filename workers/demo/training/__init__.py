"""Scripts that make the demo model again: corpus, tokenizer, network, training run, export."""
