"""What builds, tests and measures the checkout; nothing of it is installed with llmjax."""
