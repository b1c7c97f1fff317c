"""ICRE on Kubernetes: manifests for the KubeRay operator, the image, and the step that starts a scheduled job."""
