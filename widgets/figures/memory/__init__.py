"""Where the KV cache's bytes are: pages, block tables, tiers, trees of prefixes."""
