"""Where pipelines and prompts come from."""
