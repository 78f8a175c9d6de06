"""A model in one GGUF file: its configuration from the metadata, its weights from the tensors."""
