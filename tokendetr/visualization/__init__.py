"""Images of detections and of the tokens that a model works on."""
