"""One entry point per training stage, and the recipes that they run."""
