"""Models that judge pictures over HTTP: one client for rewards, mining and everything else that asks them."""
