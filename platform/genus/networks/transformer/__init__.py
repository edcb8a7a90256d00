"""The transformer: decoder only (GPT-2, Llama) and encoder-decoder, of the same blocks."""
