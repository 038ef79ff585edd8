"""SRT from encoders: an ffmpeg listens on each port and hands on what it hears as FLV."""
