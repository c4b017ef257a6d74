"""Models behind an OpenAI-compatible chat endpoint: asked in messages, graded and counted like a loaded one."""
