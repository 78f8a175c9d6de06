"""The prefix cache: which pages hold which tokens, by hash chain or radix tree."""
