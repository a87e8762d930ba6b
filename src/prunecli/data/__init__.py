"""Data: from text to tokens to rows and windows."""
