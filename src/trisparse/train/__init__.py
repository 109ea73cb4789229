"""Training: a recipe in, a trained model, its log and checkpoints out. The loop is transformers' Trainer."""
