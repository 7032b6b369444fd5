"""Backbones and heads: what timm does not have, on parts of timm."""
