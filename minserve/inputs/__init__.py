"""What a caller sends, checked and copied where it enters. Knows no model and no engine."""
