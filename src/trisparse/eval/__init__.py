"""What a trained model can do: held-out loss by position, needles in a haystack, looks into its layers."""
