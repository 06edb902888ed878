"""What each operation of views does to that which labels say."""
