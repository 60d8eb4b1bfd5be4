"""containerd over gRPC: our own messages, client, events and decoding."""
