"""ICRE on Kubernetes: manifests for the KubeRay operator, the image, and the start of scheduled jobs."""
