"""How a decoder's step runs: transformers, torch by hand, compiled C."""
