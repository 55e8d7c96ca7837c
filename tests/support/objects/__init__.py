"""An object store on this machine: the real `rclone serve s3`, behind a proxy that plays faults."""
