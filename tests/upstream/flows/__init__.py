"""What people do with detectron2 and detrex, done with this project beside the real ones."""
