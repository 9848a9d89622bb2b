"""LoRA and DoRA adapters: layers, targets, the PEFT folder on disk, and proof of their effect."""
