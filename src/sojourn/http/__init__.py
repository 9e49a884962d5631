"""The studio over HTTP: an OpenAI-compatible API, its own API, and who may use them."""
