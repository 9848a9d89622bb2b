"""Write knowledge into LoRA adapters, and prove that it is there."""

__version__ = "0.1.0"
