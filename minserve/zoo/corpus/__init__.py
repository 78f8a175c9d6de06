"""The training text of the zoo: source files, held-out files, tokenizer, batches."""
