"""Telling people and programs: Telegram chats, a webhook; thresholds, subscriptions, quiet times."""
