"""LoRA adapters beside a model: their names, what their numbers mean, and how peft stores them."""
