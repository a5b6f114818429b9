"""Vision transformers: blocks, embeddings, heads, and models made of them."""
