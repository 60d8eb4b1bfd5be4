"""What on this host stops a published port from working. Looks, tells, and mends nothing."""
