"""A Llama-like decoder, losses under a frozen head and Adam in C: compiled here, loaded by cffi."""
