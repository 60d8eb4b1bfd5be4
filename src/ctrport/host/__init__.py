"""The host itself: lock, sysctls, listeners, systemd."""
