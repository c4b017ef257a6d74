"""An OpenAI-compatible server that plays the attempts itself, and a page to watch them."""
