"""Directories and configs as Hugging Face lays them out."""
