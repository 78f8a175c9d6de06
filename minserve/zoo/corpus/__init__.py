"""The text that the zoo learns from: source files, held-out files, tokenizer, batches."""
