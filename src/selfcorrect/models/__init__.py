"""A causal language model: loading and saving, chat templates, weights."""
