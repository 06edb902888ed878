"""Images in tables: Parquet, Arrow, Hugging Face."""
