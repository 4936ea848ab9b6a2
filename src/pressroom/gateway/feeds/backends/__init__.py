"""Message brokers that a feed can read from and write to, one file each."""
