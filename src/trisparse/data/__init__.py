"""Text as training data: bytes to tokens, files to a token stream, a stream to packed windows."""
