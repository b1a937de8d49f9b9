"""Person re-identification: the losses, the neck, and the methods that train on a target."""
