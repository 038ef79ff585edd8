"""From the encoder's FLV tags to MPEG-TS segments and HTTP-FLV, never decoding and never transcoding."""
