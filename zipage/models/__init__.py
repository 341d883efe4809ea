"""One decoder for the Llama, Qwen2 and Qwen3 families and its loading."""
