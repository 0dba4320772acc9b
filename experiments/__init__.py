"""One entry point per stage of training, and the recipes that they run."""
