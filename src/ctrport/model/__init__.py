"""What a published port is and who gets which: standard library only, no I/O."""
