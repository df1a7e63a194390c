"""What a run tells: metrics, progress, profile, timeline."""
