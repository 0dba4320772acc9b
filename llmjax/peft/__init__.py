"""Parameter-efficient fine-tuning: transforms of declarations and of parameters."""
