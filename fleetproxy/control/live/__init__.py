"""The dashboard's live stream: the fleet as it is this moment, what just changed, and requests as they end."""
