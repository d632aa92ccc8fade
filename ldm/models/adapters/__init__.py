"""Adapters: files that change a loaded model's weights, and that are taken back again."""
