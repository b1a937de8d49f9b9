"""What a file or store holds, and whether the cluster is well."""
