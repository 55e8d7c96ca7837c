"""A model as transformers holds it in memory -> the model as the Hub has it."""
