"""The stages: the only floor that knows Ray and MLflow. Each is *config + input artifacts → output artifact*."""
